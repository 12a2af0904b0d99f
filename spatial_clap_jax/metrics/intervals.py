"""95 % intervals of a share of hits among queries that come in clusters."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Int

Z_95 = 1.959964


def effective_queries(hits: Bool[np.ndarray, "n"], cluster: Int[np.ndarray, "n"]) -> float:
    """How many independent queries tell as much as these clustered ones.

    n over the design effect, the ratio of the variance of the share of hits between clusters
    to the binomial variance. The effect is held within what clusters can do: never below 1, and,
    where all queries agree and no variance is seen, as if each cluster were one query.

    Args:
      hits: whether each query succeeded.
      cluster: which cluster (scene group) it belongs to; any integers.

    Returns:
      A number in [1, n].

    Reference:
      Design effect, Kish 1965; for proportions, Korn and Graubard 1998.

    Example:
      >>> effective_queries(np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
      1.0
    """
    n = len(hits)
    share = hits.mean()
    _, index, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    clusters = len(sizes)
    if clusters in (1, n) or share in (0.0, 1.0):
        return float(clusters)
    residual = np.bincount(index, weights=hits.astype(np.float64), minlength=clusters)
    residual -= share * sizes
    variance = clusters / (clusters - 1) * np.sum(residual**2) / n**2
    effect = variance * n / (share * (1.0 - share))
    return float(np.clip(n / effect, 1.0, n)) if effect > 0 else float(n)


def share_interval(
    hits: Bool[np.ndarray, "n"], cluster: Int[np.ndarray, "n"]
) -> tuple[float, float]:
    """95 % interval of the share of hits: Wilson's, at the effective number of queries.

    Members of a scene group share clips, room and places and are not independent: the group is
    the cluster, or all scenes of a room where the room is asked about. Where each query is a
    cluster of its own this is the plain Wilson interval. It is preferred to a bootstrap over groups
    as it keeps a width where every query is a hit, and has no seed. It tells how far other clusters
    of the same clips might move the share, not other training runs.

    Args:
      hits: whether each of n >= 1 queries succeeded.
      cluster: which cluster (scene group) it belongs to; any integers.

    Returns:
      Low and high end, within [0, 1], around the share.

    Raises:
      ValueError: there is no query.

    Reference:
      Wilson 1927 (score interval). Its use at an effective n: our choice, coverage tested.

    Example:
      >>> low, high = share_interval(np.array([True] * 8 + [False] * 2), np.arange(10))
      >>> round(low, 3), round(high, 3)
      (0.49, 0.943)
    """
    if not len(hits):
        raise ValueError("share_interval: no query; the share of nothing has no interval.")
    share = float(hits.mean())
    n = effective_queries(hits, cluster)
    spread = Z_95**2 / n
    center = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))
