"""Scene groups: the recipe they are drawn by, what one holds, and the draw itself."""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import soxr
from jaxtyping import Float32, Int16, Int32

from spatial_clap_jax.acoustics.captions import compose_caption
from spatial_clap_jax.acoustics.directions import direction_index
from spatial_clap_jax.acoustics.receivers import StereoPair
from spatial_clap_jax.acoustics.render import quantise_jointly, render_members
from spatial_clap_jax.acoustics.rirs import RirRoom
from spatial_clap_jax.acoustics.rooms import RoomRanges
from spatial_clap_jax.data.sources import Clip, SourceOptions, active_level_db, fit_clip
from spatial_clap_jax.errors import InputError

# Active level of a source at 1 m, in dB of full scale, so that mixtures are about as loud as
# recordings are. What is stored is scaled to its own peak; `scale` keeps the level.
_REFERENCE_LEVEL_DB = -30.0


@dataclasses.dataclass(frozen=True)
class RoomCounts:
    """How many rooms are simulated for each split; no room stands in two splits.

    Of measured rooms all are used, divided among the splits in these proportions.
    """

    train: int = 300
    validation: int = 20
    test: int = 40


@dataclasses.dataclass(frozen=True)
class GroupCounts:
    """How many scene groups of k = 1, 2 and 3 sources each split gets; 0 leaves a split out."""

    train_k1: int = 4000
    train_k2: int = 12000
    train_k3: int = 0
    validation_k1: int = 200
    validation_k2: int = 200
    validation_k3: int = 0
    test_k1: int = 400
    test_k2: int = 600
    test_k3: int = 400


@dataclasses.dataclass(frozen=True)
class SceneRecipe:
    """Everything that decides which scenes are rendered, apart from the clips.

    Attributes:
      name: name of the recipe.
      seed: number that every draw starts from.
      sample_rate_hz: rate of the mixtures.
      duration_s: length of a mixture.
      rooms: ranges that simulated rooms are drawn from.
      receiver: the two microphones.
      room_counts: rooms a split.
      places_per_room: source places in a simulated room.
      distance_range_m: distances of places from the receiver.
      high_pass_hz: cutoff of the 4th-order high-pass that the impulse responses get.
      group_counts: scene groups a split and a number of sources.
      permutations_k3: members of a group of three sources, 1 to 6: the identity and others drawn.
      clip_fit: what becomes of a clip that is too short: repeated, or silence around it.
      level_range_db: sources get the same active level, -30 dB of full scale at 1 m, then a gain
        drawn within plus or minus this.
      speed_range: playing speeds drawn for training clips (pitch moves along); (1, 1) for none.
      sources: how the table of clips is read and divided.
    """

    name: str = "small"
    seed: int = 0
    sample_rate_hz: int = 16000
    duration_s: float = 4.0
    rooms: RoomRanges = dataclasses.field(default_factory=RoomRanges)
    receiver: StereoPair = dataclasses.field(default_factory=StereoPair)
    room_counts: RoomCounts = dataclasses.field(default_factory=RoomCounts)
    places_per_room: int = 25
    distance_range_m: tuple[float, float] = (1.0, 2.5)
    high_pass_hz: float = 50.0
    group_counts: GroupCounts = dataclasses.field(default_factory=GroupCounts)
    permutations_k3: int = 6
    clip_fit: Literal["tile", "pad"] = "tile"
    level_range_db: float = 3.0
    speed_range: tuple[float, float] = (0.9, 1.1)
    sources: SourceOptions = dataclasses.field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        named = re.fullmatch(r"\w[\w.-]*", self.name) is not None
        _check(named, "name", self.name, "be letters, digits, '_', '-' and '.'")
        _check(0 <= self.seed < 2**63, "seed", self.seed, "be in 0..2**63-1")
        _check(self.sample_rate_hz >= 8000, "sample_rate_hz", self.sample_rate_hz, "be >= 8000")
        _check(0 < self.duration_s < 3600, "duration_s", self.duration_s, "be above 0, below 3600")
        _check(self.length >= 1, "duration_s", self.duration_s, "hold a sample")
        _check(
            0 < self.high_pass_hz < self.sample_rate_hz / 2,
            "high_pass_hz",
            self.high_pass_hz,
            "lie above 0 and below half the sample rate",
        )
        # The microphones must stand in every room, with a margin from its walls.
        _check(
            self.receiver.spacing_m < self.rooms.width_m[0] - 1,
            "receiver.spacing_m",
            self.receiver.spacing_m,
            f"be at least 1 m less than the narrowest room, {self.rooms.width_m[0]} m",
        )
        _check(
            self.receiver.height_m < self.rooms.height_m[0],
            "receiver.height_m",
            self.receiver.height_m,
            f"be less than the lowest room, {self.rooms.height_m[0]} m",
        )
        _check(self.places_per_room >= 5, "places_per_room", self.places_per_room, "be >= 5")
        _check(
            self.permutations_k3 in range(1, 7),
            "permutations_k3",
            self.permutations_k3,
            "be in 1..6",
        )
        _check(self.level_range_db >= 0, "level_range_db", self.level_range_db, "be >= 0")
        low, high = self.speed_range
        _check(
            0.5 <= low <= high <= 2,
            "speed_range",
            self.speed_range,
            "be two numbers, 0.5 <= low <= high <= 2",
        )
        for counts in ("room_counts", "group_counts"):
            for split, value in dataclasses.asdict(getattr(self, counts)).items():
                _check(value >= 0, f"{counts}.{split}", value, "be >= 0")
        _check(bool(self.splits()), "group_counts", self.group_counts, "ask for some groups")

    @property
    def length(self) -> int:
        """Samples in a mixture."""
        return round(self.duration_s * self.sample_rate_hz)

    def splits(self) -> dict[str, int]:
        """Groups in each split that has any, by name: `train_k1`, `train_k2`, ... `test_k3`."""
        counts = dataclasses.asdict(self.group_counts)
        return {name: count for name, count in counts.items() if count > 0}


@dataclasses.dataclass(frozen=True)
class SceneGroup:
    """The same k clips and the same k places, in p permutations of clips over places.

    Attributes:
      scene_id: unique in its dataset: `{split}_k{k}/{index}`.
      audio: the p mixtures, stereo (L, R), in units of `scale`.
      scale: `audio * scale` is the sound pressure; one number for the whole group.
      sample_rate_hz: rate of `audio`.
      clips: ids of the k dry clips.
      categories: their categories, '' where unknown.
      contents: for each clip, the content captions that it may be described with.
      azimuth_deg: azimuths of the k places, counter-clockwise, 0 ahead, +90 left.
      elevation_deg: their elevations, up positive.
      distance_m: their distances from the receiver.
      permutations: clip j of member i stands at place `permutations[i, j]`; row 0 is the identity.
      captions: the stored caption of each member; they differ in nothing but who is where.
      room: name of the room.
      room_size_m: its length, width and height (0 where a measured room does not say).
      t60_s: its reverberation time, measured from the impulse responses.
      seed: the number that the whole draw of this group started from.
      rivals: captions of permutations whose mixtures are not in `audio`; never stored.
    """

    scene_id: str
    audio: Int16[np.ndarray, "p c t"]
    scale: float
    sample_rate_hz: int
    clips: tuple[str, ...]
    categories: tuple[str, ...]
    contents: tuple[tuple[str, ...], ...]
    azimuth_deg: Float32[np.ndarray, "k"]
    elevation_deg: Float32[np.ndarray, "k"]
    distance_m: Float32[np.ndarray, "k"]
    permutations: Int32[np.ndarray, "p k"]
    captions: tuple[str, ...]
    room: str
    room_size_m: Float32[np.ndarray, "3"]
    t60_s: float
    seed: int
    rivals: tuple[str, ...] = ()

    def waveforms(self) -> Float32[np.ndarray, "p c t"]:
        """The mixtures as float32, `audio * scale`."""
        return self.audio.astype(np.float32) * np.float32(self.scale)


@runtime_checkable
class Material(Protocol):
    """What groups are drawn from; see `data/material.py`."""

    @property
    def contents(self) -> Mapping[str, Sequence[Sequence[Clip]]]:
        """The usable clips of each split (train, validation, test), as `by_content` sorts them."""
        ...

    @property
    def rooms(self) -> Mapping[str, Sequence[RirRoom]]:
        """The rooms of each split, impulse responses already high-passed."""
        ...

    def load(self, clip: Clip, sample_rate_hz: int) -> Float32[np.ndarray, "t"]:
        """Samples of a clip, mono."""
        ...


def draw_group(
    recipe: SceneRecipe, material: Material, split: str, k: int, index: int
) -> SceneGroup:
    """Draw and render one scene group; a pure function of its arguments.

    Which worker calls it, and what was drawn before, makes no difference.

    Args:
      recipe: what scenes are wanted.
      material: clips and rooms.
      split: 'train', 'validation' or 'test'.
      k: number of sources.
      index: number of the group in its split.

    Returns:
      The group: k clips of different categories (different recordings where there are no
      categories) at k places of one room, in different direction classes.

    Raises:
      InputError: the split has too few categories, or no room with k direction classes.

    Reference: Spatial-CLAP, arXiv 2509.14785 (permuted pairs); the rest is our choice.
    """
    seed = group_seed(recipe.seed, split, k, index)
    rng = np.random.default_rng(seed)
    clips = _draw_clips(material.contents[split], k, rng, split)
    room, places = _draw_places(material.rooms[split], k, rng, split)
    permutations = draw_permutations(k, recipe.permutations_k3, rng)
    dry = np.stack([_dry(recipe, material, clip, split, rng) for clip in clips])
    audio, scale = quantise_jointly(render_members(dry, room.rirs[places], permutations))
    contents = tuple(clip.captions for clip in clips)
    wording = [options[rng.integers(len(options))] for options in contents]
    order = [int(i) for i in rng.permutation(k)]
    azimuth_deg = np.asarray(room.azimuth_deg[places], np.float32)
    classes = [direction_index(float(azimuth)) for azimuth in azimuth_deg]
    return SceneGroup(
        scene_id=f"{split}_k{k}/{index:07d}",
        audio=audio,
        scale=float(np.float32(scale)),
        sample_rate_hz=recipe.sample_rate_hz,
        clips=tuple(clip.clip_id for clip in clips),
        categories=tuple(clip.category for clip in clips),
        contents=contents,
        azimuth_deg=azimuth_deg,
        elevation_deg=np.asarray(room.elevation_deg[places], np.float32),
        distance_m=np.asarray(room.distance_m[places], np.float32),
        permutations=permutations,
        captions=tuple(
            compose_caption(wording, [classes[place] for place in row], order)
            for row in permutations
        ),
        room=room.name,
        room_size_m=np.asarray(room.size_m, np.float32),
        t60_s=float(np.float32(room.t60_s)),
        seed=seed,
    )


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
    rooms: Sequence[RirRoom], k: int, rng: np.random.Generator, split: str
) -> tuple[RirRoom, list[int]]:
    """A room, and k of its places in different direction classes."""
    first = int(rng.integers(len(rooms)))
    for step in range(len(rooms)):
        room = rooms[(first + step) % len(rooms)]
        by_class: dict[int, list[int]] = {}
        for place, azimuth in enumerate(room.azimuth_deg):
            if abs(azimuth) <= 90:
                by_class.setdefault(direction_index(float(azimuth)), []).append(place)
        if len(by_class) >= k:
            classes = rng.permutation(sorted(by_class))[:k]
            return room, [by_class[c][rng.integers(len(by_class[c]))] for c in classes.tolist()]
    raise InputError(
        f"no room of split {split!r} has places in {k} direction classes of the frontal "
        "half-plane; give rooms with more places."
    )


def _dry(
    recipe: SceneRecipe, material: Material, clip: Clip, split: str, rng: np.random.Generator
) -> Float32[np.ndarray, "t"]:
    """A clip at the mixture's length and a drawn level around the reference."""
    audio = material.load(clip, recipe.sample_rate_hz)
    if split == "train" and recipe.speed_range != (1.0, 1.0):
        speed = rng.uniform(*recipe.speed_range)
        audio = soxr.resample(audio, recipe.sample_rate_hz * speed, recipe.sample_rate_hz)
    audio = fit_clip(audio, recipe.length, rng, recipe.clip_fit)
    level_db = rng.uniform(-recipe.level_range_db, recipe.level_range_db)
    gain_db = _REFERENCE_LEVEL_DB + level_db - active_level_db(audio)
    return audio * np.float32(10 ** (gain_db / 20))


def _check(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise InputError(f"scene recipe: {field} {value} must {rule}.")
