"""Direction classes of the frontal half-plane and the words for them."""

import math
from dataclasses import dataclass

from spatial_clap_jax.errors import InputError


@dataclass(frozen=True)
class Direction:
    """A sector of azimuths (degrees, counter-clockwise, +90 left) and its phrase."""

    name: str
    low_deg: float
    high_deg: float
    phrase: str


STEREO_DIRECTIONS: tuple[Direction, ...] = (
    Direction("left", 54.0, 90.0, "on the left side"),
    Direction("front-left", 18.0, 54.0, "in the front-left"),
    Direction("front", -18.0, 18.0, "in front"),
    Direction("front-right", -54.0, -18.0, "in the front-right"),
    Direction("right", -90.0, -54.0, "on the right side"),
)

# Ways to say the five classes. Trainings and scenes use the first one where nothing else is said.
PHRASE_SETS: dict[str, tuple[str, ...]] = {
    "side": tuple(direction.phrase for direction in STEREO_DIRECTIONS),
    "ahead": (
        "to the left",
        "ahead on the left",
        "straight ahead",
        "ahead on the right",
        "to the right",
    ),
    "stage": ("at the far left", "half left", "in the middle", "half right", "at the far right"),
    "from": (
        "from the left",
        "from the front left",
        "from the front",
        "from the front right",
        "from the right",
    ),
}


def phrase_set(name: str) -> tuple[str, ...]:
    """The phrases of the five direction classes in one of the `PHRASE_SETS`.

    Args:
      name: of the set.

    Returns:
      A phrase a class, in the order of `STEREO_DIRECTIONS`.

    Raises:
      InputError: there is no such set.

    Reference: 'side' is of sarulab-speech/Moving-CLAP, the others are our choice.
    """
    if name not in PHRASE_SETS:
        raise InputError(f"phrases: {name!r} is none of the sets {', '.join(PHRASE_SETS)}.")
    return PHRASE_SETS[name]


def direction_index(azimuth_deg: float) -> int:
    """Index into `STEREO_DIRECTIONS` of an azimuth.

    An azimuth on an edge belongs to the class nearer to the front, so that
    mirroring an azimuth always mirrors its class.

    Args:
      azimuth_deg: azimuth in degrees, counter-clockwise, in [-90, 90].

    Returns:
      0 (left) to 4 (right).

    Raises:
      InputError: the azimuth is not in the frontal half-plane.

    Reference: sarulab-speech/Moving-CLAP (edges); the rule for edges is our choice.

    Example:
      >>> direction_index(18.0), direction_index(18.1), direction_index(-18.1)
      (2, 1, 3)
    """
    if not abs(azimuth_deg) <= 90:
        raise InputError(
            f"azimuth_deg {azimuth_deg:g} is outside [-90, 90]; a stereo pair cannot tell front "
            "from back, so give places in the frontal half-plane (+90 is left)."
        )
    distance = abs(azimuth_deg)
    steps = 0 if distance <= 18 else 1 if distance <= 54 else 2
    return 2 - int(math.copysign(steps, azimuth_deg))


def mirror_direction(index: int) -> int:
    """Class of the same place with left and right swapped.

    Args:
      index: 0 (left) to 4 (right).

    Returns:
      The mirrored index: 4 for 0, 3 for 1, 2 for 2.
    """
    if not 0 <= index < len(STEREO_DIRECTIONS):
        raise ValueError(f"index {index} is outside 0..{len(STEREO_DIRECTIONS) - 1}.")
    return len(STEREO_DIRECTIONS) - 1 - index
