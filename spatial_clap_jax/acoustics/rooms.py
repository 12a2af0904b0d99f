"""Rooms for simulation: ranges, one room drawn from them, its reverberation time."""

import math
from dataclasses import dataclass

import numpy as np

from spatial_clap_jax.errors import InputError

SPEED_OF_SOUND_M_S = 343.0


@dataclass(frozen=True)
class RoomRanges:
    """Ranges that room conditions are drawn from, uniformly and independently.

    The defaults contain the rooms of 6 x 5 x 3, 8 x 6 x 3.5 and 10 x 8 x 4 m and the
    absorptions 0.3 to 0.5 of sarulab-speech/Moving-CLAP.
    """

    length_m: tuple[float, float] = (5.5, 10.5)
    width_m: tuple[float, float] = (4.5, 8.5)
    height_m: tuple[float, float] = (2.8, 4.2)
    absorption: tuple[float, float] = (0.3, 0.5)

    def __post_init__(self) -> None:
        for field in ("length_m", "width_m", "height_m", "absorption"):
            low, high = getattr(self, field)
            top = 1.0 if field == "absorption" else math.inf
            if not 0 < low <= high < top:
                rule = "0 < low <= high" + (" < 1" if field == "absorption" else "")
                raise InputError(f"RoomRanges.{field} ({low:g}, {high:g}) must hold {rule}.")


@dataclass(frozen=True)
class Room:
    """A shoebox: length along x (ahead), width along y (left), height along z (up).

    `absorption` is the share of energy that every wall takes at a reflection, the
    same at all frequencies.
    """

    name: str
    size_m: tuple[float, float, float]
    absorption: float


def sample_room(rng: np.random.Generator, ranges: RoomRanges, name: str) -> Room:
    """Draw a room.

    Args:
      rng: where the draws come from; four are taken.
      ranges: the ranges drawn from.
      name: name of the room.

    Returns:
      The room.

    Reference: sarulab-speech/Moving-CLAP (rooms); uniform draws are our choice.
    """
    length, width, height = (
        float(rng.uniform(*span)) for span in (ranges.length_m, ranges.width_m, ranges.height_m)
    )
    return Room(name, (length, width, height), float(rng.uniform(*ranges.absorption)))


def sabine_t60_s(room: Room) -> float:
    """Reverberation time that Sabine's law foretells for a diffuse field.

    The time measured from simulated responses differs: a shoebox with bare parallel
    walls is not diffuse.

    Args:
      room: size and absorption.

    Returns:
      24 ln(10) V / (c S absorption) in seconds, c = 343 m/s.

    Reference: Sabine 1922; Kuttruff, Room Acoustics.

    Example:
      >>> round(sabine_t60_s(Room("small", (6.0, 5.0, 3.0), 0.3)), 2)
      0.38
    """
    length, width, height = room.size_m
    volume = length * width * height
    surface = 2 * (length * width + length * height + width * height)
    return 24 * math.log(10) * volume / (SPEED_OF_SOUND_M_S * surface * room.absorption)
