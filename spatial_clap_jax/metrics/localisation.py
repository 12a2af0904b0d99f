"""Where a source is, read from frozen embeddings by a small network, and how far off that is."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Below this many scenes a tenth of them says nothing about when to stop.
_ENOUGH_TO_STOP_EARLY = 50
# Directions among which the best constant is sought.
_MOST_CONSTANTS = 500


def angular_error_deg(
    predicted: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n"]:
    """Angle between two directions, exact near 0 and 180 degrees too.

    Args:
      predicted: direction vectors of any length above zero.
      target: the same, aligned with `predicted`.

    Returns:
      Angles in degrees, [0, 180].

    Example:
      >>> angular_error_deg(np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 2.0, 0.0]]))
      array([90.])
    """
    cross = np.linalg.norm(np.cross(predicted, target), axis=-1)
    return np.degrees(np.arctan2(cross, np.sum(predicted * target, axis=-1)))


@dataclasses.dataclass(frozen=True)
class Localiser:
    """A fitted network of two layers; see `fit_localiser`.

    Attributes:
      network: embeddings to x, y, z and the distance in units of `distance_scale`.
      distance_mean_m, distance_scale_m: of the distances that it learned from.
    """

    network: object
    distance_mean_m: float
    distance_scale_m: float

    def predict(
        self, embeddings: Float[np.ndarray, "n d"]
    ) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
        """Directions (of any length) and distances in metres."""
        found = self.network.predict(embeddings)  # pyright: ignore[reportAttributeAccessIssue]
        return found[:, :3], self.distance_mean_m + self.distance_scale_m * found[:, 3]


def fit_localiser(
    embeddings: Float[np.ndarray, "n d"],
    directions: Float[np.ndarray, "n 3"],
    distance_m: Float[np.ndarray, "n"],
    hidden: int = 256,
    seed: int = 0,
) -> Localiser:
    """Learns to tell direction and distance from frozen embeddings.

    A network of two layers (256 ReLU units, then x, y, z and the standardised distance) on
    standardised embeddings, least squares by Adam; a tenth of the scenes says when to stop.

    Args:
      embeddings: of scenes of one source.
      directions: their unit vectors.
      distance_m: their distances.
      hidden: units of the first layer.
      seed: of weights and batches; equal seeds give equal networks.

    Returns:
      The network.

    Reference: a 2-layer MLP as ELSA, arXiv 2409.11369, has; its width and training are our choice.
    """
    mean, scale = float(distance_m.mean()), float(distance_m.std()) or 1.0
    targets = np.column_stack([directions, (distance_m - mean) / scale])
    network = make_pipeline(
        StandardScaler(),
        MLPRegressor(
            hidden_layer_sizes=(hidden,),
            alpha=1e-3,
            max_iter=300,
            early_stopping=len(embeddings) >= _ENOUGH_TO_STOP_EARLY,
            n_iter_no_change=20,
            random_state=seed,
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(embeddings.astype(np.float64), targets)
    return Localiser(network, mean, scale)


def best_constant(directions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3"]:
    """The one direction of the given with the least mean angle to all: what knows nothing says.

    Args:
      directions: unit vectors; of many, the first 500 are tried.
    """
    tried = directions[:_MOST_CONSTANTS]
    cosines = np.clip(tried @ directions.T, -1.0, 1.0)
    return tried[np.arccos(cosines).mean(axis=1).argmin()]
