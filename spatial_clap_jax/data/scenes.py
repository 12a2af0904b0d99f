"""Scene groups: the recipe they are drawn by, and what one holds."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int16, Int32

from spatial_clap_jax.acoustics.receivers import Foa, Mono, Receiver, StereoPair
from spatial_clap_jax.acoustics.rirs import RIR_LENGTH_S, WALL_MARGIN_M
from spatial_clap_jax.acoustics.rooms import FloorRanges, RoomRanges
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.errors import InputError

# Least share of the longest reverberation time that a response must last, for T30 to be measured
# within 1 %.
_LEAST_RESPONSE = 0.75


Words = Literal["stereo", "elsa"]


# Fields of a recipe that are about rooms and places.
_OF_PLACES = (
    *("rooms", "room_counts", "places_per_room", "distance_range_m", "elevation_range_deg"),
    *("response_s", "high_pass_hz", "permutations_k3"),
)


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
    """How many scene groups of k = 1, 2 and 3 sources each split gets; 0 leaves a split out.

    Of k = 0 sources are plain clips: one mono clip without a place, in all channels of FOA. For a
    `Mono` receiver a count of -n holds every clip of the split n times.
    """

    train_k1: int = 4000
    train_k2: int = 12000
    train_k3: int = 0
    validation_k1: int = 200
    validation_k2: int = 200
    validation_k3: int = 0
    test_k1: int = 400
    test_k2: int = 600
    test_k3: int = 400
    train_k0: int = 0
    validation_k0: int = 0
    test_k0: int = 0


@dataclasses.dataclass(frozen=True)
class SceneRecipe:
    """Everything that decides which scenes are rendered, apart from the clips.

    Attributes:
      name: name of the recipe.
      seed: number that every draw starts from.
      sample_rate_hz: rate of the mixtures.
      duration_s: length of a mixture.
      rooms: ranges that simulated rooms are drawn from; `FloorRanges` for FOA.
      receiver: the two microphones, first-order ambisonics, or `Mono` for clips by themselves, of
        which no field of rooms and places is read. The words of captions follow from it:
        'stereo', which of clips says their contents alone, or 'elsa'.
      room_counts: rooms a split.
      places_per_room: source places in a simulated room.
      distance_range_m: distances of places from the receiver.
      elevation_range_deg: elevations of places; (0, 0) for a stereo pair.
      response_s: most seconds of a room's response; 0.5 for a stereo pair.
      high_pass_hz: cutoff of the 4th-order high-pass that the impulse responses get.
      group_counts: scene groups a split and a number of sources.
      permutations_k3: members of a group of three sources, 1 to 6: the identity and others drawn.
      clip_fit: what becomes of a clip that is too short: repeated, or silence around it.
      level: 'reference' gives all sources the same active level, -30 dB of full scale at 1 m;
        'recorded' leaves a clip as loud as its file has it, for `Mono` alone.
      level_range_db: a gain is drawn within plus or minus this, after `level`.
      speed_range: playing speeds drawn for training clips (pitch moves along); (1, 1) for none.
      sources: how the table of clips is read and divided.
    """

    name: str = "small"
    seed: int = 0
    sample_rate_hz: int = 16000
    duration_s: float = 4.0
    rooms: RoomRanges | FloorRanges = dataclasses.field(default_factory=RoomRanges)
    receiver: Receiver = dataclasses.field(default_factory=StereoPair)
    room_counts: RoomCounts = dataclasses.field(default_factory=RoomCounts)
    places_per_room: int = 25
    distance_range_m: tuple[float, float] = (1.0, 2.5)
    elevation_range_deg: tuple[float, float] = (0.0, 0.0)
    response_s: float = RIR_LENGTH_S
    high_pass_hz: float = 50.0
    group_counts: GroupCounts = dataclasses.field(default_factory=GroupCounts)
    permutations_k3: int = 6
    clip_fit: Literal["tile", "pad"] = "tile"
    level: Literal["reference", "recorded"] = "reference"
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
        if isinstance(self.receiver, Foa):
            self._check_foa(self.receiver)
        elif isinstance(self.receiver, Mono):
            self._check_mono()
        else:
            self._check_stereo(self.receiver)
        _check(self.places_per_room >= 5, "places_per_room", self.places_per_room, "be >= 5")
        _check(
            self.permutations_k3 in range(1, 7),
            "permutations_k3",
            self.permutations_k3,
            "be in 1..6",
        )
        _check(
            self.level == "reference" or isinstance(self.receiver, Mono),
            "level",
            self.level,
            "be 'reference' but for Mono: the level of a source tells its distance",
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
                turns = isinstance(self.receiver, Mono) and split.endswith("_k0")
                _check(value >= 0 or turns, f"{counts}.{split}", value, "be >= 0")
        _check(bool(self.splits()), "group_counts", self.group_counts, "ask for some groups")

    def _check_stereo(self, receiver: StereoPair) -> None:
        if not isinstance(self.rooms, RoomRanges):
            raise _refusal("rooms", self.rooms, "be RoomRanges for a StereoPair")
        # The microphones must stand in every room, with a margin from its walls.
        _check(
            receiver.spacing_m < self.rooms.width_m[0] - 1,
            "receiver.spacing_m",
            receiver.spacing_m,
            f"be at least 1 m less than the narrowest room, {self.rooms.width_m[0]} m",
        )
        _check(
            receiver.height_m < self.rooms.height_m[0],
            "receiver.height_m",
            receiver.height_m,
            f"be less than the lowest room, {self.rooms.height_m[0]} m",
        )
        for field, only in (("elevation_range_deg", (0.0, 0.0)), ("response_s", RIR_LENGTH_S)):
            value = getattr(self, field)
            _check(value == only, field, value, f"be {only} for a StereoPair")
        for split in ("train_k0", "validation_k0", "test_k0"):
            count = getattr(self.group_counts, split)
            _check(count == 0, f"group_counts.{split}", count, "be 0 for a StereoPair")

    def _check_mono(self) -> None:
        for field in dataclasses.fields(self):
            if field.name in _OF_PLACES:
                made = field.default_factory
                default = field.default if made is dataclasses.MISSING else made()
                value = getattr(self, field.name)
                _check(value == default, field.name, value, "be left out for Mono: it has no room")
        for split, count in dataclasses.asdict(self.group_counts).items():
            if not split.endswith("_k0"):
                _check(count == 0, f"group_counts.{split}", count, "be 0 for Mono")

    def _check_foa(self, receiver: Foa) -> None:
        if not isinstance(self.rooms, FloorRanges):
            raise _refusal("rooms", self.rooms, "be FloorRanges for Foa")
        nearest, farthest = distances_m = self.distance_range_m
        _check(0 < nearest <= farthest, "distance_range_m", distances_m, "hold 0 < low <= high")
        low, high = self.elevation_range_deg
        _check(
            -90 <= low <= high <= 90,
            "elevation_range_deg",
            self.elevation_range_deg,
            "hold -90 <= low <= high <= 90",
        )
        lowest_m = self.rooms.height_m[0]
        _check(
            receiver.height_m <= lowest_m - WALL_MARGIN_M,
            "receiver.height_m",
            receiver.height_m,
            f"leave {WALL_MARGIN_M} m to the ceiling of the lowest room, {lowest_m} m",
        )
        # The nearest place at either end of the elevations.
        heights_m = [
            receiver.height_m + nearest * math.sin(math.radians(end)) for end in (low, high)
        ]
        _check(
            heights_m[0] >= WALL_MARGIN_M and heights_m[1] <= lowest_m - WALL_MARGIN_M,
            "elevation_range_deg",
            self.elevation_range_deg,
            f"keep the nearest places ({nearest} m) inside the lowest room of {lowest_m} m with "
            f"{WALL_MARGIN_M} m to floor and ceiling",
        )
        # All round a receiver that stands in the worst place.
        _check(
            2 * (nearest + WALL_MARGIN_M) <= self.rooms.narrowest_m,
            "distance_range_m",
            self.distance_range_m,
            f"start low enough for the narrowest room, {self.rooms.narrowest_m:.2f} m",
        )
        needed_s = _LEAST_RESPONSE * self.rooms.t30_s[1]
        _check(
            self.response_s >= needed_s,
            "response_s",
            self.response_s,
            f"be at least {needed_s:.2f}, three quarters of the longest rooms.t30_s",
        )

    @property
    def words(self) -> Words:
        """The style that captions are composed in."""
        return "elsa" if isinstance(self.receiver, Foa) else "stereo"

    @property
    def channels(self) -> int:
        """Channels of a mixture."""
        return {StereoPair: 2, Foa: 4, Mono: 1}[type(self.receiver)]

    @property
    def length(self) -> int:
        """Samples in a mixture."""
        return round(self.duration_s * self.sample_rate_hz)

    def splits(self) -> dict[str, int]:
        """Groups in each split that has any, by name: `train_k1`, `train_k2`, ... `test_k3`."""
        counts = dataclasses.asdict(self.group_counts)
        return {name: count for name, count in counts.items() if count}

    def counted(self, clips: Mapping[str, int]) -> SceneRecipe:
        """The recipe with all counts in groups, none in turns through the clips.

        Args:
          clips: number of clips in each of train, validation and test.

        Raises:
          InputError: not one group is left.
        """
        counts = {
            name: count if count >= 0 else -count * clips[name.partition("_k")[0]]
            for name, count in dataclasses.asdict(self.group_counts).items()
        }
        return dataclasses.replace(self, group_counts=GroupCounts(**counts))


# `SceneGroup.phrasing` of captions that are composed of no template.
OWN_WORDING = -1


@dataclasses.dataclass(frozen=True)
class SceneGroup:
    """The same k clips and the same k places, in p permutations of clips over places.

    A plain clip has k = 0 places and one clip: the mono signal, in one channel or in all of FOA.

    Attributes:
      scene_id: unique in its dataset: `{split}_k{k}/{index}`.
      audio: the p mixtures, mono, stereo (L, R) or FOA (W, Y, Z, X; SN3D), in units of `scale`;
        float32 after a rotation.
      scale: `audio * scale` is the sound pressure; one number for the whole group.
      sample_rate_hz: rate of `audio`.
      clips: ids of the k dry clips.
      categories: their categories, '' where unknown; see `labels_of` for several labels.
      contents: for each clip, the content captions that it may be described with.
      azimuth_deg: azimuths of the k places, counter-clockwise, 0 ahead, +90 left.
      elevation_deg: their elevations, up positive.
      distance_m: their distances from the receiver.
      permutations: clip j of member i stands at place `permutations[i, j]`; row 0 is the identity.
      captions: the stored caption of each member; they differ in nothing but who is where.
      room: name of the room.
      room_size_m: its length, width and height (0 where a measured room does not say).
      t60_s: its reverberation time, measured from the impulse responses.
      t30_s: that of the response from each place (W of FOA); 0 where nothing decays.
      drr_bands_db: direct-to-reverberant ratio of each place in the bands of `bands.BANDS_HZ`, NaN
        where it cannot be measured; no bands for stereo.
      t30_bands_s: reverberation time of each place in these bands, NaN likewise.
      words: the style of the captions.
      phrasing: which set of stereo phrases or which template the captions are composed with;
        `OWN_WORDING` where a language model has written them.
      seed: the number that the whole draw of this group started from.
      rivals: captions of permutations whose mixtures are not in `audio`; never stored.
    """

    scene_id: str
    audio: Int16[np.ndarray, "p c t"] | Float32[np.ndarray, "p c t"]
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
    t30_s: Float32[np.ndarray, "k"]
    drr_bands_db: Float32[np.ndarray, "k bands"]
    t30_bands_s: Float32[np.ndarray, "k bands"]
    words: Words
    phrasing: int
    seed: int
    rivals: tuple[str, ...] = ()

    def waveforms(self) -> Float32[np.ndarray, "p c t"]:
        """The mixtures as float32, `audio * scale`."""
        return self.audio.astype(np.float32) * np.float32(self.scale)


def _check(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise _refusal(field, value, rule)


def _refusal(field: str, value: object, rule: str) -> InputError:
    return InputError(f"scene recipe: {field} {value} must {rule}.")
