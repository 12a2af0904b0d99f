"""A linear probe: what a linear classifier reads from frozen features of clips."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spatial_clap_jax.acoustics.captions import labels_of
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embedded import LabelledClips
from spatial_clap_jax.metrics.labels import labels_matrix, score_labels
from spatial_clap_jax.metrics.retrieval import average_precision
from spatial_clap_jax.metrics.scores import Outcome, Results

# Inverse strengths of regularisation that one is chosen from.
STRENGTHS = tuple(10.0**power for power in range(-4, 3))


class Probe(NamedTuple):
    """A probe's scores.

    Attributes:
      outcomes: accuracy, where every clip has one label.
      measures: mean average precision.
      strength: the inverse strength of regularisation that validation clips chose.
    """

    outcomes: dict[str, Outcome]
    measures: Results
    strength: float


def linear_probe(train: LabelledClips, validation: LabelledClips, test: LabelledClips) -> Probe:
    """Learns the labels of training clips from their features, and is tested on others.

    Logistic regression on standardised features, one regression a class where clips have several
    labels; of `STRENGTHS` the one with the best accuracy (mean average precision) on the
    validation clips, the most regularised of equals. Clips without a label are left out.

    Args:
      train: what it learns from.
      validation: what it chooses by.
      test: what it is tested on.

    Returns:
      `probe/plain` and `probe_map/plain` of the test clips, see `score_labels`. Chance of the
      first is what the most frequent class of the training clips has.

    Raises:
      InputError: a split has no clip with a label, or the training clips are of one class.

    Reference: the protocol of M2D-CLAP, arXiv 2503.22104 (frozen features, a linear layer); the
      classifier and the choice of its regularisation are ours.
    """
    parts = {"train": train, "validation": validation, "test": test}
    classes = sorted(
        {name for part in parts.values() for c in part.categories for name in labels_of(c)}
    )
    true = {name: labels_matrix(part.categories, classes) for name, part in parts.items()}
    for name, labels in true.items():
        if not labels.any():
            raise InputError(
                f"probe: no clip of split {name!r} has a category; give data with categories in "
                "all splits."
            )
    if true["train"].any(axis=0).sum() < 2:
        raise InputError("probe: the training clips are of one class; give clips of several.")
    single = all((labels.sum(axis=1) <= 1).all() for labels in true.values())
    fitted = [_Linear(train.features, true["train"], strength, single) for strength in STRENGTHS]
    reached = [
        _quality(one.scores(validation.features), true["validation"], single) for one in fitted
    ]
    chosen = int(np.argmax(reached))
    frequent = int(true["train"].sum(axis=0).argmax())
    known = true["test"].any(axis=1)
    _, cluster = np.unique(test.clips, return_inverse=True)
    outcomes, measures = score_labels(
        "probe",
        fitted[chosen].scores(test.features),
        true["test"],
        cluster,
        chance=float(true["test"][known, frequent].mean()),
    )
    return Probe(outcomes, measures, STRENGTHS[chosen])


class _Linear:
    """Logistic regression whose scores have a column for each class, seen in training or not."""

    def __init__(
        self,
        features: Float[np.ndarray, "n d"],
        true: Bool[np.ndarray, "n c"],
        strength: float,
        single: bool,
    ) -> None:
        known = true.any(axis=1)
        self._seen = np.asarray(true.any(axis=0))
        regression = LogisticRegression(C=strength, max_iter=1000)
        self._model = make_pipeline(
            StandardScaler(), regression if single else OneVsRestClassifier(regression)
        )
        targets = true[known][:, self._seen]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # A class that all clips have.
            warnings.filterwarnings("ignore", "Label .* is present in all", UserWarning)
            self._model.fit(
                features[known].astype(np.float64), targets.argmax(axis=1) if single else targets
            )

    def scores(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        found = self._model.decision_function(features.astype(np.float64))
        if found.ndim == 1:
            # Of two classes only the second is scored.
            found = np.stack([-found, found], axis=1)
        scores = np.full((len(features), len(self._seen)), found.min() - 1.0)
        scores[:, self._seen] = found
        return scores


def _quality(
    scores: Float[np.ndarray, "n c"], true: Bool[np.ndarray, "n c"], single: bool
) -> float:
    known, held = true.any(axis=1), true.any(axis=0)
    if single:
        return float(np.mean(scores[known].argmax(axis=1) == true[known].argmax(axis=1)))
    precision = average_precision(
        scores[known][:, held].T, true[known][:, held].T, int(known.sum())
    )
    return float(precision.mean())
