"""What scenes of one source are asked about their place and room, and what is true of each."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from spatial_clap_jax.acoustics.spatial_words import (
    DIRECTIONS,
    DIRECTIONS_8,
    DISTANCES,
    ELEVATIONS,
    REVERBERATIONS,
    STEEPEST_DEG,
    direction_word,
    direction_word_8,
    distance_word,
    elevation_word,
    reverberation_word,
    room_size_word,
)
from spatial_clap_jax.metrics.embedded import Places


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A question with a fixed set of answers.

    Attributes:
      words: the answers.
      said: each as it follows 'a sound coming from'.
      of_room: whether the answer is the room's, and so that of all its scenes.
    """

    words: tuple[str, ...]
    said: tuple[str, ...]
    of_room: bool = False

    def prompts(self, contents: tuple[str, ...]) -> list[list[str]]:
        """The prompts of each answer, '{content} coming from {answer}.' for every content."""
        return [[f"{content} coming from {said}." for content in contents] for said in self.said]


# The middle size of rooms is no answer: the question is small or large.
_SIZES = ("small", "large")
ATTRIBUTES: dict[str, Attribute] = {
    "direction_4": Attribute(DIRECTIONS, tuple(f"the {word}" for word in DIRECTIONS)),
    "direction_8": Attribute(DIRECTIONS_8, tuple(f"the {word}" for word in DIRECTIONS_8)),
    "elevation": Attribute(ELEVATIONS, ("up above", "down below")),
    "distance": Attribute(DISTANCES, ("near the listener", "far from the listener")),
    "room": Attribute(_SIZES, tuple(f"a {word} room" for word in _SIZES), of_room=True),
    "reverberation": Attribute(
        REVERBERATIONS,
        ("an acoustically dampened room", "a highly reverberant room"),
        of_room=True,
    ),
}


def answers(places: Places) -> dict[str, Int[np.ndarray, "s"]]:
    """The true answer to each of the `ATTRIBUTES`.

    Args:
      places: of scenes of one source.

    Returns:
      By attribute, an index into its words a scene; -1 where no word is true. Steep places have no
      direction, neither of four nor of eight.
    """
    angles = list(zip(places.azimuth_deg.tolist(), places.elevation_deg.tolist(), strict=True))
    said = {
        "direction_4": [direction_word(azimuth, elevation) for azimuth, elevation in angles],
        "direction_8": [
            direction_word_8(azimuth) if abs(elevation) <= STEEPEST_DEG else None
            for azimuth, elevation in angles
        ],
        "elevation": [elevation_word(value) for value in places.elevation_deg.tolist()],
        "distance": [distance_word(value) for value in places.distance_m.tolist()],
        "room": [room_size_word(value) for value in places.floor_area_m2.tolist()],
        "reverberation": [reverberation_word(value) for value in places.t30_s.tolist()],
    }
    return {
        name: np.array([words.index(w) if w in words else -1 for w in said[name]], dtype=int)
        for name, words in ((name, attribute.words) for name, attribute in ATTRIBUTES.items())
    }
