import itertools

import numpy as np
import pytest

from spatial_clap_jax.metrics.clusters import cluster_distance, wasserstein_distance


def test_the_matching_is_the_best_of_all():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 5, 3))
    costs = [
        np.mean(np.sum((x - y[list(order)]) ** 2, axis=1))
        for order in itertools.permutations(range(5))
    ]
    assert wasserstein_distance(x, y) == pytest.approx(min(costs) ** 0.5)


def test_a_moved_cloud_is_as_far_as_it_was_moved():
    x = np.random.default_rng(0).standard_normal((40, 8))
    shift = np.arange(8.0)
    assert wasserstein_distance(x, x[::-1]) == 0.0
    assert wasserstein_distance(x, x + shift) == pytest.approx(np.linalg.norm(shift))


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_samples_of_known_gaussians(spread):
    # In one dimension W2^2 = (difference of means)^2 + (difference of deviations)^2.
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 600, 1))
    expected = np.hypot(4.0, spread - 1.0)
    assert wasserstein_distance(x, spread * y + 4.0) == pytest.approx(expected, rel=0.05)


def test_nothing_has_no_distance():
    with pytest.raises(ValueError, match="0 and 0 rows"):
        wasserstein_distance(np.zeros((0, 1)), np.zeros((0, 1)))


def test_clusters_beside_chance():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((60, 4)), rng.standard_normal((40, 4))
    same = cluster_distance(x, y)
    assert same["low"] <= same["chance"] <= same["high"]
    assert same["n"] == 100
    apart = cluster_distance(x, y + 5.0)
    assert apart["value"] == pytest.approx(10.0, rel=0.1)  # 5 in each of four dimensions
    assert apart["low"] > apart["chance"] > same["value"]
    assert cluster_distance(x, y + 5.0) == apart
    assert cluster_distance(x, y + 5.0, seed=1) != apart
