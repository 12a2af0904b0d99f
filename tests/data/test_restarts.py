"""The data's iterator leaks nothing; `tests/soak/restarts.py` does the same a thousand times."""

import os
from pathlib import Path

import pytest
from soak import gauges
from soak.restarts import RECIPE, restarts

from spatial_clap_jax.data.builders import render_scenes

pytestmark = [
    pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning"),
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's /proc"),
]


@pytest.mark.slow
def test_restarts_hold_on_to_nothing(tmp_path):
    render_scenes(RECIPE, "synthetic", tmp_path / "scenes", workers=1, progress=False)
    samples = restarts(tmp_path / "scenes", 60, workers_every=0)
    assert len(samples[20:]) >= gauges.FEWEST
    assert not gauges.growing(samples[20:])


def test_a_leak_is_seen():
    opened = []
    try:
        samples = []
        for number in range(10):
            opened.append(os.open(os.devnull, os.O_RDONLY))
            samples.append(gauges.sample(number))
    finally:
        for file in opened:
            os.close(file)
    assert "files, more than 1.5" in gauges.growing(samples)["files"]
    # The process may open or close some of its own meanwhile.
    assert gauges.slope(samples, "files") == pytest.approx(1.0, abs=0.3)
    assert os.getpid() in gauges.tree_of(os.getppid())
    # What is held while something is saved is given back.
    saving = [
        gauges.Sample(at, 950.0 if at > 50 and at % 5 else 850.0, 5, 5, 1) for at in range(100)
    ]
    assert not gauges.growing(saving)
    held = [gauges.Sample(at, 100.0 + 9 * at, 5, 5, 1) for at in range(10)]
    assert gauges.growing(held) == {"memory_mb": "rises by 81.0 MB, more than 4.0"}
