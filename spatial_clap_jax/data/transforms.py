"""Augmentation of scene groups on the host.

Each function takes a group and, where it draws, a random generator, and returns a new group; the
input is never written to. Only `swap_channels` and `rotate` change the level or phase difference
between the channels, and they change the azimuths and the captions with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spatial_clap_jax.acoustics.directions import PHRASE_SETS, phrase_set
from spatial_clap_jax.acoustics.foa import rotate_foa
from spatial_clap_jax.acoustics.spatial_captions import PHRASINGS
from spatial_clap_jax.acoustics.spatial_words import wrap_deg
from spatial_clap_jax.data.rewritten import Rewritten
from spatial_clap_jax.data.scenes import OWN_WORDING, SceneGroup
from spatial_clap_jax.data.wording import compose, member_places, recomposed, words_of_one
from spatial_clap_jax.errors import InputError


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
    mirrored = dataclasses.replace(
        group, azimuth_deg=-group.azimuth_deg, audio=group.audio[:, ::-1]
    )
    return recomposed(group, mirrored)


def random_swap(
    group: SceneGroup, rng: np.random.Generator, probability: float = 0.5
) -> SceneGroup:
    """`swap_channels` with the given probability; all members of the group or none."""
    return swap_channels(group) if rng.random() < probability else group


def rotate(group: SceneGroup, yaw_deg: float, mirror: bool = False) -> SceneGroup:
    """The field turned about the vertical axis: audio, azimuths and captions together.

    Elevations, distances and the room stay, and so do the contents, templates and mention order of
    the captions. A clip without a place stays as it is: its channels are no field. The audio is
    float32 from then on, for 16 bits would be rounded anew.

    Args:
      group: a group in FOA.
      yaw_deg: how far counter-clockwise.
      mirror: exchange left and right first.

    Raises:
      InputError: the audio has other than four channels, or a stored caption is not composed of the
        group's contents and words.
    """
    channels = group.audio.shape[1]
    if channels != 4:
        raise InputError(
            f"{group.scene_id}: {channels} channels; a rotation turns first-order ambisonics alone;"
            " switch `rotate` off."
        )
    if not len(group.azimuth_deg):
        return group
    side = -1.0 if mirror else 1.0
    azimuths = [wrap_deg(side * azimuth + yaw_deg) for azimuth in group.azimuth_deg.tolist()]
    turned = dataclasses.replace(
        group,
        audio=rotate_foa(group.audio.astype(np.float32), yaw_deg, mirror),
        azimuth_deg=np.array(azimuths, np.float32),
    )
    return recomposed(group, turned)


def tell_rewritten(
    group: SceneGroup,
    rng: np.random.Generator,
    rewrites: Mapping[tuple[str, int], Rewritten],
    share: float,
) -> SceneGroup:
    """With a probability, the caption of a language model in place of the template.

    Such a group is neither rotated nor reworded after that: its wording is its own. Where its words
    are no longer those that the rewrites say, the template stays.

    Args:
      group: a group of one source or none, as it was rendered; others stay as they are.
      rng: source of the draws.
      rewrites: see `read_rewrites`.
      share: the probability, where there is a rewrite.
    """
    found = rewrites.get((group.scene_id, 0))
    if found is None or len(group.captions) != 1 or found.words != words_of_one(group):
        return group
    if rng.random() >= share:
        return group
    caption = found.captions[int(rng.integers(len(found.captions)))]
    return dataclasses.replace(group, captions=(caption,), phrasing=OWN_WORDING)


def random_rotation(group: SceneGroup, rng: np.random.Generator) -> SceneGroup:
    """`rotate` by a drawn angle, every second time mirrored; all members of the group alike.

    A group of a wording of its own stays: it cannot be told anew.
    """
    if group.phrasing == OWN_WORDING:
        return group
    return rotate(group, float(rng.uniform(-180.0, 180.0)), bool(rng.random() < 0.5))


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

    The phrasing of a clip and that of places are drawn once for the group, so that the captions of
    its members differ in place and order alone; the mention order is drawn for each member, so
    that it never tells the place.

    Args:
      group: the group; only its captions change.
      rng: source of the draws.
      phrases: names of the sets of stereo direction phrases that one is drawn from; a group with
        the words of ELSA draws from all templates.

    Reference:
      Our choice.
    """
    if group.phrasing == OWN_WORDING:
        return group
    contents = [options[rng.integers(len(options))] for options in group.contents]
    if group.words == "elsa":
        phrasing = int(rng.integers(PHRASINGS))
    else:
        phrasing = _set_number(phrases[0 if len(phrases) == 1 else int(rng.integers(len(phrases)))])
    captions = tuple(
        compose(group, contents, places, rng.permutation(len(contents)).tolist(), phrasing)
        for places in member_places(group)
    )
    return dataclasses.replace(group, captions=captions, phrasing=phrasing)


def rephrase(group: SceneGroup, phrases: str | int) -> SceneGroup:
    """The stored captions in another phrasing; contents and order stay.

    Args:
      group: the group; only its captions change.
      phrases: name of a set of stereo direction phrases; with the words of ELSA, the number of a
        template, below `PHRASINGS`.

    Raises:
      InputError: no such set or template, or a stored caption is not composed of the group's
        contents and places.
    """
    if group.words == "elsa":
        if not isinstance(phrases, int) or not 0 <= phrases < PHRASINGS:
            raise InputError(
                f"phrases: {phrases!r} is no template of {group.scene_id}, whose words are those "
                f"of ELSA; give a number in 0..{PHRASINGS - 1}."
            )
        return recomposed(group, dataclasses.replace(group, phrasing=phrases))
    return recomposed(group, dataclasses.replace(group, phrasing=_set_number(str(phrases))))


def _set_number(name: str) -> int:
    phrase_set(name)
    return list(PHRASE_SETS).index(name)
