"""The draw of a scene group: clips, a room, places, levels, words; then its mixtures."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import soxr
from jaxtyping import Float32, Int32, Int64

from spatial_clap_jax.acoustics.bands import BANDS_HZ
from spatial_clap_jax.acoustics.directions import direction_index
from spatial_clap_jax.acoustics.foa import mono_as_foa
from spatial_clap_jax.acoustics.receivers import Mono
from spatial_clap_jax.acoustics.render import quantise_jointly, render_members
from spatial_clap_jax.acoustics.rirs import RirRoom
from spatial_clap_jax.acoustics.spatial_captions import PHRASINGS
from spatial_clap_jax.acoustics.spatial_words import direction_word
from spatial_clap_jax.data.scenes import SceneGroup, SceneRecipe, Words
from spatial_clap_jax.data.sources import Clip, at_active_level, fit_clip
from spatial_clap_jax.data.wording import compose, member_places
from spatial_clap_jax.errors import InputError

# Active level of a source at 1 m, in dB of full scale, so that mixtures are about as loud as
# recordings are. What is stored is scaled to its own peak; `scale` keeps the level.
REFERENCE_LEVEL_DB = -30.0


@runtime_checkable
class Material(Protocol):
    """What groups are drawn from; see `data/material.py`."""

    @property
    def contents(self) -> Mapping[str, Sequence[Sequence[Clip]]]:
        """The usable clips of each split (train, validation, test), as `by_content` sorts them."""
        ...

    @property
    def clips(self) -> Mapping[str, Sequence[Clip]]:
        """The same clips, in the order of their source."""
        ...

    @property
    def rooms(self) -> Mapping[str, Sequence[RirRoom]]:
        """The rooms of each split, impulse responses already high-passed."""
        ...

    def load(self, clip: Clip, sample_rate_hz: int) -> Float32[np.ndarray, "t"]:
        """Samples of a clip, mono."""
        ...


# Where a clip without a place is.
NO_ROOM = RirRoom(
    name="",
    size_m=(0.0, 0.0, 0.0),
    t60_s=0.0,
    rirs=np.zeros((0, 4, 0), np.float32),
    azimuth_deg=np.zeros(0, np.float32),
    elevation_deg=np.zeros(0, np.float32),
    distance_m=np.zeros(0, np.float32),
    sample_rate_hz=0,
    t30_s=np.zeros(0, np.float32),
    drr_bands_db=np.zeros((0, len(BANDS_HZ)), np.float32),
    t30_bands_s=np.zeros((0, len(BANDS_HZ)), np.float32),
)


def draw_group(
    recipe: SceneRecipe, material: Material, split: str, k: int, index: int
) -> SceneGroup:
    """Draw and render one scene group; a pure function of its arguments.

    Which worker calls it, and what was drawn before, makes no difference.

    Args:
      recipe: what scenes are wanted.
      material: clips and rooms.
      split: 'train', 'validation' or 'test'.
      k: number of sources; 0 for a plain clip.
      index: number of the group in its split.

    Returns:
      The group: k clips of different categories (different recordings where there are no
      categories) at k places of one room. In stereo they are in different direction classes; with
      the words of ELSA, two or more have different words for their directions. For a `Mono`
      receiver a clip by itself, in one channel: each clip of the split before any a second time.

    Raises:
      InputError: the split has no clips or too few categories, or no room with k direction classes.

    Reference: Spatial-CLAP, arXiv 2509.14785 (permuted pairs); the rest is our choice.
    """
    seed = group_seed(recipe.seed, split, k, index)
    rng = np.random.default_rng(seed)
    is_mono = isinstance(recipe.receiver, Mono)
    if is_mono:
        clips = [_clip_in_turn(material.clips[split], recipe.seed, split, index)]
    else:
        clips = _draw_clips(material.contents[split], max(k, 1), rng, split)
    if k:
        room, places = _draw_places(material.rooms[split], k, recipe.words, rng, split)
    else:
        room, places = NO_ROOM, []
    permutations = draw_permutations(k, recipe.permutations_k3, rng)
    dry = np.stack([_dry(recipe, material, clip, split, rng) for clip in clips])
    if k:
        mixtures = render_members(dry, room.rirs[places], permutations)
    else:
        mixtures = dry[:, None] if is_mono else mono_as_foa(dry)
    audio, scale = quantise_jointly(mixtures)
    contents = tuple(clip.captions for clip in clips)
    wording = [options[rng.integers(len(options))] for options in contents]
    order = [int(i) for i in rng.permutation(len(clips))]
    group = SceneGroup(
        scene_id=f"{split}_k{k}/{index:07d}",
        audio=audio,
        scale=float(np.float32(scale)),
        sample_rate_hz=recipe.sample_rate_hz,
        clips=tuple(clip.clip_id for clip in clips),
        categories=tuple(clip.category for clip in clips),
        contents=contents,
        azimuth_deg=np.asarray(room.azimuth_deg[places], np.float32),
        elevation_deg=np.asarray(room.elevation_deg[places], np.float32),
        distance_m=np.asarray(room.distance_m[places], np.float32),
        permutations=permutations,
        captions=(),
        room=room.name,
        room_size_m=np.asarray(room.size_m, np.float32),
        t60_s=float(np.float32(room.t60_s)),
        t30_s=np.asarray(room.t30_s[places], np.float32),
        drr_bands_db=np.asarray(room.drr_bands_db[places], np.float32),
        t30_bands_s=np.asarray(room.t30_bands_s[places], np.float32),
        words=recipe.words,
        phrasing=int(rng.integers(PHRASINGS)) if recipe.words == "elsa" else 0,
        seed=seed,
    )
    captions = tuple(
        compose(group, wording, said, order, group.phrasing) for said in member_places(group)
    )
    return dataclasses.replace(group, captions=captions)


def group_seed(seed: int, split: str, k: int, index: int) -> int:
    """The number, below 2**63, that the draw of one group starts from."""
    sequence = np.random.SeedSequence((seed, zlib.crc32(split.encode()), k, index))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw_permutations(
    k: int, most_of_three: int, rng: np.random.Generator
) -> Int32[np.ndarray, "p k"]:
    """Permutations of k clips over k places: the identity first, then others in drawn order.

    Args:
      k: number of sources.
      most_of_three: members wanted where k = 3; one and two sources always get all.
      rng: where the draw comes from.

    Returns:
      One row a member.

    Example:
      >>> draw_permutations(2, 6, np.random.default_rng(0)).tolist()
      [[0, 1], [1, 0]]
    """
    identity, *others = itertools.permutations(range(k))
    wanted = most_of_three if k == 3 else len(others) + 1
    drawn = [others[i] for i in rng.permutation(len(others))[: wanted - 1]]
    return np.array([identity, *drawn], np.int32)


def by_content(clips: Iterable[Clip]) -> tuple[tuple[Clip, ...], ...]:
    """Clips sorted into contents: those of a category, or, without one, of a recording."""
    contents: dict[tuple[str, str], list[Clip]] = {}
    for clip in clips:
        contents.setdefault((clip.category, "" if clip.category else clip.recording), []).append(
            clip
        )
    return tuple(tuple(same) for same in contents.values())


def _clip_in_turn(clips: Sequence[Clip], seed: int, split: str, index: int) -> Clip:
    """The clip of a group: all clips in a drawn order, then all in another."""
    if not clips:
        raise InputError(
            f"split {split!r} has no clips; give some, or ask for no such groups (group_counts)."
        )
    turn, position = divmod(index, len(clips))
    return clips[_turn(group_seed(seed, f"turns {split}", 0, turn), len(clips))[position]]


@functools.lru_cache(maxsize=4)
def _turn(seed: int, count: int) -> Int64[np.ndarray, "n"]:
    return np.random.default_rng(seed).permutation(count)


def _draw_clips(
    contents: Sequence[Sequence[Clip]], k: int, rng: np.random.Generator, split: str
) -> list[Clip]:
    """K clips of different contents and recordings; each content is as likely as another."""
    # A recording that lies in several categories can block a draw, hardly many in a row.
    for _ in range(100):
        drawn: list[Clip] = []
        for index in rng.permutation(len(contents)):
            taken = {clip.recording for clip in drawn}
            free = [clip for clip in contents[index] if clip.recording not in taken]
            if free:
                drawn.append(free[rng.integers(len(free))])
            if len(drawn) == k:
                return drawn
    raise InputError(
        f"split {split!r} has clips of {len(contents)} categories or recordings, and a scene of "
        f"{k} sources needs {k} different ones; give more clips, or ask for no such scenes "
        "(group_counts)."
    )


def _draw_places(
    rooms: Sequence[RirRoom], k: int, words: Words, rng: np.random.Generator, split: str
) -> tuple[RirRoom, list[int]]:
    """A room, and k of its places in directions that words tell apart."""
    first = int(rng.integers(len(rooms)))
    for step in range(len(rooms)):
        room = rooms[(first + step) % len(rooms)]
        if words == "elsa" and k == 1:
            # A single source may stand where there is no word.
            return room, [int(rng.integers(len(room.azimuth_deg)))]
        by_class: dict[int | str, list[int]] = {}
        angles = zip(room.azimuth_deg.tolist(), room.elevation_deg.tolist(), strict=True)
        for place, (azimuth, elevation) in enumerate(angles):
            told = _told_apart(azimuth, elevation, words)
            if told is not None:
                by_class.setdefault(told, []).append(place)
        if len(by_class) >= k:
            classes = rng.permutation(sorted(by_class))[:k]
            return room, [by_class[c][rng.integers(len(by_class[c]))] for c in classes.tolist()]
    where = " of the frontal half-plane" if words == "stereo" else ""
    raise InputError(
        f"no room of split {split!r} has places in {k} direction classes{where}; give rooms with "
        "more places."
    )


def _told_apart(azimuth_deg: float, elevation_deg: float, words: Words) -> int | str | None:
    """The class or word of a direction; None where it has none."""
    if words == "elsa":
        return direction_word(azimuth_deg, elevation_deg)
    return direction_index(azimuth_deg) if abs(azimuth_deg) <= 90 else None


def _dry(
    recipe: SceneRecipe, material: Material, clip: Clip, split: str, rng: np.random.Generator
) -> Float32[np.ndarray, "t"]:
    """A clip as long as the mixture."""
    return dry_signal(
        material.load(clip, recipe.sample_rate_hz),
        recipe.sample_rate_hz,
        recipe.length,
        rng,
        recipe.clip_fit,
        recipe.speed_range if split == "train" else (1.0, 1.0),
        recipe.level_range_db,
        recipe.level,
    )


def dry_signal(
    audio: Float32[np.ndarray, "t"],
    sample_rate_hz: int,
    length: int,
    rng: np.random.Generator,
    clip_fit: Literal["tile", "pad"],
    speed_range: tuple[float, float],
    level_range_db: float,
    level: Literal["reference", "recorded"] = "reference",
) -> Float32[np.ndarray, "u"]:
    """A clip at a drawn speed, a length and a drawn level around the reference or its own.

    Args:
      audio: the clip.
      sample_rate_hz: its rate.
      length: samples wanted.
      rng: what is drawn from.
      clip_fit: what becomes of a clip that is too short; see `fit_clip`.
      speed_range: playing speeds; (1, 1) draws none.
      level_range_db: most by which the active level differs from -30 dB of full scale, or from
        that of the clip.
      level: see `SceneRecipe`.

    Returns:
      The signal as it is 1 m from its source, without a room.
    """
    if speed_range != (1.0, 1.0):
        speed = rng.uniform(*speed_range)
        audio = soxr.resample(audio, sample_rate_hz * speed, sample_rate_hz)
    audio = fit_clip(audio, length, rng, clip_fit)
    level_db = rng.uniform(-level_range_db, level_range_db)
    if level == "reference":
        return at_active_level(audio, REFERENCE_LEVEL_DB + level_db)
    return audio * np.float32(10 ** (level_db / 20))
