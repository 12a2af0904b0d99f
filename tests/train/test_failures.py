"""Several processes of which one is signalled, fails, is late or is killed: all end well, soon."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from soak.kill_anywhere import CONFIG, TESTS, Started, first_difference

from spatial_clap_jax.train.metrics_log import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc"),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def begun(
    folder: Path,
    data: list[Path],
    steps: int = 100_000,
    code: str = "",
    count: int | None = None,
    first: int = 0,
) -> list[Started]:
    """A training of several processes, each with data of its own, and no launcher.

    Args:
      folder: for the config and the run.
      data: of each process.
      steps: of the run.
      code: that the config begins with.
      count: processes that are said to be there; those that have data where None.
      first: number of the first one that has data.
    """
    config = folder / "config.py"
    config.write_text(code + CONFIG.format(tests=str(TESTS), steps=steps), encoding="utf-8")
    port, processes = free_port(), []
    for number, place in enumerate(data, first):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "spatial_clap_jax", "train", str(config)),
                *("--data", str(place), "--workdir", str(folder / "run")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_backend_optimization_level=0",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count or len(data)),
                "JAX_PROCESS_ID": str(number),
            },
        )
        processes.append(Started(process, folder / "run"))
        processes[-1].listen()
    return processes


def ended(processes: list[Started], within_s: float) -> list[int]:
    """Exit statuses of processes that must end soon."""
    until = time.monotonic() + within_s
    try:
        statuses = [
            started.process.wait(max(until - time.monotonic(), 0.1)) for started in processes
        ]
    finally:
        for started in processes:
            started.process.kill()
            started.process.wait()
    for started in processes:
        assert started.ended.wait(30)
        assert not any("Traceback" in line for line in started.lines), started.lines
    return statuses


def told(started: Started) -> list[str]:
    return [line for line in started.lines if line.startswith("spatial-clap: ")]


@pytest.mark.parametrize(("which", "at"), [(1, "first"), (0, "late"), (1, "late")])
def test_a_signal_to_one_that_starts_ends_all(tiny_scenes, tmp_path, which, at):
    """Amid imports; and where it waits for the other one, which opens its data for long."""
    code = "import os, pathlib, time\n"
    code += f"pathlib.Path({str(tmp_path)!r}, os.environ['JAX_PROCESS_ID']).touch()\n"
    code += f"if os.environ['JAX_PROCESS_ID'] == '{1 - which}': time.sleep(600)\n"
    processes = begun(tmp_path, [tiny_scenes] * 2, code=code)
    signalled = processes[which]
    if at == "late":
        assert signalled.wait_for(lambda: (tmp_path / "0").exists(), 300)
        assert signalled.wait_for(lambda: (tmp_path / "1").exists(), 60)
        time.sleep(3)
    assert signalled.wait_for(signalled.is_listening, 60)
    signalled.process.send_signal(signal.SIGTERM)
    # Both must have come as far as to hear of each other.
    within_s = 120 if at == "late" else 300
    assert ended(processes, within_s) == [75, 75], [started.lines for started in processes]
    line = "SIGTERM: nothing is left to save; the same command goes on"
    assert told(signalled) == [f"spatial-clap: {line}"]
    assert told(processes[1 - which]) == [f"spatial-clap: process {which} ended: {line}"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_amid_an_evaluation_saves_the_same_step_in_all(
    tiny_scenes, tmp_path, which
):
    """Process 0 evaluates, the other one waits for it; the evaluation is given up."""
    code = "import time\nfrom spatial_clap_jax.validation import Validation\n"
    code += "Validation.__call__ = lambda *_: time.sleep(600)\n"
    processes = begun(tmp_path, [tiny_scenes] * 2, code=code)
    assert processes[0].wait_for(lambda: processes[0].has_said("step 6: evaluating"), 600)
    # Not before the other one waits.
    time.sleep(2)
    processes[which].process.send_signal(signal.SIGTERM)
    assert ended(processes, 120) == [75, 75], [started.lines for started in processes]
    for started in processes:
        assert "is saved at step 6 of 100000; the same command goes on" in told(started)[-1]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("signals", "status"), [(1, 75), (2, 128 + signal.SIGTERM)])
def test_a_signal_ends_a_wait_for_others_that_never_come(
    tiny_scenes, tmp_path, number, signals, status
):
    alone = begun(tmp_path, [tiny_scenes], count=2, first=number)[0]
    assert alone.wait_for(alone.is_listening, 60)
    # Long enough for it to wait for the other one, or to be amid imports: both must end.
    time.sleep(8)
    for _ in range(signals):
        assert alone.process.poll() is None
        alone.process.send_signal(signal.SIGTERM)
        # Amid imports a signal may be heard late, and what follows soon is an echo of it.
        time.sleep(3)
    assert ended([alone], 60 if status == 75 else 10) == [status]
    if status == 75:
        assert told(alone)[0].startswith("spatial-clap: SIGTERM: nothing is left to save")


@pytest.mark.parametrize("number", [0, 1])
def test_others_that_never_come_are_told_in_a_line(tiny_scenes, tmp_path, monkeypatch, number):
    monkeypatch.setenv("SPATIAL_CLAP_JOIN_TIMEOUT_S", "3")
    alone = begun(tmp_path, [tiny_scenes], count=2, first=number)[0]
    assert ended([alone], 120) == [4]
    assert told(alone)[0].startswith(
        "spatial-clap: processes: not all of them came within 3 s; see whether each was started"
    )


@pytest.mark.parametrize("bad", [0, 1])
def test_what_one_process_lacks_is_told_by_all(tiny_scenes, tmp_path, bad):
    data = [tiny_scenes, tiny_scenes]
    data[bad] = tmp_path / "nowhere"
    processes = begun(tmp_path, data)
    assert ended(processes, 300) == [2, 2], [started.lines for started in processes]
    reason = f"{tmp_path}/nowhere: is no folder with a manifest.json; give the folder"
    assert [len(told(started)) for started in processes] == [1, 1]
    assert told(processes[bad])[0].startswith(f"spatial-clap: {reason}")
    assert told(processes[1 - bad])[0].startswith(f"spatial-clap: process {bad} ended: {reason}")


def test_data_that_open_long_after_the_others_end_nothing(tiny_scenes, tmp_path):
    """Gloo alone would give up after 30 s."""
    late = "import os, time\nif os.environ['JAX_PROCESS_ID'] == '1': time.sleep(35)\n"
    processes = begun(tmp_path, [tiny_scenes] * 2, steps=1, code=late)
    assert ended(processes, 600) == [0, 0], [started.lines for started in processes]
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "loss" in row] == [1]


def test_a_process_that_is_killed_is_told_by_the_other(tiny_scenes, tmp_path):
    processes = begun(tmp_path, [tiny_scenes] * 2)
    assert processes[0].wait_for(lambda: processes[0].has_said("step 2/"), 600)
    processes[1].process.kill()
    assert ended(processes, 300) == [4, -signal.SIGKILL], processes[0].lines
    assert re.search("processes: another one does not answer any more", told(processes[0])[0])


@pytest.mark.parametrize(
    ("which", "number", "within_s"),
    # Process 0 holds the service that the others hear each other by. A process that is stopped is
    # as one whose machine is lost: it closes no connection.
    [(0, signal.SIGKILL, 120), (0, signal.SIGSTOP, 240), (1, signal.SIGSTOP, 240)],
)
def test_the_other_ends_where_one_is_gone(tiny_scenes, tmp_path, which, number, within_s):
    processes = begun(tmp_path, [tiny_scenes] * 2)
    assert processes[0].wait_for(lambda: processes[0].has_said("step 2/"), 600)
    processes[which].process.send_signal(number)
    try:
        status = processes[1 - which].process.wait(within_s)
    finally:
        for started in processes:
            started.process.kill()
            started.process.wait()
    # JAX's own end, unless an error of Gloo's is heard of before.
    assert status in (-signal.SIGABRT, 4)
    assert processes[1 - which].ended.wait(30)
    said = "\n".join(processes[1 - which].lines)
    assert re.search("JAX distributed service detected|does not answer any more", said)


def test_a_data_worker_of_one_that_is_killed_ends_all(tiny_scenes, tmp_path):
    processes = begun(tmp_path, [tiny_scenes] * 2)
    assert processes[0].wait_for(lambda: processes[0].has_said("step 2/"), 600)
    os.kill(processes[1].workers()[0], signal.SIGKILL)
    assert ended(processes, 180) == [3, 3], [started.lines for started in processes]
    reason = r"data.workers: worker 0 of 1, .* was killed by SIGKILL"
    assert re.match(f"spatial-clap: {reason}", told(processes[1])[0])
    assert re.match(f"spatial-clap: process 1 ended: {reason}", told(processes[0])[0])


def test_a_run_of_two_of_which_one_was_killed_ends_like_one_that_was_left_alone(
    tiny_scenes, tmp_path
):
    folders = [tmp_path / name for name in ("straight", "killed")]
    for folder in folders:
        folder.mkdir()
    processes = begun(folders[0], [tiny_scenes] * 2, steps=14)
    assert ended(processes, 900) == [0, 0], [started.lines for started in processes]
    processes = begun(folders[1], [tiny_scenes] * 2, steps=14)
    assert processes[0].wait_for(lambda: processes[0].has_said("step 9/"), 600)
    processes[1].process.kill()
    assert ended(processes, 300) == [4, -signal.SIGKILL], processes[0].lines
    processes = begun(folders[1], [tiny_scenes] * 2, steps=14)
    assert ended(processes, 900) == [0, 0], [started.lines for started in processes]
    assert processes[0].has_said("from step 4") or processes[0].has_said("from step 8")
    assert first_difference(*(folder / "run" for folder in folders)) is None
