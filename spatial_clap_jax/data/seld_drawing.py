"""The draw of a clip of overlapping sound events: sources, places, onsets; its audio and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32
from scipy.signal import fftconvolve

from spatial_clap_jax.acoustics.noise import pink_noise
from spatial_clap_jax.acoustics.rirs import RirRoom
from spatial_clap_jax.acoustics.stereo_view import fold_azimuth_deg, is_on_screen, stereo_of_foa
from spatial_clap_jax.data.dcase import SAMPLE_RATE_HZ
from spatial_clap_jax.data.drawing import REFERENCE_LEVEL_DB, Material, dry_signal, group_seed
from spatial_clap_jax.data.seld_recipe import MOST_OF_A_CLASS, SeldRecipe
from spatial_clap_jax.data.sound_events import LABEL_STEP_S, SoundEvents
from spatial_clap_jax.data.sources import Clip
from spatial_clap_jax.errors import InputError

# A label frame counts as silent this far below the event's loudest one.
_INACTIVE = 10 ** (-30 / 10)
# At both ends of a cut, so that it does not click.
_FADE_S = 0.005
# Onsets tried for an event before it is left out.
_TRIES = 20
# Mean power of W, Y, Z, X in a diffuse field, SN3D.
_DIFFUSE = np.array([1, 1 / 3, 1 / 3, 1 / 3], np.float32) ** 0.5
# Clips whose peak is above this are scaled down to it.
_PEAK = 0.95


@dataclasses.dataclass(frozen=True)
class PlacedEvent:
    """One source of a clip, as seen from the viewing direction.

    Attributes:
      recording: that the dry sound is of.
      category: its class.
      start: first sample of its signal.
      signal: what it emits, as heard at 1 m.
      active: label frames of the clip in which it sounds.
      place: number of its place in the room.
      azimuth_deg: of the source, in (-180, 180], 0 in the middle of the picture.
      elevation_deg: up positive.
      distance_m: from the receiver.
    """

    recording: str
    category: int
    start: int
    signal: Float32[np.ndarray, "u"]
    active: Bool[np.ndarray, "l"]
    place: int
    azimuth_deg: float
    elevation_deg: float
    distance_m: float

    @property
    def on_screen(self) -> bool:
        """Whether the camera shows it."""
        return bool(is_on_screen(np.array(self.azimuth_deg), np.array(self.elevation_deg)))


@dataclasses.dataclass(frozen=True)
class SeldClip:
    """A drawn clip.

    Attributes:
      audio: L, R, full scale 1.
      placed: its sources, in the order of their draw.
      room: name of the room.
      view_deg: the viewing direction, clockwise in the room.
      seed: the number that the whole draw started from.
    """

    audio: Float32[np.ndarray, "2 t"]
    placed: tuple[PlacedEvent, ...]
    room: str
    view_deg: float
    seed: int

    def events(self) -> SoundEvents:
        """The labels: the truth of the simulation, sorted by frame, then class and source."""
        rows = []
        for number, event in enumerate(self.placed):
            source = sum(other.category == event.category for other in self.placed[:number])
            for frame in np.flatnonzero(event.active).tolist():
                rows.append((frame, event.category, source, number))
        rows.sort()
        frame, category, source, number = np.array(rows, np.int32).reshape(-1, 4).T
        sources = [self.placed[i] for i in number]
        azimuth_deg = np.array([event.azimuth_deg for event in sources])
        return SoundEvents(
            frame,
            category,
            source,
            fold_azimuth_deg(azimuth_deg).astype(np.float32),
            np.array([event.distance_m for event in sources], np.float32),
            np.array([event.on_screen for event in sources], bool),
        )


def draw_clip(
    recipe: SeldRecipe, material: Material, classes: Sequence[str], split: str, index: int
) -> SeldClip:
    """Draw and render one clip; a pure function of its arguments.

    Args:
      recipe: what clips are wanted.
      material: dry sounds and rooms; responses in FOA.
      classes: names of the classes, by number.
      split: 'train', 'validation' or 'test'.
      index: number of the clip in its split.

    Returns:
      The clip: those of the drawn events that find an onset with at most `recipe.overlap` at once,
      three of a class; all in one room, no two at one place, none of the same recording.

    Raises:
      InputError: the split has no dry sounds of the classes.

    Reference: DCASE 2025 Challenge, Task 3 (form, stereo, on-screen rule); draws are our choice.
    """
    seed = group_seed(recipe.seed, f"seld {split}", 0, index)
    rng = np.random.default_rng(seed)
    room = material.rooms[split][int(rng.integers(len(material.rooms[split])))]
    # Whole degrees, as the task draws them.
    view_deg = float(rng.integers(360))
    placed = _draw_events(recipe, material, classes, split, room, view_deg, rng)
    foa = _field(recipe, placed, room)
    snr_db = rng.uniform(*recipe.snr_range_db)
    noise_level = np.float32(10 ** ((REFERENCE_LEVEL_DB - snr_db) / 20))
    foa += noise_level * _DIFFUSE[:, None] * pink_noise(rng, foa.shape)
    audio = stereo_of_foa(foa, view_deg)
    peak = float(np.abs(audio).max())
    return SeldClip(audio * np.float32(min(1, _PEAK / peak)), placed, room.name, view_deg, seed)


def _draw_events(
    recipe: SeldRecipe,
    material: Material,
    classes: Sequence[str],
    split: str,
    room: RirRoom,
    view_deg: float,
    rng: np.random.Generator,
) -> tuple[PlacedEvent, ...]:
    by_class = _by_class(material.clips[split], classes, split)
    frames = round(recipe.duration_s / LABEL_STEP_S)
    sounding = np.zeros((len(classes), frames), np.int64)
    wanted = int(rng.integers(recipe.events[0], recipe.events[1] + 1))
    places = rng.permutation(len(room.azimuth_deg))[:wanted].tolist()
    placed: list[PlacedEvent] = []
    for place in places:
        category = int(rng.choice([number for number, clips in enumerate(by_class) if clips]))
        if placed and rng.uniform() < recipe.same_class:
            category = placed[int(rng.integers(len(placed)))].category
        taken = {event.recording for event in placed}
        free = [clip for clip in by_class[category] if clip.recording not in taken]
        if not free:
            continue
        clip = free[int(rng.integers(len(free)))]
        signal = _cut(recipe, material, clip, split, rng)
        for _ in range(_TRIES):
            start = _draw_start(recipe, signal.size, rng)
            active = active_frames(signal, start, frames)
            total = sounding.sum(axis=0)[active]
            same = sounding[category][active]
            if active.any() and (total < recipe.overlap).all() and (same < MOST_OF_A_CLASS).all():
                azimuth_deg = (float(room.azimuth_deg[place]) + view_deg + 180) % 360 - 180
                placed.append(
                    PlacedEvent(
                        recording=clip.recording,
                        category=category,
                        start=start,
                        signal=signal,
                        active=active,
                        place=place,
                        azimuth_deg=azimuth_deg,
                        elevation_deg=float(room.elevation_deg[place]),
                        distance_m=float(room.distance_m[place]),
                    )
                )
                sounding[category] += active
                break
    return tuple(placed)


def _by_class(
    clips: Sequence[Clip], classes: Sequence[str], split: str
) -> tuple[tuple[Clip, ...], ...]:
    by_class = tuple(
        tuple(clip for clip in clips if clip.category == category) for category in classes
    )
    if not any(by_class):
        raise InputError(
            f"split {split!r} has no dry sounds of the classes {', '.join(classes)}; give some, or "
            "ask for no such clips (clip_counts)."
        )
    return by_class


def _cut(
    recipe: SeldRecipe, material: Material, clip: Clip, split: str, rng: np.random.Generator
) -> Float32[np.ndarray, "u"]:
    """A drawn length of a dry sound, faded at both ends."""
    signal = dry_signal(
        material.load(clip, SAMPLE_RATE_HZ),
        SAMPLE_RATE_HZ,
        round(rng.uniform(*recipe.event_s) * SAMPLE_RATE_HZ),
        rng,
        "pad",
        recipe.speed_range if split == "train" else (1.0, 1.0),
        recipe.level_range_db,
    )
    fade = np.linspace(0, 1, round(_FADE_S * SAMPLE_RATE_HZ), dtype=np.float32)
    ends = np.ones_like(signal)
    ends[: fade.size], ends[-fade.size :] = fade, fade[::-1]
    return signal * ends


def _draw_start(recipe: SeldRecipe, samples: int, rng: np.random.Generator) -> int:
    """Any place in the clip; one event in four began before the clip or goes on after it."""
    whole = round(recipe.duration_s * SAMPLE_RATE_HZ)
    beyond = samples // 2 if rng.uniform() < 0.25 else 0
    return int(rng.integers(-beyond, whole - samples + beyond + 1))


def active_frames(
    signal: Float32[np.ndarray, "u"], start: int, frames: int
) -> Bool[np.ndarray, "l"]:
    """Label frames of a clip in which a dry signal sounds.

    Args:
      signal: at the clips' rate.
      start: where it begins; negative: before the clip.
      frames: label frames of the clip.

    Returns:
      True where the power in a frame is within 30 dB of the signal's loudest frame in the clip
      or beyond it.

    Reference: our choice.
    """
    step = round(LABEL_STEP_S * SAMPLE_RATE_HZ)
    # Frames of the clip's own grid, from the one in which the signal begins.
    first = start // step
    lead = start - first * step
    count = -(-(lead + signal.size) // step)
    padded = np.zeros(count * step)
    padded[lead : lead + signal.size] = signal
    power = np.square(padded).reshape(count, step).sum(axis=1)
    sounds = (power >= _INACTIVE * power.max()) & (power > 0)
    active = np.zeros(frames, bool)
    begin = max(first, 0)
    end = max(begin, min(first + count, frames))
    active[begin:end] = sounds[begin - first : end - first]
    return active


def _field(
    recipe: SeldRecipe, placed: Sequence[PlacedEvent], room: RirRoom
) -> Float32[np.ndarray, "4 t"]:
    """W, Y, Z, X of all sources in the room."""
    length = round(recipe.duration_s * SAMPLE_RATE_HZ)
    foa = np.zeros((4, length), np.float32)
    for event in placed:
        heard = fftconvolve(event.signal[None], room.rirs[event.place], axes=-1)
        begin, skipped = max(event.start, 0), max(-event.start, 0)
        part = heard[:, skipped : skipped + length - begin]
        foa[:, begin : begin + part.shape[1]] += part
    return foa
