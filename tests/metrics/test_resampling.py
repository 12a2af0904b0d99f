import inspect

import numpy as np
import pytest

from spatial_clap_jax.metrics.resampling import bootstrap, bootstrap_interval, share_by_run


def drawn_hits(seed, runs=1, queries=20, share=0.7):
    return np.random.default_rng(seed).random((runs, queries)) < share


def width(estimate):
    return estimate.high - estimate.low


def test_the_value_is_the_share_or_the_difference_of_two():
    hits, baseline = drawn_hits(0, runs=3), drawn_hits(1, runs=3, share=0.4)
    cluster = np.arange(20) // 2
    assert bootstrap(hits, cluster).value == pytest.approx(hits.mean())
    found = bootstrap(hits, cluster, baseline)
    assert found.value == pytest.approx(hits.mean() - baseline.mean())
    assert found.low < found.value < found.high


@pytest.mark.parametrize("queries", [50, 800])
def test_independent_queries_of_one_run_have_the_binomial_width(queries):
    hits = np.arange(queries)[None] < 0.7 * queries
    found = bootstrap(hits, np.arange(queries), draws=4000)
    assert found.low < 0.7 < found.high
    assert width(found) == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / queries), rel=0.1)


def test_repeated_queries_of_a_scene_tell_no_more_than_one():
    hits, cluster = drawn_hits(2, queries=60), np.arange(60)
    once = bootstrap(hits, cluster)
    many = np.repeat(hits, 9, axis=1)
    assert bootstrap(many, np.repeat(cluster, 9)) == pytest.approx(once)
    # As scenes of their own they would be nine times as much evidence.
    assert width(bootstrap(many, np.arange(540))) == pytest.approx(width(once) / 3, rel=0.15)


def test_names_and_order_of_scenes_change_no_bounds():
    hits, cluster = drawn_hits(3, runs=2, queries=40), np.repeat(np.arange(20), 2)
    order = np.random.default_rng(0).permutation(40)
    moved = bootstrap(hits[:, order], cluster[order] * 7 - 50)
    assert moved == pytest.approx(bootstrap(hits, cluster))


def test_large_and_small_scenes_are_shares_together():
    # Ones in every scene are a share of one, however many queries the drawn scenes have.
    cluster = np.repeat([0, 1, 2], [1, 5, 20])
    found = bootstrap(np.ones((2, 26), bool), cluster)
    assert found[:3] == pytest.approx((1.0, 1.0, 1.0))
    # One of two scenes holds all nine hits of ten queries: drawn alone, it is 1, the other 0.
    found = bootstrap(np.arange(10)[None] < 9, np.repeat([0, 1], [9, 1]))
    assert found[:3] == pytest.approx((0.9, 0.0, 1.0))


def test_runs_are_drawn_too():
    # No scene makes a difference, but of two runs one never hits: both may be drawn twice.
    hits = np.array([[True] * 30, [False] * 30])
    assert bootstrap(hits, np.arange(30))[:3] == pytest.approx((0.5, 0.0, 1.0))


def test_no_difference_is_zero_for_sure():
    hits = drawn_hits(4, runs=3)
    assert bootstrap(hits, np.arange(20), hits) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_has_a_small_p_and_flips_its_sign_with_the_sides():
    good, bad = drawn_hits(5, 3, 40, 0.95), drawn_hits(6, 3, 40, 0.3)
    found, swapped = (
        bootstrap(a, np.arange(40), b, draws=999) for a, b in ((good, bad), (bad, good))
    )
    assert 0.3 < found.low < found.value < found.high
    # No resampling crossed zero, but the data themselves count as one of a thousand.
    assert found.p == swapped.p == pytest.approx(0.002)
    assert swapped.value == pytest.approx(-found.value)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_pairs_cancel_what_both_sides_find_hard():
    # Half of the scenes are too hard for both; of the others the baseline misses two more.
    hits = np.arange(100)[None] < 50
    baseline = np.arange(100)[None] < 48
    paired = bootstrap(hits, np.arange(100), baseline)
    assert paired.value == pytest.approx(0.02)
    # The sides by themselves are five times as uncertain as what lies between them.
    assert width(paired) < width(bootstrap(hits, np.arange(100))) / 3
    # The same shares, but unlike in most scenes.
    opposed = bootstrap(hits, np.arange(100), baseline[:, ::-1])
    assert width(opposed) > 4 * width(paired)
    assert opposed.p > 0.5 > paired.p


def test_the_seed_alone_decides_on_the_draws():
    hits, cluster = drawn_hits(7, runs=3), np.arange(20)
    assert bootstrap(hits, cluster, seed=1) == bootstrap(hits, cluster, seed=1)
    assert any(
        bootstrap(hits, cluster, draws=50, seed=seed) != bootstrap(hits, cluster, draws=50)
        for seed in (1, 2, 3)
    )


@pytest.mark.parametrize(("runs", "spread"), [(1, 0.0), (10, 0.1)])
def test_coverage_is_about_95_percent(runs, spread):
    rng = np.random.default_rng(8)
    cluster, covered = np.repeat(np.arange(60), 3), []
    for trial in range(150):
        # A scene's queries share its difficulty, and a run is as good as it is in all of them.
        scene = np.repeat(rng.beta(2, 2, 60), 3)
        of_run = rng.uniform(-spread, spread, (runs, 1))
        hits = rng.random((runs, 180)) < np.clip(scene + of_run, 0, 1)
        found = bootstrap(hits, cluster, draws=300, seed=trial)
        covered.append(found.low <= 0.5 <= found.high)
    # Of ten runs the bootstrap sees nine tenths of the variance.
    assert 0.87 <= np.mean(covered) <= 0.99


def test_p_is_seldom_small_where_nothing_differs():
    rng = np.random.default_rng(9)
    found = [
        bootstrap(*(rng.random((1, 80)) < 0.6, np.arange(80), rng.random((1, 80)) < 0.6), draws=300)
        for _ in range(200)
    ]
    assert 0.01 <= np.mean([f.p < 0.05 for f in found]) <= 0.07
    # As often below as above.
    assert 0.3 < np.mean([f.value > 0 for f in found]) < 0.7


def test_what_cannot_be_resampled_is_refused():
    # Without the tests' own check of the shapes in signatures, which would come first.
    unchecked = inspect.unwrap(bootstrap)
    with pytest.raises(ValueError, match="bootstrap: no query; the share of nothing"):
        unchecked(np.zeros((2, 0), bool), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"bootstrap: \(2, 4\) and \(3, 4\) are no pairs"):
        unchecked(np.ones((2, 4), bool), np.arange(4), np.ones((3, 4), bool))


def test_share_by_run():
    hits = np.array([[True, False, True, True], [False] * 4])
    np.testing.assert_array_equal(share_by_run(hits), [0.75, 0.0])


def test_the_interval_of_a_mean_is_that_of_its_normal_law():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap_interval(values) == (low, high)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_values_of_a_cluster_are_drawn_together(statistic):
    values = np.random.default_rng(2).normal(5.0, 2.0, 100)
    repeated, cluster = np.repeat(values, 4), np.repeat(np.arange(100), 4)
    low, high = bootstrap_interval(repeated, statistic, cluster=cluster)
    alone = bootstrap_interval(values, statistic)
    assert (low, high) == pytest.approx(alone, abs=0.15)
    by_itself = bootstrap_interval(values, statistic, cluster=np.arange(100))
    assert by_itself == pytest.approx(alone, abs=0.15)
    narrow = bootstrap_interval(repeated, statistic)
    assert high - low > 1.4 * (narrow[1] - narrow[0])


def test_the_interval_of_a_median_holds_it_and_equal_values_have_none():
    values = np.random.default_rng(1).exponential(1.0, 101)
    low, high = bootstrap_interval(values, np.median)
    assert low < np.median(values) < high
    assert bootstrap_interval(np.full(5, 3.0)) == (3.0, 3.0)
    with pytest.raises(ValueError, match="no value"):
        bootstrap_interval(np.zeros(0))
