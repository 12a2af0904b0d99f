"""Augmentation of scene groups on the host.

Each function takes a group and, where it draws, a random generator, and returns a new group; the
input is never written to. Only `swap_channels` changes the level or phase difference between the
channels, and it changes the azimuths and the captions with it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from spatial_clap_jax.acoustics.captions import compose_caption
from spatial_clap_jax.acoustics.directions import direction_index, phrase_set
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.errors import InputError


def member_directions(group: SceneGroup) -> list[list[int]]:
    """Direction class of each clip in each member.

    Returns:
      p lists of k indices into `STEREO_DIRECTIONS`, in the order of `group.clips`.

    Example:
      Places at +70 and 0 degrees, permutations [[0, 1], [1, 0]]: [[0, 2], [2, 0]].
    """
    places = [direction_index(float(azimuth)) for azimuth in group.azimuth_deg]
    return [[places[place] for place in row] for row in group.permutations]


def draw_member(group: SceneGroup, rng: np.random.Generator) -> SceneGroup:
    """One member of the group, as a group of its own; its permutation need not be the identity."""
    return take_members(group, [int(rng.integers(len(group.captions)))])


def draw_member_among_rivals(group: SceneGroup, rng: np.random.Generator) -> SceneGroup:
    """`draw_member` that keeps the captions of the others, as `rivals`."""
    drawn = int(rng.integers(len(group.captions)))
    others = group.captions[:drawn] + group.captions[drawn + 1 :]
    return dataclasses.replace(take_members(group, [drawn]), rivals=others)


def take_members(group: SceneGroup, members: Sequence[int]) -> SceneGroup:
    """Some members of the group, by number and in this order, as a group of their own."""
    taken = list(members)
    return dataclasses.replace(
        group,
        audio=group.audio[taken],
        permutations=group.permutations[taken],
        captions=tuple(group.captions[i] for i in taken),
    )


def joint_gain(
    group: SceneGroup, rng: np.random.Generator, range_db: tuple[float, float]
) -> SceneGroup:
    """One drawn gain for all members and channels, so that no difference between them changes.

    Args:
      group: the group; only its `scale` changes.
      rng: source of the draw.
      range_db: lowest and highest gain in dB, drawn uniformly.
    """
    return dataclasses.replace(group, scale=group.scale * 10.0 ** (rng.uniform(*range_db) / 20.0))


def swap_channels(group: SceneGroup) -> SceneGroup:
    """Left becomes right: the channels change places, azimuths and captions are mirrored.

    The captions keep their wording and their mention order; only their direction phrases change.
    Swapped twice, a group is what it was.

    Raises:
      InputError: the audio has other than two channels, or a stored caption is not composed of the
        group's contents and directions.
    """
    channels = group.audio.shape[1]
    if channels != 2:
        raise InputError(
            f"{group.scene_id}: {channels} channels; a channel swap mirrors stereo alone; switch"
            " `swap` off."
        )
    before = member_directions(group)
    mirrored = dataclasses.replace(group, azimuth_deg=-group.azimuth_deg)
    captions = []
    for caption, old, new in zip(group.captions, before, member_directions(mirrored), strict=True):
        contents, order = _wording(group, caption, old)
        captions.append(compose_caption(contents, new, order))
    return dataclasses.replace(mirrored, audio=group.audio[:, ::-1], captions=tuple(captions))


def random_swap(
    group: SceneGroup, rng: np.random.Generator, probability: float = 0.5
) -> SceneGroup:
    """`swap_channels` with the given probability; all members of the group or none."""
    return swap_channels(group) if rng.random() < probability else group


def time_shift(group: SceneGroup, rng: np.random.Generator) -> SceneGroup:
    """Circular shift in time by a drawn number of samples, one a member, alike in all channels."""
    members, _, samples = group.audio.shape
    audio = np.empty(group.audio.shape, group.audio.dtype)
    for i, shift in enumerate(rng.integers(samples, size=members)):
        audio[i, :, shift:] = group.audio[i, :, : samples - shift]
        audio[i, :, :shift] = group.audio[i, :, samples - shift :]
    return dataclasses.replace(group, audio=audio)


def redraw_captions(
    group: SceneGroup, rng: np.random.Generator, phrases: Sequence[str] = ("side",)
) -> SceneGroup:
    """Captions drawn anew from the contents; what is said of whom and where stays true.

    The phrasing of a clip and the set of direction phrases are drawn once for the group, so that
    the captions of its members differ in place and order alone; the mention order is drawn for each
    member, so that it never tells the place.

    Args:
      group: the group; only its captions change.
      rng: source of the draws.
      phrases: names of the sets of direction phrases that one is drawn from.

    Reference:
      Our choice.
    """
    contents = [options[rng.integers(len(options))] for options in group.contents]
    said = phrase_set(phrases[0 if len(phrases) == 1 else int(rng.integers(len(phrases)))])
    captions = tuple(
        compose_caption(contents, directions, rng.permutation(len(contents)).tolist(), said)
        for directions in member_directions(group)
    )
    return dataclasses.replace(group, captions=captions)


def rephrase(group: SceneGroup, phrases: str) -> SceneGroup:
    """The stored captions with another set of direction phrases; contents and order stay.

    Raises:
      InputError: no such set, or a stored caption is not composed of the group's contents and
        directions.
    """
    captions = []
    for caption, directions in zip(group.captions, member_directions(group), strict=True):
        contents, order = _wording(group, caption, directions)
        captions.append(compose_caption(contents, directions, order, phrase_set(phrases)))
    return dataclasses.replace(group, captions=tuple(captions))


def _wording(
    group: SceneGroup, caption: str, directions: Sequence[int]
) -> tuple[Sequence[str], Sequence[int]]:
    """The contents and the mention order that compose to `caption`."""
    orders = list(itertools.permutations(range(len(directions))))
    for contents in itertools.product(*group.contents):
        for order in orders:
            if compose_caption(contents, directions, order) == caption:
                return contents, order
    raise InputError(
        f"{group.scene_id}: caption {caption!r} is not composed of the scene's contents and"
        " directions; render the scenes again, or switch `swap` off."
    )
