"""Words for the place of a source and for its room, by ranges; between the ranges there is none."""

import math
from dataclasses import dataclass

from spatial_clap_jax.errors import InputError

DIRECTIONS = ("front", "left", "back", "right")
DIRECTIONS_8 = (
    "front",
    "front-left",
    "left",
    "back-left",
    "back",
    "back-right",
    "right",
    "front-right",
)
ELEVATIONS = ("up", "down")
DISTANCES = ("near", "far")
ROOM_SIZES = ("small", "mid-sized", "large")
REVERBERATIONS = ("acoustically dampened", "highly reverberant")
# Nearer to the zenith or the nadir a few degrees there are all azimuths; our choice.
STEEPEST_DEG = 75.0


@dataclass(frozen=True)
class SpatialWords:
    """The words that are true of one place in one room; None where no word is.

    Attributes:
      direction: one of `DIRECTIONS`.
      elevation: one of `ELEVATIONS`.
      distance: one of `DISTANCES`.
      room_size: one of `ROOM_SIZES`.
      reverberation: one of `REVERBERATIONS`.
    """

    direction: str | None = None
    elevation: str | None = None
    distance: str | None = None
    room_size: str | None = None
    reverberation: str | None = None


def spatial_words(
    azimuth_deg: float, elevation_deg: float, distance_m: float, floor_area_m2: float, t30_s: float
) -> SpatialWords:
    """The words of a place and its room.

    Args:
      azimuth_deg: counter-clockwise, 0 ahead, +90 left.
      elevation_deg: up positive.
      distance_m: from the receiver.
      floor_area_m2: of the room; 0 where it is unknown.
      t30_s: reverberation time, measured from the response; NaN where it is unknown, 0 where no
        decay could be measured.

    Returns:
      A word or None for each.

    Raises:
      InputError: an angle is no angle.

    Reference: ELSA, arXiv 2409.11369 (ranges, as takamichi-lab/disentangle cites them); that steep
      places have no direction is our choice.

    Example:
      >>> spatial_words(90.0, 10.0, 0.7, 120.0, 0.5)
      SpatialWords(direction='left', elevation=None, distance='near', room_size='large', \
reverberation=None)
    """
    return SpatialWords(
        direction_word(azimuth_deg, elevation_deg),
        elevation_word(elevation_deg),
        distance_word(distance_m),
        room_size_word(floor_area_m2),
        reverberation_word(t30_s),
    )


def direction_word(azimuth_deg: float, elevation_deg: float = 0.0) -> str | None:
    """Front within 35 degrees of ahead, left and right from 55 to 125, back beyond 145.

    Args:
      azimuth_deg: any angle, counter-clockwise, 0 ahead, +90 left.
      elevation_deg: beyond 75 degrees up or down an azimuth says nothing.

    Returns:
      One of `DIRECTIONS`, or None between the ranges and for steep places.

    Raises:
      InputError: the azimuth is NaN or infinite.

    Example:
      >>> direction_word(35.0), direction_word(36.0), direction_word(-90.0), direction_word(180.0)
      ('front', None, 'right', 'back')
    """
    azimuth_deg = wrap_deg(azimuth_deg)
    aside = abs(azimuth_deg)
    if abs(elevation_deg) > STEEPEST_DEG:
        return None
    if aside <= 35:
        return "front"
    if 55 <= aside <= 125:
        return "left" if azimuth_deg > 0 else "right"
    return "back" if aside > 145 else None


def direction_word_8(azimuth_deg: float) -> str:
    """The nearest of eight directions, 45 degrees apart.

    An azimuth half-way between two belongs to the one nearer to the front, so that mirroring an
    azimuth always mirrors its word.

    Args:
      azimuth_deg: any angle, counter-clockwise, 0 ahead, +90 left.

    Returns:
      One of `DIRECTIONS_8`.

    Raises:
      InputError: the azimuth is NaN or infinite.

    Reference: sectors without gaps are our choice.

    Example:
      >>> direction_word_8(22.5), direction_word_8(23.0), direction_word_8(-120.0)
      ('front', 'front-left', 'back-right')
    """
    azimuth_deg = wrap_deg(azimuth_deg)
    steps = math.ceil(abs(azimuth_deg) / 45 - 0.5)
    return DIRECTIONS_8[steps if azimuth_deg >= 0 else -steps]


def elevation_word(elevation_deg: float) -> str | None:
    """Up above 40 degrees, down below -40, else None.

    Raises:
      InputError: the elevation is not in [-90, 90].
    """
    if not abs(elevation_deg) <= 90:
        raise InputError(
            f"elevation_deg {elevation_deg:g} is outside [-90, 90]; give degrees, up positive."
        )
    return "up" if elevation_deg > 40 else "down" if elevation_deg < -40 else None


def distance_word(distance_m: float) -> str | None:
    """Near below 1 m, far above 2 m, else None."""
    return "near" if distance_m < 1 else "far" if distance_m > 2 else None


def room_size_word(floor_area_m2: float) -> str | None:
    """Small below 50 m2, mid-sized from 50 to 100, large above; None for an unknown area (0)."""
    if not floor_area_m2 > 0:
        return None
    return "small" if floor_area_m2 < 50 else "large" if floor_area_m2 > 100 else "mid-sized"


def reverberation_word(t30_s: float) -> str | None:
    """Acoustically dampened below 200 ms, highly reverberant above 1000 ms, else None.

    0, which `measure_t60_s` gives where there is no decay, is no reverberation time.
    """
    if not t30_s > 0:
        return None
    dampened, reverberant = REVERBERATIONS
    return dampened if t30_s < 0.2 else reverberant if t30_s > 1.0 else None


def wrap_deg(azimuth_deg: float) -> float:
    """The same azimuth in (-180, 180].

    Raises:
      InputError: the azimuth is NaN or infinite.

    Example:
      >>> wrap_deg(270.0), wrap_deg(-180.0)
      (-90.0, 180.0)
    """
    if not math.isfinite(azimuth_deg):
        raise InputError(
            f"azimuth_deg {azimuth_deg:g} is no angle; give degrees, counter-clockwise, 0 ahead."
        )
    return 180.0 - (180.0 - azimuth_deg) % 360.0
