"""Retrieval by meaning: recall and average precision in a gallery, and what chance would reach."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

# Cosines closer than this are a tie: float32 embeddings do not tell them apart, and a
# matrix product may round equal ones differently by their place in the matrix.
TIE = 1e-6


def similarity(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "g d"]
) -> Float[np.ndarray, "q g"]:
    """Cosines of unit embeddings, in float64.

    Args:
      queries: unit embeddings of the queries.
      gallery: unit embeddings of what is searched.

    Returns:
      One row a query, one column a gallery item.
    """
    return queries.astype(np.float64) @ gallery.astype(np.float64).T


def relevant_ranks(
    scores: Float[np.ndarray, "q g"], relevant: Bool[np.ndarray, "q g"], tie: float = TIE
) -> Int[np.ndarray, "q"]:
    """Rank of each query's best relevant item, 1 = first; ties go against the query.

    Args:
      scores: similarity of each query to each gallery item, higher is nearer.
      relevant: whether the item means what the query means.
      tie: irrelevant items up to this far below the best relevant one still stand above it.

    Returns:
      Ranks from 1 to g.

    Raises:
      ValueError: a score is not finite, or a query has no relevant item.

    Example:
      >>> relevant_ranks(np.array([[0.9, 0.5, 0.5]]), np.array([[False, True, False]]))
      array([3])
    """
    if not np.isfinite(scores).all():
        raise ValueError("relevant_ranks: scores hold NaN or infinity; every score must be finite.")
    if not relevant.any(axis=1).all():
        raise ValueError("relevant_ranks: a query has no relevant item; each needs at least one.")
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + np.sum(~relevant & (scores >= best - tie), axis=1)


def chance_recall(relevant: Bool[np.ndarray, "q g"], k: int) -> float:
    """Recall@k that a random order of the gallery reaches, exactly.

    A query with m relevant items among g misses when all of the k drawn are among the
    g - m others: hypergeometric, C(g - m, k) / C(g, k).

    Args:
      relevant: whether gallery item j means what query i means.
      k: how many items are looked at.

    Returns:
      The expected recall, averaged over the queries.

    Example:
      >>> chance_recall(np.array([[True, False, False, False]]), 1)
      0.25
    """
    gallery = relevant.shape[1]
    drawn = min(k, gallery)
    counts, repeats = np.unique(relevant.sum(axis=1), return_counts=True)
    every = math.comb(gallery, drawn)
    hits = [1.0 - math.comb(gallery - int(m), drawn) / every for m in counts]
    return float(np.dot(hits, repeats) / repeats.sum())


def average_precision(
    scores: Float[np.ndarray, "q g"], relevant: Bool[np.ndarray, "q g"], k: int, tie: float = TIE
) -> Float[np.ndarray, "q"]:
    """Average precision of each query among its first k items; ties go against the query.

    The precisions at the ranks of the relevant items that are among the first k, summed and divided
    by the most that there can be, min(m, k) of m relevant items; their mean is mAP@k.

    Args:
      scores: similarity of each query to each gallery item, higher is nearer.
      relevant: whether the item means what the query means.
      k: how many items are looked at.
      tie: irrelevant items up to this far below a relevant one still stand above it.

    Returns:
      Numbers in [0, 1].

    Raises:
      ValueError: a score is not finite, or a query has no relevant item.

    Example:
      >>> scores, relevant = np.array([[0.9, 0.8, 0.7]]), np.array([[True, False, True]])
      >>> average_precision(scores, relevant, 10)  # (1/1 + 2/3) / 2
      array([0.83333333])
    """
    if not np.isfinite(scores).all():
        raise ValueError("average_precision: scores hold NaN or infinity; all must be finite.")
    if not relevant.any(axis=1).all():
        raise ValueError("average_precision: a query has no relevant item; each needs one.")
    # Sorted by score; what is relevant comes last among equals.
    order = np.lexsort((relevant, -np.where(relevant, scores - tie, scores)), axis=1)[:, :k]
    found = np.take_along_axis(relevant, order, axis=1)
    precision = np.cumsum(found, axis=1) / np.arange(1, found.shape[1] + 1)
    most = np.minimum(relevant.sum(axis=1), k)
    return np.sum(precision * found, axis=1) / most


def chance_average_precision(relevant: Bool[np.ndarray, "q g"], k: int) -> float:
    """The mAP@k that a random order of the gallery reaches, exactly.

    A rank holds one of the m relevant items with probability m / g; then each of the i - 1 ranks
    before it holds another with probability (m - 1) / (g - 1).

    Args:
      relevant: whether gallery item j means what query i means.
      k: how many items are looked at.

    Returns:
      The expected average precision, averaged over the queries.

    Example:
      >>> chance_average_precision(np.array([[True, False]]), 2)  # 1 or 1/2, equally often
      0.75
    """
    gallery = relevant.shape[1]
    m = relevant.sum(axis=1)[:, None]
    rank = np.arange(1, min(k, gallery) + 1)
    before = (rank - 1) * (m - 1) / max(gallery - 1, 1)
    expected = np.sum(m / gallery * (1 + before) / rank, axis=1) / np.minimum(m[:, 0], k)
    return float(expected.mean())
