"""Regressions of place and room: where a sound is, how far, and what the room does to it.

Each loss takes what is known of each row and leaves the others out; a batch in which nothing is
known costs 0. Lengths, areas, volumes and times count by their logarithm, so that an error is a
ratio and a near source matters as much as a far one.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Predictions of a logarithm start near these, the middle of what rooms and places are drawn from.
TYPICAL_DISTANCE_M = 2.0
TYPICAL_FLOOR_AREA_M2 = 60.0

# Centre and spread of the attributes' logarithms, and of DRR in dB: about one unit each.
_DISTANCE = (TYPICAL_DISTANCE_M, 0.5)
_VOLUME = (200.0, 0.8)
_T30 = (0.5, 0.6)
_DRR_SPREAD_DB = 10.0
_BANDS = 20


def direction_loss(
    predicted: Float[Array, "b 3"], target: Float[Array, "b 3"], known: Bool[Array, "b"]
) -> Float[Array, ""]:
    """One minus the cosine of the angle between directions.

    Args:
      predicted: direction vectors (x ahead, y left, z up) of any length.
      target: unit vectors, aligned.
      known: which rows have a direction.

    Returns:
      The mean over known rows, 0 (right) to 2 (opposite); 0 where none is known.

    Reference: our choice; azimuth and elevation under one cosine, as re-implementations of ELSA
      have them, are no angle.

    Example:
      >>> direction_loss(jnp.array([[5.0, 0, 0]]), jnp.array([[0, 1.0, 0]]), jnp.array([True]))
      Array(1., dtype=float32)
    """
    squared = jnp.maximum((predicted**2).sum(axis=-1), 1e-12)
    cosine = (predicted * target).sum(axis=-1) / jnp.sqrt(squared)
    return masked_mean(1 - cosine, known)


def log_ratio_loss(
    predicted_log: Float[Array, "b"],
    target: Float[Array, "b"],
    typical: float,
    known: Bool[Array, "b"],
) -> Float[Array, ""]:
    """Squared error of a logarithm.

    Args:
      predicted_log: natural logarithm of the prediction over `typical`.
      target: the true value, above 0 where known.
      typical: what a prediction of 0 stands for.
      known: which rows have one.

    Returns:
      The mean over known rows; 0 where none is known.

    Example:
      A prediction of twice the truth costs log(2) ** 2 = 0.48, one of half the truth too.
    """
    true = jnp.where(known, target, typical)
    return masked_mean((predicted_log - jnp.log(true / typical)) ** 2, known)


class AttributeErrors(NamedTuple):
    """Mean errors of the kinds of attributes; 0 where nothing is known.

    Attributes:
      direction: of the point on the map of directions, squared.
      distance, volume: of the logarithm in units of its spread, squared.
      drr: in units of 10 dB, squared, over bands.
      t30: of the logarithm in units of its spread, squared, over bands.
    """

    direction: Float[Array, ""]
    distance: Float[Array, ""]
    volume: Float[Array, ""]
    drr: Float[Array, ""]
    t30: Float[Array, ""]


def attribute_errors(
    predicted: Float[Array, "b 44"], attributes: Float[Array, "b 44"]
) -> AttributeErrors:
    """How far predicted attributes are from the true ones, by kind.

    Args:
      predicted: as `normalised_attributes` has them.
      attributes: see there; NaN where unknown.

    Returns:
      One mean a kind, each over what is known of it, so that twenty bands weigh no more than one
      distance.

    Reference: ELSA (arXiv 2409.11369) names the 44 targets; scales and weights are our choice.
    """
    target = normalised_attributes(attributes)
    known = jnp.isfinite(target)
    squared = (predicted - jnp.where(known, target, 0.0)) ** 2
    parts = np.split(np.arange(44), [2, 3, 4, 4 + _BANDS])
    return AttributeErrors(*(masked_mean(squared[:, part], known[:, part]) for part in parts))


def normalised_attributes(attributes: Float[Array, "b 44"]) -> Float[Array, "b 44"]:
    """Attributes in units that a network gives: each of about one unit's spread.

    The direction is a point on a map of the sphere around the zenith (Lambert's, of equal areas):
    unlike azimuth and elevation it has no cut where a full turn is over, and its only edge is
    straight below.

    Args:
      attributes: azimuth and elevation in degrees, distance in m, volume in m3, DRR in dB and T30
        in s, each in 20 third-octave bands; NaN where unknown.

    Returns:
      Map point (2), logarithms of distance over 2 m by 0.5 and of volume over 200 m3 by 0.8, DRR
      by 10 dB, logarithms of T30 over 0.5 s by 0.6; NaN where unknown.

    Example:
      A source ahead at no elevation, 2 m away, begins with 1, 0, 0; one at the left with 0, 1, 0.
    """
    azimuth, elevation, distance, volume = (attributes[:, i] for i in range(4))
    drr, t30 = attributes[:, 4 : 4 + _BANDS], attributes[:, 4 + _BANDS :]
    # The radius of the horizon is 1.
    radius = jnp.sqrt(jnp.maximum(1 - jnp.sin(jnp.radians(elevation)), 0.0))
    azimuth = jnp.radians(azimuth)
    return jnp.concatenate(
        [
            jnp.stack(
                [
                    radius * jnp.cos(azimuth),
                    radius * jnp.sin(azimuth),
                    _normalised_log(distance, *_DISTANCE),
                    _normalised_log(volume, *_VOLUME),
                ],
                axis=1,
            ),
            drr / _DRR_SPREAD_DB,
            _normalised_log(t30, *_T30),
        ],
        axis=1,
    )


def direction_of_map(point: Float[Array, "b 2"]) -> Float[Array, "b 3"]:
    """The unit vector (x ahead, y left, z up) of a point on the map of `normalised_attributes`.

    A point beyond the map's edge stands for straight below.
    """
    squared = jnp.minimum((point**2).sum(axis=-1), 2.0)
    height = 1 - squared
    # cos(elevation) over the radius: sqrt(1 - height^2) / sqrt(1 - height).
    ahead_and_left = point * jnp.sqrt(jnp.maximum(1 + height, 0.0))[:, None]
    return jnp.concatenate([ahead_and_left, height[:, None]], axis=1)


def angle_deg(predicted: Float[Array, "b 3"], target: Float[Array, "b 3"]) -> Float[Array, "b"]:
    """Angle between two directions of any length above zero, [0, 180]; for the log."""
    across = jnp.linalg.norm(jnp.cross(predicted, target), axis=-1)
    return jnp.degrees(jnp.arctan2(across, (predicted * target).sum(axis=-1)))


def masked_mean(values: Float[Array, "*b"], known: Bool[Array, "*b"]) -> Float[Array, ""]:
    """The mean over known entries; 0 where there are none. What is unknown has no gradient."""
    return jnp.where(known, values, 0.0).sum() / jnp.maximum(known.sum(), 1)


def _normalised_log(value: Float[Array, "*b"], typical: float, spread: float) -> Array:
    return jnp.log(value / typical) / spread
