"""Scores of classes against the labels of clips: accuracy and mean average precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from spatial_clap_jax.acoustics.captions import labels_of
from spatial_clap_jax.metrics.retrieval import TIE, chance_average_precision
from spatial_clap_jax.metrics.scores import Outcome, Results, Score
from spatial_clap_jax.metrics.zero_shot import choose

# Resamplings whose cumulative sums are in memory at once.
_AT_ONCE = 100


def labels_matrix(categories: Sequence[str], classes: Sequence[str]) -> Bool[np.ndarray, "n c"]:
    """Which of the classes the category of each clip holds; others are left out."""
    held = [set(labels_of(category)) for category in categories]
    found = [[name in labels for name in classes] for labels in held]
    return np.array(found, bool).reshape(len(categories), len(classes))


def score_labels(
    task: str,
    scores: Float[np.ndarray, "n c"],
    true: Bool[np.ndarray, "n c"],
    cluster: Int[np.ndarray, "n"],
    chance: float,
) -> tuple[dict[str, Outcome], Results]:
    """How well the scores of classes tell the labels of clips.

    Args:
      task: name of the scores.
      scores: of each class for each clip, higher is likelier.
      true: the labels; clips that have none are left out.
      cluster: the clip that each row is of, where several are of one.
      chance: share of single labels that are right by chance.

    Returns:
      `{task}/plain`, the share of clips whose label is scored highest, where all have one label
      each; and `{task}_map/plain`, the mean over classes of their average precision. Nothing
      where fewer than two classes are scored or no clip has a label.
    """
    known = true.any(axis=1)
    scores, true, cluster = scores[known], true[known], cluster[known]
    if not known.any() or true.shape[1] < 2:
        return {}, {}
    outcomes: dict[str, Outcome] = {}
    if (true.sum(axis=1) == 1).all():
        label = true.argmax(axis=1)
        outcomes[f"{task}/plain"] = Outcome(choose(scores, label) == label, cluster, chance)
    return outcomes, {f"{task}_map/plain": mean_average_precision(scores, true, cluster)}


def mean_average_precision(
    scores: Float[np.ndarray, "n c"],
    true: Bool[np.ndarray, "n c"],
    cluster: Int[np.ndarray, "n"],
    draws: int = 1000,
    seed: int = 0,
) -> Score:
    """Mean over classes of the average precision of all clips, sorted by the class's score.

    Ties go against the class. Classes that no clip has are left out.

    Args:
      scores: of each class for each clip, higher is likelier.
      true: the labels; at least one class has a clip.
      cluster: rows of the same number are drawn together.
      draws: resamplings of the clips.
      seed: of the resampling.

    Returns:
      The score; its interval holds percentiles 2.5 and 97.5 of the resampled means, its chance is
      the mean that a random order has, exactly.

    Raises:
      ValueError: a score is not finite, or no clip has a label.

    Reference: the measure of AudioSet, Gemmeke et al. 2017; intervals Efron and Tibshirani 1993.
    """
    if not np.isfinite(scores).all() or not true.any():
        raise ValueError("mean_average_precision: scores must be finite, and some labels true.")
    held = true.any(axis=0)
    scores, true = scores[:, held], true[:, held]
    names, index = np.unique(cluster, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    # The first row is the data themselves.
    weights = np.concatenate([np.ones((1, len(names))), drawn])[:, index]
    # Sorted by score; what is true comes last among equals.
    order = np.lexsort((true, -np.where(true, scores - TIE, scores)), axis=0)
    means = []
    for start in range(0, len(weights), _AT_ONCE):
        chunk = weights[start : start + _AT_ONCE]
        by_class = np.stack(
            [
                _average_precision(true[rows, number], chunk[:, rows])
                for number, rows in enumerate(order.T)
            ]
        )
        # A class of which nothing was drawn has no precision.
        counted = np.isfinite(by_class).sum(axis=0)
        mean = np.nansum(by_class, axis=0) / np.maximum(counted, 1)
        means.append(np.where(counted, mean, np.nan))
    value, *resampled = np.concatenate(means).tolist()
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Score(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        chance=chance_average_precision(true.T, len(true)),
        n=len(true),
    )


def _average_precision(
    true: Bool[np.ndarray, "n"], weights: Float[np.ndarray, "draws n"]
) -> Float[np.ndarray, "draws"]:
    """Of items in their order, each counted as often as its weight; NaN where none is true."""
    found = weights * true
    hits = np.cumsum(found, axis=1)
    precision = hits / np.maximum(np.cumsum(weights, axis=1), 1e-12)
    total = hits[:, -1]
    return np.where(total > 0, np.sum(found * precision, axis=1) / np.maximum(total, 1e-12), np.nan)
