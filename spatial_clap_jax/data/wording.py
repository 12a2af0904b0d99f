"""What the members of a scene group say, in the style of words that the group has."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

from spatial_clap_jax.acoustics.captions import (
    bare_content,
    compose_caption,
    join_clauses,
    labels_of,
)
from spatial_clap_jax.acoustics.directions import PHRASE_SETS, direction_index
from spatial_clap_jax.acoustics.spatial_captions import compose_spatial_caption
from spatial_clap_jax.acoustics.spatial_words import (
    DIRECTIONS_8,
    SpatialWords,
    direction_word_8,
    spatial_words,
)
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.errors import InputError

# What a caption says of the place of one source: a stereo class or words.
Said = int | SpatialWords


def member_directions(group: SceneGroup) -> list[list[int]]:
    """Direction class of each clip in each member.

    Returns:
      p lists of k indices, in the order of `group.clips`: into `STEREO_DIRECTIONS`, or, of a group
      with the words of ELSA, into `DIRECTIONS_8`.

    Example:
      Stereo places at +70 and 0 degrees, permutations [[0, 1], [1, 0]]: [[0, 2], [2, 0]].
    """
    azimuths = [float(azimuth) for azimuth in group.azimuth_deg]
    if group.words == "stereo":
        places = [direction_index(azimuth) for azimuth in azimuths]
    else:
        places = [DIRECTIONS_8.index(direction_word_8(azimuth)) for azimuth in azimuths]
    return [[places[place] for place in row] for row in group.permutations]


def member_words(group: SceneGroup) -> list[list[SpatialWords]]:
    """Words of ELSA for each clip in each member.

    The reverberation differs a little from place to place: a word for it is said where all places
    of the group have the same.

    Returns:
      p lists of k `SpatialWords`, in the order of `group.clips`; of a clip without a place, an
      empty list.
    """
    floor_area_m2 = float(group.room_size_m[0] * group.room_size_m[1])
    numbers = (group.azimuth_deg, group.elevation_deg, group.distance_m, group.t30_s)
    places = [
        spatial_words(azimuth, elevation, distance, floor_area_m2, t30)
        for azimuth, elevation, distance, t30 in zip(*(n.tolist() for n in numbers), strict=True)
    ]
    if len({place.reverberation for place in places}) > 1:
        places = [dataclasses.replace(place, reverberation=None) for place in places]
    return [[places[place] for place in row] for row in group.permutations]


def words_of_one(group: SceneGroup) -> SpatialWords:
    """What is true of a single source, see `member_words`; nothing of a clip without a place."""
    (words, *_) = member_words(group)[0] or [SpatialWords()]
    return words


def member_places(group: SceneGroup) -> Sequence[Sequence[Said]]:
    """What the captions of the members say of each clip's place, in the group's style."""
    return member_directions(group) if group.words == "stereo" else member_words(group)


def compose(
    group: SceneGroup,
    contents: Sequence[str],
    places: Sequence[Said],
    order: Sequence[int],
    phrasing: int,
) -> str:
    """The caption of one member in the group's style.

    Args:
      group: tells the style.
      contents: one for each clip.
      places: an item of `member_places`.
      order: the clips in the order of mention.
      phrasing: number of a set in `PHRASE_SETS`, or of a template of `compose_spatial_caption`.

    Returns:
      A sentence; of a clip without a place its content alone, with a period.
    """
    if not places:
        return plain_caption(contents[0])
    if group.words == "stereo":
        directions = [place for place in places if isinstance(place, int)]
        phrases = tuple(PHRASE_SETS.values())[phrasing]
        return compose_caption(contents, directions, order, phrases)
    words = [place for place in places if isinstance(place, SpatialWords)]
    return compose_spatial_caption(contents, words, order, phrasing)


def plain_caption(content: str) -> str:
    """The caption of a clip without a place.

    Example:
      >>> plain_caption("a dog barks")
      'a dog barks.'
    """
    return join_clauses([content], [""]) + "."


def contents_and_order(
    group: SceneGroup, caption: str, places: Sequence[Said]
) -> tuple[Sequence[str], Sequence[int]]:
    """The contents and the mention order that compose to a stored caption.

    Args:
      group: whose contents and phrasing the caption has.
      caption: of one member.
      places: of that member, from `member_places`.

    Raises:
      InputError: there are none.
    """
    options = [
        [one for one in of_clip if bare_content(one) in caption] for of_clip in group.contents
    ]
    orders = list(itertools.permutations(range(len(options))))
    for contents in itertools.product(*options):
        for order in orders:
            if compose(group, contents, places, order, group.phrasing) == caption:
                return contents, order
    raise InputError(
        f"{group.scene_id}: caption {caption!r} is not composed of the scene's contents and"
        " directions; render the scenes again, or switch `swap` and `rotate` off."
    )


def recomposed(before: SceneGroup, after: SceneGroup) -> SceneGroup:
    """`after` with the captions of `before`, told of the places and in the phrasing of `after`.

    Contents and mention order stay.

    Raises:
      InputError: a caption of `before` is not composed of its contents and places.
    """
    captions = []
    for caption, old, new in zip(
        before.captions, member_places(before), member_places(after), strict=True
    ):
        contents, order = contents_and_order(before, caption, old)
        captions.append(compose(after, contents, new, order, after.phrasing))
    return dataclasses.replace(after, captions=tuple(captions))


def meanings(group: SceneGroup) -> list[int]:
    """A number for what each member of the group says: which contents at which places.

    A content is known by its category, or by its captions where it has none: two clips of the same
    words cannot be told apart by words. Of several labels the order does not count. A place is
    known by its direction class or, with the words of ELSA, by the set of its words. The order of
    the sources does not count. The numbers are the same in every process and run.

    Returns:
      p numbers, each in the range of int32.
    """
    contents = [
        f"category {';'.join(sorted(labels_of(category)))}"
        if category
        else f"captions {sorted(map(str.lower, contents))}"
        for category, contents in zip(group.categories, group.contents, strict=True)
    ]
    numbers = []
    for places in member_places(group):
        told = _told(places) or [""] * len(contents)
        clauses = sorted(f"{p} {c}".strip() for c, p in zip(contents, told, strict=True))
        numbers.append(number_of("\n".join(clauses)))
    return numbers


def number_of(text: str) -> int:
    """A 32-bit number for a text, the same in every process and run (unlike `hash`)."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def _told(places: Sequence[Said]) -> list[str]:
    """Each place as text; nothing for one of which nothing is said."""
    return [
        str(place) if isinstance(place, int) else " ".join(filter(None, dataclasses.astuple(place)))
        for place in places
    ]
