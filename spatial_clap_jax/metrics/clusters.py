"""How far apart clusters of embeddings lie: Wasserstein distances."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from spatial_clap_jax.metrics.scores import Score

_DRAWS = 40
# Rows matched at once; the time of a match grows with the cube of it.
_MOST = 200


def wasserstein_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> float:
    """The 2-Wasserstein distance of two equally large samples, exactly.

    Between n points and n points of equal weight the cheapest transport is a matching. No shape of
    the clusters is assumed, unlike in the distance of two Gaussians, whose 512 x 512 covariances a
    few hundred scenes do not tell.

    Args:
      x: rows of one sample.
      y: as many of the other.

    Returns:
      The root of the mean squared Euclidean distance under the best matching.

    Raises:
      ValueError: the samples are empty or differ in size.

    Reference: Peyre and Cuturi, Computational Optimal Transport, 2019, section 2.

    Example:
      >>> wasserstein_distance(np.array([[0.0], [1.0]]), np.array([[3.0], [2.0]]))
      2.0
    """
    if not len(x) == len(y) > 0:
        raise ValueError(f"{len(x)} and {len(y)} rows; a matching needs equally many, at least 1.")
    cost = cdist(x, y, "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def cluster_distance(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], seed: int = 0
) -> Score:
    """Wasserstein distance of two clusters, its spread, and what meaningless clusters would give.

    Samples of one cluster lie apart too, the further the fewer they are and the more dimensions
    they have; so the value says something only beside `chance`, the distance of samples as large
    that are drawn from both clusters together. Forty times half of the smaller cluster (at most 200
    rows) is drawn from each: the spread of half-samples is that of the mean of the whole.

    Args:
      x: embeddings of one cluster, at least 2.
      y: embeddings of the other, at least 2.
      seed: of the draws.

    Returns:
      Mean over the draws, their percentiles 2.5 and 97.5, the mean with shuffled labels as chance,
      and the rows of both clusters.

    Reference: half-samples, McCarthy 1966; the rest is our choice.
    """
    size = min(len(x) // 2, len(y) // 2, _MOST)
    rng = np.random.default_rng(seed)
    both = np.concatenate([x, y]).astype(np.float64)
    apart, mixed = [], []
    for _ in range(_DRAWS):
        one = rng.choice(len(x), size, replace=False)
        other = len(x) + rng.choice(len(y), size, replace=False)
        apart.append(wasserstein_distance(both[one], both[other]))
        shuffled = rng.permutation(np.concatenate([one, other]))
        mixed.append(wasserstein_distance(both[shuffled[:size]], both[shuffled[size:]]))
    low, high = np.percentile(apart, [2.5, 97.5])
    return Score(
        value=float(np.mean(apart)),
        low=float(low),
        high=float(high),
        chance=float(np.mean(mixed)),
        n=len(both),
    )
