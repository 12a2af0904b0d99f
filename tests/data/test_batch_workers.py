"""Worker processes: what they send arrives, no end of theirs goes unnoticed, none is left over."""

import collections
import contextlib
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grain
import numpy as np
import pytest

from spatial_clap_jax.data import batch_workers
from spatial_clap_jax.data.batch_workers import BatchWorkers, Built
from spatial_clap_jax.data.workers import WorkerPool
from spatial_clap_jax.errors import InputError, RunStopped

# Longer than any machine takes to start a process and to import what it needs.
LONG_S = 240.0


def build(step: int) -> Built:
    return Built({"step": np.array([step], np.int32)}, ())


def build_of(content: bytes, step: int) -> Built:
    return Built({"size": np.array([len(content), step])}, ())


def fail(step: int) -> Built:
    if step == 10:
        raise InputError("a.wav: no such file; check the path.")
    if step == 20:
        raise KeyError("nothing of a user's")
    if step == 30:
        # As a library may do.
        os._exit(0)
    return build(step)


def started(function, workers: int, first: int = 0) -> BatchWorkers:
    return BatchWorkers(
        grain.MapDataset.range(1000).map(function),
        first,
        workers=workers,
        threads=1,
        ahead=2,
        timeout_s=LONG_S,
    )


def is_running(pid: int) -> bool:
    """Whether a process is there, and more than the memory of one that ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(holds, seconds: float = LONG_S) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_arrays_of_all_kinds_arrive_as_they_were():
    batch = {
        "audio": np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, ::-1],
        "mask": np.array([[True, False], [False, True]]),
        "none": np.zeros((0, 5), np.int32),
        "bytes": np.arange(7, dtype=np.uint8),
        "number": np.float64(3.5) * np.ones(()),
    }
    (layout, size, skipped), file = batch_workers._shared(Built(batch, ("a", "b")))
    memory = batch_workers._mapped(file, size)
    assert skipped == ("a", "b")
    assert [name for name, *_ in layout] == list(batch)
    for name, array in batch_workers._arrays(memory, layout).items():
        np.testing.assert_array_equal(array, batch[name])
        assert (array.dtype, array.shape) == (batch[name].dtype, batch[name].shape)
        assert array.ctypes.data % 64 == 0
        array += array.dtype.type(1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_workers_live_through_signals_and_their_end_is_told():
    """One start of two processes for all of it: a start takes seconds."""
    batches = started(build, 2, first=5)
    try:
        assert [int(next(batches).batch["step"][0]) for _ in range(3)] == [5, 6, 7]
        processes = [worker.process for worker in batches._workers]
        pids = [process.pid or 0 for process in processes]
        for pid in pids:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(pid, number)
        # More than were built ahead.
        assert [int(next(batches).batch["step"][0]) for _ in range(20)] == [*range(8, 28)]
        # A worker that hangs. One that is stopped hears no signal but SIGKILL.
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        batches._timeout_s = 0.3
        with pytest.raises(
            RunStopped,
            match=r"data\.worker_timeout_s: no batch for step \d+ within 0\.3 s, while worker \d "
            r"of 2 builds it; see whether the disk of the data answers, or raise it",
        ):
            collections.deque(batches, 0)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(
            RunStopped,
            match=r"data\.workers: worker 1 of 2, which built the batch of step \d+, was killed by "
            r"SIGKILL, most likely because memory ran out; lower data\.workers, data\.prefetch or ",
        ):
            wait_until(lambda: next(batches) is None, seconds=30)
    finally:
        batches.close()
    batches.close()
    assert not any(process.is_alive() for process in processes)
    assert not multiprocessing.active_children()


def test_a_batch_of_a_worker_that_was_killed_is_taken_and_its_end_is_told():
    batches = started(build, 1)
    try:
        worker = batches._workers[0]
        assert int(next(batches).batch["step"][0]) == 0
        # It sends the next one and then hears nothing more, not even that this one was taken.
        assert worker.connection.poll(LONG_S)
        time.sleep(1.0)
        worker.process.kill()
        worker.process.join()
        assert int(next(batches).batch["step"][0]) == 1
        with pytest.raises(RunStopped, match=r"worker 0 of 1, .* was killed by SIGKILL"):
            collections.deque(batches, 0)
    finally:
        batches.close()


def test_a_process_that_may_open_no_more_is_told_so(monkeypatch):
    def none_sent(connection):
        raise RuntimeError("received 0 items of ancdata")

    batches = started(build, 1)
    try:
        monkeypatch.setattr(batch_workers.reduction, "recv_handle", none_sent)
        with pytest.raises(RunStopped, match=r"batch of step 1 could not .* raise `ulimit -n`"):
            next(batches)
    finally:
        batches.close()


def test_what_is_larger_than_a_pipe_arrives_however_long_the_wait_may_be(monkeypatch):
    # Several waits, of which none is longer than the system allows.
    monkeypatch.setattr(batch_workers, "_LONGEST_WAIT_S", 0.2)
    large = grain.MapDataset.range(1000).map(functools.partial(build_of, b"x" * 300_000))
    batches = BatchWorkers(large, 3, workers=1, threads=1, ahead=2, timeout_s=1e300)
    try:
        assert next(batches).batch["size"].tolist() == [300_000, 3]
    finally:
        batches.close()


def notes_of(caught) -> list[str]:
    return getattr(caught.value, "__notes__", [])


def test_errors_of_workers_arrive():
    # All three start at once.
    of_user, of_ours, ended = [started(fail, 1, first=step) for step in (10, 20, 30)]
    try:
        with pytest.raises(InputError) as caught:
            next(of_user)
        assert str(caught.value) == "a.wav: no such file; check the path."
        assert caught.value.__cause__ is None
        assert not notes_of(caught)
        with pytest.raises(KeyError, match="nothing of a user's") as others:
            next(of_ours)
        # Grain has a note of its own.
        assert any("In a data worker:" in note and "in fail" in note for note in notes_of(others))
        with pytest.raises(
            RunStopped, match=r"worker 0 of 1, .* of step 31, ended with status 0; "
        ):
            next(ended)
    finally:
        for batches in (of_user, of_ours, ended):
            batches.close()


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("time.sleep(600)", r"no batch for step 1 within 3 s, while worker 0 of 2 starts; see "),
        ("os._exit(7)", r"worker \d of 2, .* of step \d, ended with status 7; what it printed"),
    ],
)
def test_a_worker_that_never_takes_what_it_is_sent_is_told(tmp_path, monkeypatch, does, told):
    """What it is sent is larger than a pipe."""
    code = f"import os, sys, time\nif 'spawn_main' in str(sys.orig_argv): {does}\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), *sys.path])))
    monkeypatch.setattr(batch_workers, "_LONGEST_WAIT_S", 0.5)
    large = grain.MapDataset.range(1000).map(functools.partial(build_of, b"x" * 300_000))
    began = time.monotonic()
    batches = BatchWorkers(large, 0, workers=2, threads=1, ahead=2, timeout_s=3)
    try:
        with pytest.raises(RunStopped, match=told):
            next(batches)
    finally:
        batches.close()
    assert time.monotonic() - began < 30
    assert not multiprocessing.active_children()


class Unkillable:
    """A process that hangs in the kernel, as one of multiprocessing's."""

    name, pid, sentinel, daemon = "data worker", 4321, -1, True

    def __init__(self, ends: bool = False):
        self._popen, self.ends = self, ends
        multiprocessing.process._children.add(self)  # type: ignore[attr-defined]

    def poll(self):
        return 0 if self.ends else None

    def kill(self):
        pass

    def is_alive(self):
        return not self.ends

    def join(self, timeout=None):
        if not self.ends:
            time.sleep(1e9 if timeout is None else timeout)


def test_workers_that_nothing_ends_hold_no_run_up(monkeypatch, capsys):
    monkeypatch.setattr(batch_workers, "_END_S", 0.5)
    sent, workers = threading.Event(), []
    for number in range(8):
        ours, _ = multiprocessing.Pipe()
        # Of a worker that hangs nobody takes what is sent.
        sender = threading.Thread(target=sent.wait if number else str, daemon=True)
        sender.start()
        process = Unkillable(ends=number == 0)
        workers.append(batch_workers._Worker(number, process, ours, sender, number))  # type: ignore[arg-type]
    connections = [worker.connection for worker in workers]
    began = time.monotonic()
    batch_workers._end_all(workers)
    assert time.monotonic() - began < 3
    # At its end Python waits for those that are left in here.
    assert not multiprocessing.active_children()
    # What a thread still writes into is left open.
    assert [connection.closed for connection in connections] == [True] + 7 * [False]
    sent.set()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 7
    assert told[0] == (
        "data.workers: worker 1 (process 4321) goes on 0.5 s after SIGKILL, so it hangs in the "
        "system; it is left behind: see whether the disk of the data answers."
    )


_RUN = """
import json, multiprocessing, os, signal, sys, time
# What starts in the background of a shell is born deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules["jax"] = None  # Grain does without, and starts in a third of the time.
import grain, numpy as np
from spatial_clap_jax.data.batch_workers import BatchWorkers, Built
from spatial_clap_jax.data.workers import WorkerPool

def build(step):
    return Built({"audio": np.zeros((64, 1000), np.float32)}, ())

def call():
    time.sleep(0.1)
    return os.getpid()

def of_batches():
    steps = grain.MapDataset.range(2**40).map(build)
    yield from BatchWorkers(steps, 0, workers=2, threads=1, ahead=2, timeout_s=240)

def of_rendering():
    with WorkerPool(2, progress=False) as pool:
        yield from pool.run(iter(lambda: call, None), "calls", 1)

if __name__ == "__main__":
    results = (of_rendering if sys.argv[1] == "renders" else of_batches)()
    kept = [next(results) for _ in range(20)]
    print(json.dumps([p.pid for p in multiprocessing.active_children()]), flush=True)
    while sys.argv[1] != "ends":
        next(results)
"""


def named_memory(pids) -> set[Path]:
    """What lies under a name in shared memory and is in use by a process."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {Path(line.split()[5]) for line in lines if "/dev/shm/" in line}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at Linux's /proc")
@pytest.mark.parametrize(
    ("what", "number", "to_group"),
    [
        ("trains", signal.SIGKILL, False),
        ("trains", signal.SIGINT, True),
        ("ends", None, False),
        ("renders", signal.SIGKILL, False),
    ],
)
def test_nothing_is_left_of_a_process_however_it_ends(tmp_path, what, number, to_group):
    script = tmp_path / "run.py"
    script.write_text(_RUN)
    process = subprocess.Popen(
        [sys.executable, str(script), what],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            children = json.loads(process.stdout.readline())
            assert len(children) == 2
            named = set()
            if number is not None:
                named = named_memory([process.pid, *children])
                # Queues of rendering have semaphores, which a helper of Python's removes.
                assert what == "renders" or not named
                (os.killpg if to_group else os.kill)(process.pid, number)
            status = process.wait(LONG_S)
        finally:
            process.kill()
    assert status == -(number or 0)
    assert wait_until(lambda: not any(map(is_running, children)), seconds=30)
    assert wait_until(lambda: not any(path.exists() for path in named), seconds=30)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_that_renders_is_told():
    with (
        pytest.raises(
            RunStopped, match=r"--workers 2: one of them was killed, most likely because"
        ),
        WorkerPool(2, progress=False) as pool,
    ):
        list(pool.run([die, die, die], "calls", 3))
