"""A short run of `tests/soak/kill_anywhere.py`, and that it would tell a difference."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from soak import kill_anywhere

pytestmark = pytest.mark.slow

# First a process as any, then, when asked to, a worker.
STARTS_TWO = """
import multiprocessing, subprocess, time
if __name__ == "__main__":
    other = subprocess.Popen(["sleep", "60"])
    print("another process", flush=True)
    input()
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(1,))
    worker.start()
    worker.join()
    other.kill()
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(
        kill_anywhere.CONFIG.format(tests=str(kill_anywhere.TESTS), steps=60), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def straight(config, tiny_scenes, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    kill_anywhere.run_to_the_end(config, tiny_scenes, workdir)
    return workdir


@pytest.mark.parametrize(
    ("number", "phases"),
    [
        (signal.SIGKILL, tuple(kill_anywhere.PHASES)),
        (signal.SIGTERM, ("compilation", "step", "evaluation")),
    ],
)
def test_a_killed_run_ends_like_one_that_was_left_alone(
    config, straight, tiny_scenes, tmp_path, number, phases
):
    workdir = tmp_path / "killed"
    done, _, longest_s = kill_anywhere.run_with_kills(
        config, tiny_scenes, workdir, len(phases), number, seed=0, phases=phases
    )
    assert done == dict.fromkeys(phases, 1)
    assert longest_s < 30
    assert kill_anywhere.first_difference(straight, workdir) is None
    starts = [json.loads(line) for line in (workdir / "starts.jsonl").read_text().splitlines()]
    assert starts[-1]["from_step"] > 0


def test_workers_are_told_from_other_processes(tmp_path):
    with subprocess.Popen([sys.executable, "-c", STARTS_TWO], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        started = kill_anywhere.Started(process, tmp_path)
        assert process.stdout.readline() == b"another process\n"
        assert not started.has_workers()
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert started.wait_for(started.has_workers, 30)


SAYS = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
for line in sys.argv[1:]:
    print(line, file=sys.stderr, flush=True)
time.sleep(60)
"""


def says(workdir: Path, *lines: str) -> kill_anywhere.Started:
    """A process with a child, that says something and then nothing more."""
    process = subprocess.Popen([sys.executable, "-c", SAYS, *lines], stderr=PIPE, text=True)
    started = kill_anywhere.Started(process, workdir)
    started.listen()
    assert started.wait_for(lambda: len(started.lines) == len(lines), 30)
    return started


def end(family: dict[int, str]) -> None:
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("phase", "lines", "in_time"),
    [
        ("evaluation", ["step 6: evaluating"], True),
        ("evaluation", ["step 6: evaluating", "step 6: validation in 1 s: r1 0.5"], False),
        ("compilation", ["from step 0", "Finished jaxpr to MLIR module conversion"], True),
        ("compilation", ["Finished jaxpr to MLIR module conversion", "from step 0"], False),
        ("compilation", ["from step 0", "to MLIR module conversion", "step compiled"], False),
        ("start", [], True),
        ("start", ["from step 0"], False),
        ("save", [], False),
    ],
)
def test_a_kill_that_comes_when_its_phase_is_over_does_not_count(tmp_path, phase, lines, in_time):
    started = says(tmp_path, *lines)
    family = kill_anywhere.family_of(started.process.pid)
    status = -signal.SIGKILL
    try:
        killed = kill_anywhere.kill(started, kill_anywhere.PHASES[phase], signal.SIGKILL)
        assert killed == (status, in_time)
    finally:
        end(family)


def test_saves_that_were_killed_before_are_no_saves(tmp_path):
    left = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    started = says(tmp_path)
    family = kill_anywhere.family_of(started.process.pid)
    try:
        started.left = kill_anywhere.saves_under_way(tmp_path)
        assert not started.is_saving()
        # Orbax takes the same name again.
        left.rmdir()
        assert not started.is_saving()
        left.mkdir()
        assert started.is_saving()
    finally:
        end(family)


def test_what_hangs_or_lives_on_is_told(tmp_path):
    started = says(tmp_path, "step 3/30")
    family = kill_anywhere.family_of(started.process.pid)
    try:
        with pytest.raises(RuntimeError, match="hangs, and said nothing for 1 s after: step 3/30"):
            started.exit_status(silent_s=1.0)
        with pytest.raises(RuntimeError, match=r"processes \[\d+\] outlive it by 1 s"):
            kill_anywhere.check_none_lives(family, within_s=1.0)
    finally:
        end(family)
    kill_anywhere.check_none_lives(family)


def test_differences_are_told(straight, tmp_path):
    def copied(name: str) -> Path:
        return Path(shutil.copytree(straight, tmp_path / name))

    run, text = copied("twice"), (straight / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text + text.splitlines(True)[-1])
    assert "stands twice" in (kill_anywhere.first_difference(straight, run) or "")
    run = copied("torn")
    (run / "metrics.jsonl").write_text(text[:-9])
    assert "torn line" in (kill_anywhere.first_difference(straight, run) or "")
    run = copied("other")
    (run / "metrics.jsonl").write_text(text.replace('"step": 2,', '"step": 2, "loss_b": 1,', 1))
    assert "metrics of step 2: loss_b" in (kill_anywhere.first_difference(straight, run) or "")
    run = copied("calm")
    (run / "incidents.jsonl").unlink()
    assert "lines of incidents, 0" in (kill_anywhere.first_difference(straight, run) or "")
    run = copied("behind")
    shutil.rmtree(run / "checkpoints" / "60")
    assert "last checkpoint of step 60" in (kill_anywhere.first_difference(straight, run) or "")
