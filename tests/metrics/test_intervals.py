import numpy as np
import pytest
import scipy.stats

from spatial_clap_jax.metrics.intervals import effective_queries, share_interval


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (0, 20), (20, 20), (137, 200)])
def test_independent_queries_have_wilson_intervals(successes, n):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = share_interval(np.arange(n) < successes, np.arange(n))
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_repeated_queries_tell_no_more_than_one():
    hits = np.random.default_rng(0).random(40) < 0.7
    once = share_interval(hits, np.arange(40))
    thrice = share_interval(np.repeat(hits, 3), np.repeat(np.arange(40), 3))
    assert thrice == pytest.approx(once, abs=5e-3)


def test_effective_queries_stay_between_one_and_all():
    assert effective_queries(np.array([True, False, True]), np.array([7, 7, 7])) == 1.0
    # Each cluster holds one hit and one miss: less variance than independent ones, no bonus.
    assert effective_queries(np.array([True, False] * 5), np.repeat(np.arange(5), 2)) == 10.0
    nearly = np.array([True, False, True, False, True, True, False, True])
    assert effective_queries(nearly, np.repeat(np.arange(4), 2)) == 8.0
    assert effective_queries(np.ones(12, bool), np.repeat(np.arange(4), 3)) == 4.0


def test_order_and_names_of_clusters_change_nothing():
    rng = np.random.default_rng(1)
    hits, cluster = rng.random(60) < 0.5, rng.integers(0, 20, 60)
    order = rng.permutation(60)
    moved = share_interval(hits[order], 5 - 3 * cluster[order])
    assert moved == pytest.approx(share_interval(hits, cluster))


@pytest.mark.parametrize("hit", [True, False])
def test_a_perfect_score_keeps_a_width_and_holds_its_value(hit):
    low, high = share_interval(np.full(30, hit), np.arange(30))
    assert low <= hit <= high
    assert high - low > 0.05


@pytest.mark.parametrize(
    ("clusters", "members", "share"), [(200, 1, 0.9), (50, 1, 0.97), (100, 6, 0.4), (200, 2, 0.85)]
)
def test_coverage_is_about_95_percent(clusters, members, share):
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(clusters), members)
    covered = []
    for _ in range(400):
        # Members of a cluster share its difficulty (beta-binomial).
        chance = rng.beta(2 * share, 2 * (1 - share), (clusters, 1)) if members > 1 else share
        hits = (rng.random((clusters, members)) < chance).ravel()
        low, high = share_interval(hits, cluster)
        covered.append(low <= share <= high)
    assert 0.92 <= np.mean(covered) <= 0.985


def test_nothing_has_no_interval():
    with pytest.raises(ValueError, match="no query"):
        share_interval(np.zeros(0, bool), np.zeros(0, int))
