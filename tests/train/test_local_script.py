"""The script that starts processes on one machine: signals reach each once, and all end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "local.sh"
# Notes each signal, and leaves a moment after the first.
SAVES = """
trap 'echo TERM >> "$NOTES/$JAX_PROCESS_ID"; asked=1' TERM
trap 'echo INT >> "$NOTES/$JAX_PROCESS_ID"; asked=1' INT
asked=
echo ready >&2
while [ -z "$asked" ]; do sleep 0.05; done
sleep 0.5
echo "is saved" >&2
exit 75
"""


def begun(folder: Path, processes: int, does: str, *before: str) -> subprocess.Popen:
    """The script, with a stand-in for Python that does something in each process."""
    fake = folder / "python"
    fake.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n{does}', "utf-8"
    )
    fake.chmod(0o755)
    # Tests that a shell has started in the background ignore it, and so would what they start.
    at_first = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*before, SCRIPT, str(processes), "train"],
            # On a machine with one GPU, two processes need to be told to leave it alone.
            env={"JAX_PLATFORMS": "cpu", **os.environ, "PYTHON": str(fake), "NOTES": str(folder)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, at_first)


def with_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """A machine whose nvidia-smi does something, and whose user has said nothing of GPUs."""
    cards = folder / "nvidia-smi"
    cards.write_text(f"#!/bin/sh\n{does}\n", "utf-8")
    cards.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ["0", "1"]),
        ("2,3", ["2", "3"]),
        ("3,1,0", ["3", "1"]),
        ("GPU-8a,MIG-5c", ["GPU-8a", "MIG-5c"]),
        # None: as the caller has it.
        ("", ["", ""]),
        ("-1", ["-1", "-1"]),
        ("NoDevFiles", ["NoDevFiles", "NoDevFiles"]),
    ],
)
def test_each_process_takes_a_gpu_of_those_that_are_visible(tmp_path, monkeypatch, visible, seen):
    with_driver(tmp_path, monkeypatch, "for card in 0 1 2 3; do echo GPU $card; done")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    started = begun(tmp_path, 2, 'printf %s "$CUDA_VISIBLE_DEVICES" > "$NOTES/$JAX_PROCESS_ID"\n')
    _, err = started.communicate(timeout=30)
    assert started.returncode == 0, err
    assert [(tmp_path / name).read_text() for name in "01"] == seen


@pytest.mark.parametrize("platforms", ["", "cuda", "cpu", "cpu,cuda"])
def test_too_few_gpus_for_one_each_are_refused(tmp_path, monkeypatch, platforms):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    started = begun(tmp_path, 2, 'printf %s "$CUDA_VISIBLE_DEVICES" > "$NOTES/$JAX_PROCESS_ID"\n')
    _, err = started.communicate(timeout=30)
    if platforms.startswith("cpu"):
        assert [(tmp_path / name).read_text() for name in "01"] == ["5", "5"]
        return
    assert started.returncode == 2
    assert "2 processes, but 1 GPUs (5): one each is needed; start fewer" in err
    assert not (tmp_path / "0").exists()


def test_a_driver_that_fails_is_no_gpu(tmp_path, monkeypatch):
    with_driver(tmp_path, monkeypatch, "echo NVIDIA-SMI has failed; exit 9")
    started = begun(tmp_path, 2, "exit 0\n")
    _, err = started.communicate(timeout=30)
    assert started.returncode == 0, err


def wait_for_ready(started: subprocess.Popen, processes: int) -> None:
    assert started.stderr is not None
    for _ in range(processes):
        assert "ready" in started.stderr.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_reaches_each_process_once(tmp_path, number):
    started = begun(tmp_path, 2, SAVES)
    wait_for_ready(started, 2)
    os.killpg(started.pid, number)
    _, err = started.communicate(timeout=30)
    assert started.returncode == 75
    assert sorted(err.splitlines()) == ["[0] is saved", "[1] is saved"]
    assert [(tmp_path / name).read_text() for name in "01"] == ["TERM\n"] * 2


def test_timeout_may_end_it(tmp_path):
    """It sends its signal to the script and to the group."""
    started = begun(tmp_path, 2, SAVES, "timeout", "--preserve-status", "3")
    _, err = started.communicate(timeout=30)
    assert started.returncode == 75, err
    assert err.count("is saved") == 2
    assert [(tmp_path / name).read_text() for name in "01"] == ["TERM\n"] * 2


def test_two_signals_are_two(tmp_path):
    does = "trap 'n=$((n + 1)); echo heard >&2' TERM\nn=0\necho ready >&2\n"
    does += 'while [ "$n" -lt 2 ]; do sleep 0.05; done\nexit 143\n'
    started = begun(tmp_path, 2, does)
    wait_for_ready(started, 2)
    for _ in range(2):
        os.kill(started.pid, signal.SIGTERM)
        time.sleep(0.5)
    _, err = started.communicate(timeout=30)
    assert started.returncode == 143
    assert err.count("heard") == 4


def test_a_signal_amid_the_end_of_a_process_hides_no_status(tmp_path):
    ends = "trap '' TERM; sleep 0.5; kill -TERM $PPID; exit 7"
    does = f'if [ "$JAX_PROCESS_ID" = 1 ]; then {ends}; fi\n'
    for _ in range(4):
        started = begun(tmp_path, 2, does + SAVES)
        _, err = started.communicate(timeout=30)
        assert started.returncode == 7, err
        assert "[0] is saved" in err


def test_processes_end_with_a_script_that_is_killed(tmp_path):
    if subprocess.run(["setpriv", "--pdeathsig", "TERM", "true"], check=False).returncode:
        pytest.skip("the system cannot see to it")
    started = begun(tmp_path, 2, SAVES)
    wait_for_ready(started, 2)
    started.kill()
    _, err = started.communicate(timeout=30)
    assert sorted(err.splitlines()) == ["[0] is saved", "[1] is saved"]


@pytest.mark.slow
def test_one_that_does_not_hear_does_not_outlive_one_that_failed(tmp_path):
    does = 'if [ "$JAX_PROCESS_ID" = 1 ]; then exit 7; fi\n'
    does += f"exec {sys.executable} -c 'import signal, time\n"
    does += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)'\n"
    started = begun(tmp_path, 2, does)
    started.communicate(timeout=60)
    assert started.returncode == 7
