"""The recipe that clips of overlapping sound events with video are drawn by."""

from __future__ import annotations

import dataclasses
import re

from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.rirs import WALL_MARGIN_M
from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.data.scenes import RoomCounts
from spatial_clap_jax.data.sound_events import LABEL_STEP_S
from spatial_clap_jax.data.sources import SPLITS, SourceOptions
from spatial_clap_jax.errors import InputError

# Sources of one class at once that multi-ACCDOA can tell.
MOST_OF_A_CLASS = 3


@dataclasses.dataclass(frozen=True)
class ClipCounts:
    """How many clips each split gets; 0 leaves a split out."""

    train: int = 600
    validation: int = 60
    test: int = 150


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """The video of a clip.

    Attributes:
      width: of the picture, even; the task has 640 x 360.
      height: of the picture, even; 9/16 of the width, as the camera's field of view asks for.
      rate_hz: pictures a second.
      source_m: how large a source is.
      distractors: most shapes that belong to no sound.
    """

    width: int = 160
    height: int = 90
    rate_hz: int = 10
    source_m: float = 0.5
    distractors: int = 4

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < 16:
            raise InputError(
                f"video: width {self.width}, height {self.height} must be even and at least 16."
            )
        if abs(self.width * 9 / 16 - self.height) > 2:
            raise InputError(
                f"video: width {self.width}, height {self.height} must be 16:9; 160 x 90 or "
                "640 x 360, for example."
            )
        if self.rate_hz < 1 or not self.source_m > 0 or self.distractors < 0:
            raise InputError(
                f"video: rate_hz {self.rate_hz}, source_m {self.source_m:g} and distractors "
                f"{self.distractors}: need a rate of 1 or more, a size above 0 m, no count below 0."
            )


@dataclasses.dataclass(frozen=True)
class SeldRecipe:
    """Everything that decides which clips are rendered, apart from the dry sounds.

    Sources stand still: a moving one would need a response for each of its places.

    Attributes:
      name: name of the recipe.
      seed: number that every draw starts from.
      duration_s: length of a clip, a whole number of label steps.
      clip_counts: clips a split.
      events: fewest and most events that are tried in a clip.
      event_s: shortest and longest cut from a dry sound.
      overlap: most events at once.
      same_class: share of the events that take the class of an earlier one, so that several of a
        class overlap; at most three do.
      rooms: ranges that simulated rooms are drawn from.
      receiver: the ambisonic receiver, from which stereo is derived by a viewing direction, drawn
        for each clip.
      room_counts: rooms a split.
      places_per_room: source places in a room.
      distance_range_m: distances of places from the receiver.
      elevation_range_deg: elevations of places.
      response_s: most seconds of a room's response.
      high_pass_hz: cutoff of the 4th-order high-pass that the impulse responses get.
      level_range_db: sources get the same active level, -30 dB of full scale at 1 m, then a gain
        drawn within plus or minus this.
      snr_range_db: that level over ambient noise, drawn for each clip.
      speed_range: playing speeds drawn for training clips (pitch moves along); (1, 1) for none.
      video: the pictures; None for sound alone.
      sources: how the table of dry sounds is read and divided.
    """

    name: str = "small"
    seed: int = 0
    duration_s: float = 5.0
    clip_counts: ClipCounts = dataclasses.field(default_factory=ClipCounts)
    events: tuple[int, int] = (1, 5)
    event_s: tuple[float, float] = (0.6, 3.0)
    overlap: int = 3
    same_class: float = 0.3
    rooms: FloorRanges = dataclasses.field(
        default_factory=lambda: FloorRanges(floor_area_m2=(20.0, 120.0), t30_s=(0.2, 0.9))
    )
    receiver: Foa = dataclasses.field(default_factory=Foa)
    room_counts: RoomCounts = dataclasses.field(
        default_factory=lambda: RoomCounts(train=60, validation=8, test=20)
    )
    places_per_room: int = 24
    distance_range_m: tuple[float, float] = (0.8, 4.0)
    elevation_range_deg: tuple[float, float] = (-25.0, 25.0)
    response_s: float = 0.8
    high_pass_hz: float = 50.0
    level_range_db: float = 3.0
    snr_range_db: tuple[float, float] = (20.0, 40.0)
    speed_range: tuple[float, float] = (0.9, 1.1)
    video: PictureOptions | None = dataclasses.field(default_factory=PictureOptions)
    sources: SourceOptions = dataclasses.field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        _check(
            re.fullmatch(r"\w[\w.-]*", self.name) is not None,
            "name",
            self.name,
            "be letters, digits, '_', '-' and '.'",
        )
        _check(0 <= self.seed < 2**63, "seed", self.seed, "be in 0..2**63-1")
        steps = self.duration_s / LABEL_STEP_S
        _check(
            0.5 <= self.duration_s <= 600 and abs(steps - round(steps)) < 1e-6,
            "duration_s",
            self.duration_s,
            f"be whole steps of {LABEL_STEP_S:g} s, 0.5 to 600 s",
        )
        fewest, most = self.events
        _check(1 <= fewest <= most, "events", self.events, "hold 1 <= fewest <= most")
        _check(
            LABEL_STEP_S <= self.event_s[0] <= self.event_s[1] <= self.duration_s,
            "event_s",
            self.event_s,
            f"hold {LABEL_STEP_S:g} <= shortest <= longest <= duration_s {self.duration_s:g}",
        )
        _check(self.overlap >= 1, "overlap", self.overlap, "be at least 1")
        _check(0 <= self.same_class <= 1, "same_class", self.same_class, "be a share, 0 to 1")
        _check(
            self.places_per_room >= most,
            "places_per_room",
            self.places_per_room,
            f"be at least the most events, {most}",
        )
        self._check_rooms()
        _check(self.level_range_db >= 0, "level_range_db", self.level_range_db, "be >= 0")
        _check(
            0 <= self.snr_range_db[0] <= self.snr_range_db[1],
            "snr_range_db",
            self.snr_range_db,
            "hold 0 <= low <= high",
        )
        low, high = self.speed_range
        _check(
            0.5 <= low <= high <= 2,
            "speed_range",
            self.speed_range,
            "be two numbers, 0.5 <= low <= high <= 2",
        )
        counts = dataclasses.asdict(self.clip_counts)
        _check(min(counts.values()) >= 0, "clip_counts", counts, "not be negative")
        _check(bool(self.splits()), "clip_counts", counts, "ask for some clips")
        for split in self.splits():
            rooms = getattr(self.room_counts, split)
            _check(rooms >= 1, f"room_counts.{split}", rooms, "be at least 1: the split has clips")

    def _check_rooms(self) -> None:
        nearest, farthest = self.distance_range_m
        _check(
            0 < nearest <= farthest,
            "distance_range_m",
            self.distance_range_m,
            "hold 0 < low <= high",
        )
        low, high = self.elevation_range_deg
        _check(
            -90 < low <= high < 90,
            "elevation_range_deg",
            self.elevation_range_deg,
            "hold -90 < low <= high < 90",
        )
        _check(
            self.receiver.height_m <= self.rooms.height_m[0] - WALL_MARGIN_M,
            "receiver.height_m",
            self.receiver.height_m,
            f"leave {WALL_MARGIN_M} m to the lowest ceiling, {self.rooms.height_m[0]} m",
        )
        _check(
            2 * (nearest + WALL_MARGIN_M) <= self.rooms.narrowest_m,
            "distance_range_m",
            self.distance_range_m,
            f"start low enough for the narrowest room, {self.rooms.narrowest_m:.2f} m",
        )

    def splits(self) -> dict[str, int]:
        """Clips in each split that has any."""
        return {name: n for name in SPLITS if (n := getattr(self.clip_counts, name))}


def _check(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise InputError(f"SELD recipe: {field} {value} must {rule}.")
