"""Work spread over processes, with a progress bar, its results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")


class WorkerPool:
    """Calls functions in worker processes and gives the results back in order.

    One worker means this process. Workers are spawned: a fork of a process with threads, as
    JAX's, can hang.
    """

    def __init__(self, workers: int, progress: bool) -> None:
        self._workers, self._progress = workers, progress
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        if self._workers > 1:
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _leave_interrupts_to_parent
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, calls: Iterable[Callable[[], T]], title: str, total: int) -> Iterator[T]:
        """Results of `calls`, in order, while a bar shows how many of `total` are there."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self._progress,
        )
        task = bar.add_task(title, total=total)
        bar.start()
        try:
            for result in self._results(calls):
                bar.advance(task)
                # Whoever takes the last result may never ask for one more.
                if bar.finished:
                    bar.stop()
                yield result
        finally:
            if not bar.finished:
                bar.stop()

    def _results(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        if self._executor is None:
            yield from (call() for call in calls)
            return
        # A bounded window: results wait in memory when the writer is slower than the workers.
        waiting: collections.deque[concurrent.futures.Future[T]] = collections.deque()
        for call in calls:
            waiting.append(self._executor.submit(_call, call))
            if len(waiting) >= 4 * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _call(call: Callable[[], T]) -> T:
    return call()


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Speed(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")
