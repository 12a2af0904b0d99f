"""Work spread over processes, with a progress bar, its results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
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

from spatial_clap_jax.errors import RunStopped

# Of Linux's prctl: the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1
T = TypeVar("T")


class WorkerPool:
    """Calls functions in worker processes and gives the results back in order.

    One worker means this process. Workers are spawned: a fork of a process with threads, as
    JAX's, can hang. They end with this process, in whichever way it ends.
    """

    def __init__(self, workers: int, progress: bool) -> None:
        self._workers, self._progress = workers, progress
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        if self._workers > 1:
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _start_worker
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, calls: Iterable[Callable[[], T]], title: str, total: int) -> Iterator[T]:
        """Results of `calls`, in order, while a bar shows how many of `total` are there.

        Raises:
          RunStopped: a worker was killed.
        """
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
        try:
            for call in calls:
                waiting.append(self._executor.submit(_call, call))
                if len(waiting) >= 4 * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RunStopped(
                f"--workers {self._workers}: one of them was killed, most likely because memory "
                "ran out; give fewer, or more memory."
            ) from None


def _call(call: Callable[[], T]) -> T:
    return call()


def _start_worker() -> None:
    # An interrupt goes to all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent(tied: bool = False) -> None:
    """Has this worker process end as soon as its parent does, in whichever way.

    Args:
      tied: have Linux kill it, too, which needs no turn of this process's interpreter. Only where
        the thread that started it lives as long as the parent: to Linux that is the parent.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if tied and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        parent.join()
        os._exit(1)

    # What ended before the call above is noticed here.
    threading.Thread(target=watch, name="end with parent", daemon=True).start()


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never hear of SIGINT and SIGTERM.

    Children inherit what is blocked, so that there is no moment at which a signal could end one.
    A signal to this process waits until the end of the block, if it does not go to another thread.
    """
    # A first start starts this too, which unblocks both signals behind itself.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Speed(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")
