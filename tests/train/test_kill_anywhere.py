"""A short run of `tests/soak/kill_anywhere.py`, and that it would tell a difference."""

import json
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
        kill_anywhere.CONFIG.format(tests=str(kill_anywhere.TESTS), steps=30), encoding="utf-8"
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
        (signal.SIGKILL, kill_anywhere.PHASES),
        (signal.SIGTERM, ("compilation", "step", "evaluation")),
    ],
)
def test_a_killed_run_ends_like_one_that_was_left_alone(
    config, straight, tiny_scenes, tmp_path, number, phases
):
    workdir = tmp_path / "killed"
    done, longest_s = kill_anywhere.run_with_kills(
        config, tiny_scenes, workdir, len(phases), number, seed=0, phases=phases
    )
    assert done.total() == len(phases)
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
    shutil.rmtree(run / "checkpoints" / "30")
    assert "last checkpoint of step 30" in (kill_anywhere.first_difference(straight, run) or "")
