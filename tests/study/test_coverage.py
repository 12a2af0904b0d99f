"""How often the intervals of few trainings hold what all trainings and scenes would give."""

import numpy as np
import pytest

from spatial_clap_jax.metrics.resampling import bootstrap

TRIALS, SCENES = 300, 200


@pytest.mark.parametrize(
    ("runs", "spread", "told"),
    [(2, 1.0, 0.94), (2, 4.0, 0.73), (3, 1.0, 0.96), (3, 4.0, 0.84)],
)
def test_coverage_is_what_the_bootstrap_tells_of_itself(runs, spread, told):
    rng = np.random.default_rng(runs)
    of_scenes = 0.5 / np.sqrt(SCENES)
    held = 0
    for _ in range(TRIALS):
        scene = rng.beta(2, 2, SCENES)
        of_run = rng.normal(0, spread * of_scenes, (runs, 1))
        hits = rng.random((runs, SCENES)) < np.clip(scene + of_run, 0, 1)
        found = bootstrap(hits, np.arange(SCENES), draws=1000)
        held += found.low <= 0.5 <= found.high
    # Three standard errors of so many trials.
    assert held / TRIALS == pytest.approx(told, abs=3 * np.sqrt(told * (1 - told) / TRIALS))


def test_what_was_drawn_for_other_scores_is_drawn_no_second_time(monkeypatch):
    hits = np.random.default_rng(0).random((3, 70)) < 0.6
    once = bootstrap(hits, np.arange(70), seed=11)

    def never(*_):
        raise AssertionError("was drawn")

    monkeypatch.setattr(np.random, "default_rng", never)
    assert bootstrap(hits, np.arange(70), seed=11) == once
    with pytest.raises(AssertionError, match="was drawn"):
        bootstrap(hits, np.arange(70), seed=12)
