"""Rooms for simulation: ranges, one room drawn from them, its reverberation time."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

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


@dataclass(frozen=True)
class FloorRanges:
    """Ranges of rooms by floor area and reverberation time, both drawn log-uniformly.

    A uniform draw of either would leave few small and few dampened rooms. Shape and height are
    uniform; the absorption is what gives the drawn time.

    Attributes:
      floor_area_m2: length times width.
      aspect: length over width; every second room is turned.
      height_m: of the ceiling.
      t30_s: the time aimed at; what a response has is measured.
    """

    floor_area_m2: tuple[float, float] = (13.3, 277.4)
    aspect: tuple[float, float] = (1.0, 1.8)
    height_m: tuple[float, float] = (2.6, 5.0)
    t30_s: tuple[float, float] = (0.1445, 2.6719)

    def __post_init__(self) -> None:
        for field in ("floor_area_m2", "aspect", "height_m", "t30_s"):
            low, high = getattr(self, field)
            if not 0 < low <= high < math.inf:
                raise InputError(
                    f"FloorRanges.{field} ({low:g}, {high:g}) must hold 0 < low <= high."
                )

    @property
    def narrowest_m(self) -> float:
        """The shortest wall that a room can have."""
        return math.sqrt(self.floor_area_m2[0] / max(self.aspect[1], 1 / self.aspect[0]))


def sample_floor_room(rng: np.random.Generator, ranges: FloorRanges, name: str) -> Room:
    """Draw a room by floor area and reverberation time.

    Args:
      rng: where the draws come from; five are taken.
      ranges: the ranges drawn from.
      name: name of the room.

    Returns:
      The room, with the absorption for which the mean decay of image sources has the drawn T30.

    Reference: ELSA, arXiv 2409.11369 (ranges); the draws are our choice.
    """
    area_m2, t30_s = (
        float(np.exp(rng.uniform(*np.log(span)))) for span in (ranges.floor_area_m2, ranges.t30_s)
    )
    aspect = float(rng.uniform(*ranges.aspect)) ** float(rng.choice([-1, 1]))
    height_m = float(rng.uniform(*ranges.height_m))
    size_m = math.sqrt(area_m2 * aspect), math.sqrt(area_m2 / aspect), height_m
    # The decay depends on time and the logarithm of reflectance only by their product.
    unit_s = decay_time_s(Room(name, size_m, 1 - math.exp(-1)), (-5.0, -35.0))
    return Room(name, size_m, -math.expm1(-unit_s / t30_s))


def mean_decay(
    room: Room, time_s: Float[np.ndarray, "t"]
) -> tuple[Float[np.ndarray, "t 3"], Float[np.ndarray, "t"]]:
    """Mean energy of image sources of a shoebox by time, and what is left of it.

    Image sources have the density one a room's volume. One at distance r in direction u has met
    the walls r (|x|/length + |y|/width + |z|/height) times, whatever stands where.

    Args:
      room: size and absorption.
      time_s: times after the source's impulse.

    Returns:
      Energy a second that arrives from along x, y and z (their sum is that of an omnidirectional
      microphone), where the direct sound at 1 m has the energy one; and the energy, over all
      directions, that is still to come.

    Reference: Lehmann and Johansson 2008 (mean decay of image sources).
    """
    squared, loss = _octant(room)
    # Share of its energy that a direction loses a second.
    rate = -math.log1p(-room.absorption) * SPEED_OF_SOUND_M_S * loss
    density = 4 * math.pi * SPEED_OF_SOUND_M_S / math.prod(room.size_m) / len(rate)
    left = np.exp(-np.outer(time_s, rate))
    return density * left @ squared, density * left @ (1 / rate)


def decay_time_s(room: Room, levels_db: tuple[float, float]) -> float:
    """Time of 60 dB, extrapolated from between two levels of a room's mean decay.

    Args:
      room: size and absorption.
      levels_db: of the energy still to come, such as (-5, -35) for T30.
    """
    # More than 60 dB along the direction that loses least.
    rate = -math.log1p(-room.absorption) * SPEED_OF_SOUND_M_S / max(room.size_m)
    time_s = np.linspace(0, 14 / rate, 200)
    left = mean_decay(room, time_s)[1]
    level_db = 10 * np.log10(left / left[0])
    first, last = levels_db
    fitted = (level_db <= first) & (level_db >= last)
    return -60 / float(np.polyfit(time_s[fitted], level_db[fitted], 1)[0])


def _octant(room: Room) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
    """Directions even over an octant: squares of x, y, z, and walls met a metre."""
    steps = 16
    middle = (np.arange(steps) + 0.5) / steps
    z, azimuth = (one.ravel() for one in np.meshgrid(middle, middle * math.pi / 2))
    level = np.sqrt(1 - z**2)
    vectors = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), z], axis=1)
    return vectors**2, vectors @ (1 / np.asarray(room.size_m))


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
