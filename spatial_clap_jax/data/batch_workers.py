"""Processes that build batches: they end with their parent, and no end of theirs goes unnoticed.

Worker w of n builds every n-th step from the w-th on and sends batch after batch. The arrays of a
batch lie in one anonymous file that both processes map: it has no name, so that nothing of it is
left when they end, in whichever way. What they build follows them through their own connection:
Python would write it into a pipe whose other end stays open in the parent, and wait for ever where
it is larger than the pipe and the worker never reads. Grain's own `mp_prefetch` would leave the
wait without a bound: it waits for ever for a worker that hangs or that ends with status 0, and up
to 25 s a worker when it is closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import mmap
import multiprocessing.process
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import reduction, util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

import grain
import numpy as np

from spatial_clap_jax.data.workers import end_with_parent, signals_blocked
from spatial_clap_jax.errors import InputError, RunStopped

# Of each array in a batch: what vector units and XLA's buffers ask for.
_ALIGNMENT = 64
# A killed process that has not ended by then hangs in the kernel; it ends when that lets it.
_END_S = 10.0
# Of one call of the system.
_LONGEST_WAIT_S = 1e6


class Built(NamedTuple):
    """A batch as it is built.

    Attributes:
      batch: arrays by name.
      skipped: records that could not be read, in whose place others stand.
    """

    batch: dict[str, np.ndarray]
    skipped: tuple[str, ...]


@dataclasses.dataclass
class _Worker:
    """A worker process, as its parent sees it.

    Attributes:
      number: of the worker, from 0.
      process: handle of the process.
      connection: batches come from there; the steps go there, then a word for each that was taken.
      sender: thread that sends the steps.
      due: the step whose batch it gives next.
      ready: whether it has told that it is at work.
    """

    number: int
    process: SpawnProcess
    connection: Connection
    sender: threading.Thread
    due: int
    ready: bool = False


class BatchWorkers(Iterator[Built]):
    """The batches of all steps from one on, in order, built in worker processes.

    Args:
      steps: builds the batch of each step; travels by pickle.
      first: the first step wanted.
      workers: processes.
      threads: threads that build, in each.
      ahead: batches that each has ready at most, beside those in its threads.
      timeout_s: longest wait for a batch.
    """

    def __init__(
        self,
        steps: grain.MapDataset[Built],
        first: int,
        *,
        workers: int,
        threads: int,
        ahead: int,
        timeout_s: float,
    ) -> None:
        self._timeout_s, self._turn = timeout_s, 0
        self._workers: list[_Worker] = []
        # Before multiprocessing's own end, which asks workers to end and waits without a bound.
        self._end = util.Finalize(self, _end_all, (self._workers,), exitpriority=20)
        context = multiprocessing.get_context("spawn")
        # Linux ties a child to the thread that started it, and a thread may end before its process.
        tied = threading.current_thread() is threading.main_thread()
        content = reduction.ForkingPickler.dumps(steps)
        with signals_blocked():
            for number in range(workers):
                ours, theirs = context.Pipe()
                part = slice(first + number, None, workers)
                process = context.Process(
                    target=_work,
                    args=(part, threads, ahead, theirs, tied),
                    name=f"data worker {number}",
                    daemon=True,
                )
                process.start()
                # Closed here, so that the end of the worker is the end of the connection.
                theirs.close()
                sender = threading.Thread(target=_send, args=(ours, content), daemon=True)
                sender.start()
                self._workers.append(_Worker(number, process, ours, sender, first + number))

    def __next__(self) -> Built:
        """The batch of the next step.

        Raises:
          InputError: the worker met one.
          RunStopped: a worker ended, or the batch did not come in time.
        """
        worker = self._workers[self._turn]
        deadline = time.monotonic() + self._timeout_s
        while not worker.ready:
            worker.ready = self._received(worker, deadline) is None
        message = self._received(worker, deadline)
        if isinstance(message, Exception):
            raise message
        layout, size, skipped = message
        self._wait(worker, deadline)
        try:
            file = reduction.recv_handle(worker.connection)
        except (EOFError, OSError):
            raise self._ended(worker) from None
        except RuntimeError:
            # The system sends none where this process may open no more.
            raise RunStopped(
                f"data.workers: the batch of step {worker.due + 1} could not be taken, since too "
                "many files are open; raise `ulimit -n`, then start again."
            ) from None
        memory = _mapped(file, size)
        # The batch is whole, though its worker has ended: whoever wants the next one is told.
        with contextlib.suppress(OSError):
            worker.connection.send_bytes(b"taken")
        worker.due += len(self._workers)
        self._turn = (self._turn + 1) % len(self._workers)
        return Built(_arrays(memory, layout), skipped)

    def close(self) -> None:
        """Ends all workers, whatever they are doing; may be called twice."""
        self._end()

    def _received(self, worker: _Worker, deadline: float) -> Any:
        self._wait(worker, deadline)
        try:
            return worker.connection.recv()
        except (EOFError, OSError):
            raise self._ended(worker) from None

    def _wait(self, worker: _Worker, deadline: float) -> None:
        """Waits for something from a worker, while all of them are alive."""
        sentinels = {other.process.sentinel: other for other in self._workers}
        while True:
            left_s = max(deadline - time.monotonic(), 0.0)
            # The system counts milliseconds in 32 bits.
            arrived = wait([worker.connection, *sentinels], min(left_s, _LONGEST_WAIT_S))
            if arrived or left_s <= _LONGEST_WAIT_S:
                break
        for sentinel, other in sentinels.items():
            # What this one had sent before it ended is still there, an error perhaps.
            if sentinel in arrived and not (other is worker and worker.connection.poll()):
                raise self._ended(other)
        if not arrived:
            doing = "builds it" if worker.ready else "starts"
            raise RunStopped(
                f"data.worker_timeout_s: no batch for step {worker.due + 1} within "
                f"{self._timeout_s:g} s, while worker {worker.number} of {len(self._workers)} "
                f"{doing}; see whether the disk of the data answers, or raise it, then start again."
            )

    def _ended(self, worker: _Worker) -> RunStopped:
        worker.process.join(_END_S)
        code = worker.process.exitcode
        who = (
            f"data.workers: worker {worker.number} of {len(self._workers)}, which built the batch "
            f"of step {worker.due + 1},"
        )
        if code == -signal.SIGKILL:
            return RunStopped(
                f"{who} was killed by SIGKILL, most likely because memory ran out; lower "
                "data.workers, data.prefetch or the size of a batch, or give more memory, then "
                "start again."
            )
        how = f"status {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return RunStopped(
            f"{who} ended with {how}; what it printed above says why: mend that, then start again."
        )


def _end_all(workers: list[_Worker]) -> None:
    """Kills all workers and waits for them, `_END_S` in all."""
    for worker in workers:
        worker.process.kill()
    deadline = time.monotonic() + _END_S
    for worker in workers:
        worker.process.join(max(deadline - time.monotonic(), 0.0))
        # It has nobody left to send to.
        worker.sender.join(max(deadline - time.monotonic(), 0.0))
        if not worker.sender.is_alive():
            worker.connection.close()
        if worker.process.is_alive():
            _leave_behind(worker)
    workers.clear()


def _leave_behind(worker: _Worker) -> None:
    # At its end Python waits for all that are left in here, without a bound.
    getattr(multiprocessing.process, "_children", set()).discard(worker.process)
    print(
        f"data.workers: worker {worker.number} (process {worker.process.pid}) goes on {_END_S:g} s "
        "after SIGKILL, so it hangs in the system; it is left behind: see whether the disk of the "
        "data answers.",
        file=sys.stderr,
    )


def _send(connection: Connection, content: Any) -> None:
    # A worker that has ended is noticed by who waits for its batch.
    with contextlib.suppress(OSError):
        connection.send_bytes(content)


def _work(part: slice, threads: int, ahead: int, connection: Connection, tied: bool) -> None:
    """A worker's life: it is killed at the end, and holds nothing that would need another."""
    end_with_parent(tied)
    try:
        content = connection.recv_bytes()
    except (EOFError, OSError):
        return
    steps: grain.MapDataset[Built] = pickle.loads(content)
    batches = iter(
        steps[part].to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
    )
    try:
        connection.send(None)
        for sent in itertools.count():
            if sent >= ahead:
                connection.recv_bytes()
            try:
                told, file = _shared(next(batches))
            except Exception as error:
                connection.send(_as_sent(error))
                threading.Event().wait()
            else:
                connection.send(told)
                reduction.send_handle(connection, file, os.getppid())
                os.close(file)
    except (EOFError, OSError):
        # Nobody is there any more.
        return


def _shared(built: Built) -> tuple[tuple[list[Any], int, tuple[str, ...]], int]:
    """What is told of a batch (where its arrays lie), and the file that they lie in."""
    layout, size = [], 0
    for name, array in built.batch.items():
        layout.append((name, array.dtype.str, array.shape, size))
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    file = _anonymous_file()
    os.ftruncate(file, max(size, 1))
    for (_, _, _, start), array in zip(layout, built.batch.values(), strict=True):
        _write(file, start, array)
    return (layout, size, built.skipped), file


def _anonymous_file() -> int:
    """A file in memory, or, where there is no such thing, on disk, that has no name."""
    if sys.platform == "linux":
        return os.memfd_create("batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(file: int, start: int, array: np.ndarray) -> None:
    left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    # One call writes 2 GiB at most.
    while left:
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written


def _mapped(file: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, max(size, 1))
    finally:
        os.close(file)


def _arrays(memory: mmap.mmap, layout: list[Any]) -> dict[str, np.ndarray]:
    """Arrays that lie in a batch's memory, which goes when the last of them does."""
    return {
        name: np.frombuffer(memory, dtype, math.prod(shape), start).reshape(shape)
        for name, dtype, shape, start in layout
    }


def _as_sent(error: Exception) -> Exception:
    """An error as it can be told in another process: that of a user's input in its one line."""
    if isinstance(error, InputError):
        return InputError(str(error))
    told = "".join(traceback.format_exception(error))
    try:
        sent = pickle.loads(pickle.dumps(error))
    except Exception:
        sent = RuntimeError(repr(error))
    sent.add_note(f"In a data worker:\n{told}")
    return sent
