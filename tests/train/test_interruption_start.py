"""Signals at any moment of the start of `spatial-clap train`: one line, status 75, soon."""

import random
import signal
import time
from pathlib import Path

import pytest
from soak import kill_anywhere
from soak.kill_anywhere import EXIT_STATUS, Started, start

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads Linux's /proc"
)


def leaves_well(started: Started, number: signal.Signals, delay_s: float) -> float:
    """Sends a signal so long after a process has begun to listen; the seconds that it took."""
    assert started.wait_for(started.is_listening, 60)
    time.sleep(delay_s)
    began = time.monotonic()
    started.process.send_signal(number)
    status = started.process.wait(60)
    took_s = time.monotonic() - began
    assert started.ended.wait(60)
    said = f"{number.name} after {delay_s:.2f} s: {status}, {started.lines}"
    assert status == EXIT_STATUS, said
    ours = [line for line in started.lines if line.startswith(f"spatial-clap: {number.name}: ")]
    assert ours == started.lines[-1:], said
    assert not any("Traceback" in line or "ignored" in line for line in started.lines), said
    return took_s


def test_a_signal_amid_imports(tmp_path):
    # The last import, of a user's own, lasts.
    config = tmp_path / "config.py"
    config.write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    draw = random.Random(0)
    for i, limit_s in enumerate((0.0, 0.3, 0.8, 1.6)):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        delay_s = draw.uniform(limit_s / 2, limit_s)
        took_s = leaves_well(start(config, tmp_path, tmp_path / "run"), number, delay_s)
        assert took_s < 30


@pytest.mark.slow
def test_a_signal_anywhere_in_the_start(tiny_scenes, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        kill_anywhere.CONFIG.format(tests=str(kill_anywhere.TESTS), steps=100_000), "utf-8"
    )
    # How long a start takes here; it fills the cache of compiled programs, too.
    started = start(config, tiny_scenes, tmp_path / "first")
    assert started.wait_for(started.is_listening, 60)
    began = time.monotonic()
    assert started.wait_for(lambda: started.has_said("step compiled"), 300)
    whole_s = time.monotonic() - began
    started.process.kill()
    started.process.wait()
    draw = random.Random(1)
    for i in range(8):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        delay_s = draw.uniform(i / 8, (i + 1) / 8) * whole_s
        started = start(config, tiny_scenes, tmp_path / f"run{i}", cached=i % 4 != 3)
        assert leaves_well(started, number, delay_s) < 30
