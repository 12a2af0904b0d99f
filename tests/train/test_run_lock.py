"""One start at a time in a run's folder, and no longer than its process lives."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import run_lock
from spatial_clap_jax.train.run_lock import held

PROGRAM = """
import subprocess, sys
from spatial_clap_jax.train.run_lock import held
with held(sys.argv[1], print):
    # As data workers do, it outlives a killed parent for a while.
    child = subprocess.Popen(["sleep", "30"], stdout=subprocess.DEVNULL, close_fds=False)
    print(child.pid, flush=True)
    child.wait()
"""


def no_notes(text: str) -> None:
    pytest.fail(text)


@pytest.mark.slow
def test_a_second_start_is_refused_by_name_until_the_first_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_PATIENCE_S", 0.1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    first = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "run"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert first.stdout is not None
    child = int(first.stdout.readline())
    refused = rf"run: a training is at work here \(process {first.pid} on .*, since 20.*\); wait"
    with pytest.raises(InputError, match=refused), held(tmp_path / "run", no_notes):
        pytest.fail("began")
    first.kill()
    first.wait()
    try:
        os.kill(child, 0)
        with held(tmp_path / "run", no_notes):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_it_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_PATIENCE_S", 0.1)
    for _ in range(2):
        with held(tmp_path, no_notes), pytest.raises(InputError), held(tmp_path, no_notes):
            pytest.fail("began")
    before = len(os.listdir("/proc/self/fd"))

    def refuse() -> None:
        raise InputError("run: has changed; start again.")

    with pytest.raises(InputError, match="has changed"), held(tmp_path, no_notes, refuse):
        pytest.fail("began")
    assert len(os.listdir("/proc/self/fd")) == before
    with held(tmp_path, no_notes):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, code):
    def none(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    told: list[str] = []
    with held(tmp_path, told.append):
        pass
    assert len(told) == 1
    assert "its file system knows no locks" in told[0]


def test_what_other_files_hold_is_left(tmp_path):
    (tmp_path / "letter").write_text("dear")
    (tmp_path / "run.lock").symlink_to("letter")
    with pytest.raises(OSError, match="symbolic links"), held(tmp_path, no_notes):
        pytest.fail("began")
    assert Path(tmp_path / "letter").read_text() == "dear"


def test_a_process_that_is_not_the_first_learns_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "is_first_process", lambda: False)
    monkeypatch.setattr(run_lock, "as_first", lambda wish: False)
    with pytest.raises(InputError, match="process 0 cannot begin here"), held(tmp_path, no_notes):
        pytest.fail("began")
