"""A look into an ambisonic field: what a stereo pair hears of it, and what a camera shows."""

import numpy as np
from jaxtyping import Bool, Float

from spatial_clap_jax.acoustics.foa import rotate_foa, unit_vectors

# Of the camera, from the left to the right edge of its picture.
HORIZONTAL_FIELD_DEG = 100.0
# Width over height of its picture, 640 x 360.
ASPECT = 16 / 9


def stereo_of_foa(foa: Float[np.ndarray, "*b c t"], view_deg: float) -> Float[np.ndarray, "*b 2 t"]:
    """Two coincident cardioids to the left and the right of a viewing direction.

    L = W + Y' and R = W - Y' with Y' = sin(view_deg) X + cos(view_deg) Y.

    Args:
      foa: W, Y, Z, X (ACN order, SN3D).
      view_deg: the viewing direction, clockwise as the task counts it: a source at azimuth a
        (counter-clockwise) is heard at a + view_deg.

    Returns:
      L, R; what is heard from +90 degrees is silent in R.

    Reference: DCASE 2025 Challenge, Task 3 (arXiv 2507.12042): mid-side stereo.

    Example:
      A source ahead, W = X = s and Y = 0, is s, s for a view of 0 and 2 s, 0 for one of 90 degrees.
    """
    turned = rotate_foa(foa, view_deg)
    middle, side = turned[..., 0, :], turned[..., 1, :]
    return np.stack([middle + side, middle - side], axis=-2)


def fold_azimuth_deg(azimuth_deg: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """The azimuth in front that sounds the same to a stereo pair.

    Args:
      azimuth_deg: any angles, counter-clockwise, 0 ahead, +90 left.

    Returns:
      Azimuths in [-90, 90].

    Reference: DCASE 2025 Challenge, Task 3.

    Example:
      >>> fold_azimuth_deg(np.array([-170.0, 91.0, 180.0, 270.0]))
      array([-10.,  89.,   0., -90.])
    """
    turned = (azimuth_deg + 180) % 360 - 180
    behind = np.copysign(180.0, turned) - turned
    return np.where(np.abs(turned) > 90, behind, turned)


def picture_position(
    azimuth_deg: Float[np.ndarray, "*n"], elevation_deg: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n 2"]:
    """Where a pinhole camera that looks ahead shows a direction.

    Args:
      azimuth_deg: in (-180, 180], not folded.
      elevation_deg: up positive.

    Returns:
      Across (-1 at the left edge of the picture, 1 at the right one) and down (-1 at the upper
      edge, 1 at the lower one); NaN for what is beside or behind the camera.

    Reference: DCASE 2025 Challenge, Task 3 (a perspective picture, 100 degrees wide, 16:9).

    Example:
      >>> picture_position(np.array([50.0, -50.0, 180.0]), np.zeros(3)).round(6)[:, 0]
      array([-1.,  1., nan])
    """
    ahead, left, up = np.moveaxis(unit_vectors(azimuth_deg, elevation_deg), -1, 0)
    is_ahead = ahead > 1e-9
    depth = np.where(is_ahead, ahead, 1.0) * np.tan(np.radians(HORIZONTAL_FIELD_DEG / 2))
    position = np.stack([-left / depth, -up / depth * ASPECT], axis=-1)
    return np.where(is_ahead[..., None], position, np.nan)


def is_on_screen(
    azimuth_deg: Float[np.ndarray, "*n"], elevation_deg: Float[np.ndarray, "*n"]
) -> Bool[np.ndarray, "*n"]:
    """Whether directions lie in the camera's picture.

    The elevation counts: straight ahead the picture ends at +-33.8 degrees. What is behind the
    camera is off screen, wherever it folds to.

    Args:
      azimuth_deg: in (-180, 180], not folded.
      elevation_deg: up positive.

    Returns:
      True for what is inside, the edges included.

    Reference: DCASE 2025 Challenge, Task 3.
    """
    # An edge in degrees is an edge here to within rounding.
    position = picture_position(azimuth_deg, elevation_deg)
    return np.asarray((np.abs(position) <= 1 + 1e-9).all(axis=-1))
