"""Captions of places all round: direction, elevation, distance, and once the room."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from spatial_clap_jax.acoustics.captions import join_clauses
from spatial_clap_jax.acoustics.spatial_words import (
    DIRECTIONS,
    REVERBERATIONS,
    ROOM_SIZES,
    SpatialWords,
)

_DIRECTIONS = (
    "from the {}",
    "coming from the {}",
    "on the {} side",
    "towards the {}",
    "at the {}",
    "somewhere to the {}",
)
_ELEVATIONS = (
    {"up": "up high", "down": "down low"},
    {"up": "from up above", "down": "from down below"},
    {"up": "further up", "down": "further down"},
)
_DISTANCES = (
    {"near": "near the listener", "far": "far from the listener"},
    {"near": "very near", "far": "far away"},
    {"near": "at near range", "far": "at far range"},
)
_ORDERS = tuple(itertools.permutations(range(3)))


@dataclass(frozen=True)
class _RoomFrame:
    """Where a caption speaks of the room: before, after, and between the two words for it."""

    before: str
    after: str
    between: str


_ROOMS = (
    _RoomFrame("", " in {article} {words} room", ", "),
    _RoomFrame("in {article} {words} room, ", "", " and "),
    _RoomFrame("", ", inside {article} {words} room", " and "),
    _RoomFrame("", "; the room is {words}", " and "),
)
_SHAPE = tuple(map(len, (_DIRECTIONS, _ELEVATIONS, _DISTANCES, _ORDERS, _ROOMS)))

# How many ways there are to say the words of a scene; a caption's way is a number below.
PHRASINGS = math.prod(_SHAPE)


def compose_spatial_caption(
    contents: Sequence[str],
    words: Sequence[SpatialWords],
    order: Sequence[int] | None = None,
    phrasing: int = 0,
) -> str:
    """Caption of a scene: each content with the words of its place, and the room's words once.

    Args:
      contents: k contents such as 'a dog barks'; a final period is dropped.
      words: those of each source, aligned with `contents`; all agree on the room. Empty for a
        clip without a place.
      order: the sources in the order of mention; None keeps that of `contents`.
      phrasing: 0 to `PHRASINGS` - 1, which of the templates.

    Returns:
      One lower-case sentence. A word that is None leaves no trace, so that a clip without a place
      is its content alone.

    Raises:
      InputError: a content is empty.

    Reference: ELSA, arXiv 2409.11369 (what is said); the templates are our choice.

    Example:
      >>> one = SpatialWords("left", None, "near", "small", None)
      >>> compose_spatial_caption(["a dog barks"], [one])
      'a dog barks from the left, near the listener in a small room.'
    """
    words = words or [SpatialWords()] * len(contents)
    if len(contents) != len(words) or not contents:
        raise ValueError(
            f"{len(contents)} contents and words of {len(words)} places; give words for each of at "
            "least one content."
        )
    if len({(one.room_size, one.reverberation) for one in words}) > 1:
        raise ValueError(f"words {words} speak of several rooms; a scene has one.")
    if not 0 <= phrasing < PHRASINGS:
        raise ValueError(f"phrasing {phrasing} must lie in 0..{PHRASINGS - 1}.")
    *of_place, of_room = _choices(phrasing)
    clauses = join_clauses(contents, [_place(one, *of_place) for one in words], order)
    return _in_room(clauses, words[0], _ROOMS[of_room]) + "."


def spatial_phrases() -> tuple[str, ...]:
    """Everything that the templates add to contents, piece by piece, for a vocabulary."""
    places = [
        *(piece.format(word) for piece in _DIRECTIONS for word in DIRECTIONS),
        *(said for piece in (*_ELEVATIONS, *_DISTANCES) for said in piece.values()),
    ]
    rooms = [
        _in_room("", SpatialWords(room_size=size, reverberation=reverberation), frame)
        for frame in _ROOMS
        for size in (None, *ROOM_SIZES)
        for reverberation in (None, *REVERBERATIONS)
        if size or reverberation
    ]
    return tuple(dict.fromkeys(phrase.strip(" ,;") for phrase in (*places, *rooms)))


def _choices(phrasing: int) -> list[int]:
    """The digits of a phrasing, one for each list of templates."""
    digits = []
    for base in reversed(_SHAPE):
        phrasing, digit = divmod(phrasing, base)
        digits.append(digit)
    return digits[::-1]


def _place(words: SpatialWords, direction: int, elevation: int, distance: int, order: int) -> str:
    pieces = (
        _DIRECTIONS[direction].format(words.direction) if words.direction else "",
        _ELEVATIONS[elevation][words.elevation] if words.elevation else "",
        _DISTANCES[distance][words.distance] if words.distance else "",
    )
    return ", ".join(pieces[piece] for piece in _ORDERS[order] if pieces[piece])


def _in_room(scene: str, words: SpatialWords, frame: _RoomFrame) -> str:
    said = [word for word in (words.room_size, words.reverberation) if word]
    if not said:
        return scene
    article = "an" if said[0][0] in "aeiou" else "a"
    fill = {"article": article, "words": frame.between.join(said)}
    return frame.before.format(**fill) + scene + frame.after.format(**fill)
