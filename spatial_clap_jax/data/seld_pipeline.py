"""Clips with labelled events to host batches: shuffle, mix, mirror, target, batch.

As in `data.pipeline`, the clips of step s follow from the seed and s alone, and each process builds
its own rows of a global batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

import grain
import numpy as np
from jaxtyping import Float32, UInt8

from spatial_clap_jax.data.accdoa_targets import adpit_targets
from spatial_clap_jax.data.bad_records import BadRecords, read_or_replace, unread
from spatial_clap_jax.data.batch_workers import Built
from spatial_clap_jax.data.pipeline import ENDLESS, Batch, TrainBatches, check_worker_timeout
from spatial_clap_jax.data.sound_events import SoundEvents, no_events
from spatial_clap_jax.data.tower_cache import TowerCache
from spatial_clap_jax.errors import InputError

# Tells apart sources of one class that come from two clips.
_OTHER_SOURCES = 1000


class LabelledClips(Protocol):
    """What the pipeline needs of opened clips; `data.dcase.open_clips` gives them.

    They travel to the workers by pickle.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def splits(self) -> dict[str, tuple[str, ...]]: ...
    @property
    def labels(self) -> int: ...
    def audio(self, name: str) -> Float32[np.ndarray, "2 t"]: ...
    def events(self, name: str) -> SoundEvents: ...
    def frames(
        self, name: str, count: int, size: tuple[int, int]
    ) -> UInt8[np.ndarray, "v h w 3"]: ...


@dataclasses.dataclass(frozen=True)
class SeldPipelineConfig:
    """How labelled clips become batches.

    Attributes:
      clips_per_batch: clips in a global batch, over all processes.
      mix_share: share of the clips that a second one is added to, with its events. Its pictures are
        averaged with the first one's.
      gain_db: lowest and highest joint gain of each clip.
      swap: mirror left and right of sound, picture and labels of every second clip, drawn.
      heard: folder of cached CLAP features of the clips (`spatial-clap embed --kind frames`).
      seen: folder of cached OWL-ViT features of their videos.
      frame_cache_mib: decoded pictures that are kept in memory, in each process that builds.
      workers: processes that build batches; 0 builds them in threads of this process.
      threads: threads that build batches, in each worker or, without workers, here.
      prefetch: batches built ahead, in each worker or, without workers, here.
      bad_records: what becomes of a clip that cannot be read: 'stop' ends the run with its name;
        'skip' has another, drawn by its name, stand for it, and counts it.
      worker_timeout_s: longest wait for a batch of a worker, its start included.
    """

    clips_per_batch: int = 32
    mix_share: float = 0.0
    gain_db: tuple[float, float] = (-6.0, 6.0)
    swap: bool = True
    heard: Path | None = None
    seen: Path | None = None
    frame_cache_mib: int = 1024
    workers: int = 0
    threads: int = 1
    prefetch: int = 2
    bad_records: BadRecords = "stop"
    worker_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name, smallest in (
            ("clips_per_batch", 1),
            ("frame_cache_mib", 0),
            ("workers", 0),
            ("threads", 1),
            ("prefetch", 1),
        ):
            value = getattr(self, name)
            if value < smallest:
                raise InputError(f"{name}: {value} is too small; give at least {smallest}.")
        check_worker_timeout(self.worker_timeout_s)
        if not 0.0 <= self.mix_share <= 1.0:
            raise InputError(f"mix_share: {self.mix_share} is no share; give 0 to 1.")
        low, high = self.gain_db
        if not low <= high:
            raise InputError(f"gain_db: {self.gain_db} is no range; give the lower gain first.")

    @property
    def rows(self) -> int:
        """Rows of a global batch."""
        return self.clips_per_batch

    def with_rows(self, rows: int) -> SeldPipelineConfig:
        """The same for global batches of another size."""
        return dataclasses.replace(self, clips_per_batch=rows)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Which pictures of a video are looked at.

    Attributes:
      count: pictures of a clip, evenly spread.
      size: their height and width in pixels.
    """

    count: int
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the pictures of a clip."""
        return (self.count, *self.size, 3)


@dataclasses.dataclass(frozen=True)
class LabelledClip:
    """A clip in memory.

    Attributes:
      audio: left and right.
      events: what sounds where.
      frames: its pictures; None where nobody looks.
      heard: cached features of its audio; None for none.
      seen: cached features of its pictures; None for none.
      instead_of: names of clips that could not be read, in whose place it stands.
    """

    audio: Float32[np.ndarray, "2 t"]
    events: SoundEvents
    frames: UInt8[np.ndarray, "v h w 3"] | None
    heard: Float32[np.ndarray, "n e"] | None
    seen: Float32[np.ndarray, "v w e"] | None
    instead_of: tuple[str, ...] = ()

    def mirrored(self) -> LabelledClip:
        """Left for right in sound, labels and pictures.

        The columns of cached features change places: nearly what the tower would give of mirrored
        pictures.
        """
        return LabelledClip(
            self.audio[::-1],
            self.events.mirrored(),
            None if self.frames is None else self.frames[:, :, ::-1],
            self.heard,
            None if self.seen is None else self.seen[:, ::-1],
            self.instead_of,
        )

    def scaled(self, gain: float) -> LabelledClip:
        """The audio louder or softer, both channels alike."""
        return dataclasses.replace(self, audio=self.audio * np.float32(gain))

    def mixed(self, other: LabelledClip) -> LabelledClip:
        """Both at once; of pictures and cached features the mean."""
        moved = dataclasses.replace(other.events, source=other.events.source + _OTHER_SOURCES)
        both = {
            field.name: np.concatenate(
                [getattr(self.events, field.name), getattr(moved, field.name)]
            )
            for field in dataclasses.fields(SoundEvents)
        }
        events = SoundEvents(**both)
        frames = self.frames
        if frames is not None and other.frames is not None:
            frames = ((frames.astype(np.uint16) + other.frames + 1) // 2).astype(np.uint8)
        return LabelledClip(
            self.audio + other.audio,
            events.taken(np.argsort(events.frame, kind="stable")),
            frames,
            _mean(self.heard, other.heard),
            _mean(self.seen, other.seen),
            self.instead_of + other.instead_of,
        )


def _mean(
    one: Float32[np.ndarray, "*n"] | None, other: Float32[np.ndarray, "*n"] | None
) -> Float32[np.ndarray, "*n"] | None:
    return None if one is None or other is None else (one + other) * np.float32(0.5)


class ClipLoader:
    """Reads clips of a folder whole, and keeps decoded pictures in memory.

    Attributes:
      clips: opened.
      pictures: which are looked at; None for none.
      heard: cached features of audio, None for none.
      seen: cached features of pictures, None for none.
      cache_mib: pictures that are kept.
      reads_labels: whether events are read; False leaves clips without any.
    """

    def __init__(
        self,
        clips: LabelledClips,
        pictures: Pictures | None,
        heard: TowerCache | None = None,
        seen: TowerCache | None = None,
        cache_mib: int = 0,
        reads_labels: bool = True,
    ):
        self.clips, self.pictures = clips, pictures
        self.heard, self.seen = heard, seen
        self.cache_mib, self.reads_labels = cache_mib, reads_labels
        self._kept: dict[str, UInt8[np.ndarray, "v h w 3"]] = {}

    def __getitem__(self, name: str) -> LabelledClip:
        """A clip by name, as it is on disk.

        Raises:
          BadRecord: a file of it is missing, or cannot be used.
          InputError: the machine kept it from being read.
        """
        try:
            return LabelledClip(
                self.clips.audio(name),
                self.clips.events(name) if self.reads_labels else no_events(),
                None if self.pictures is None else self._frames(name, self.pictures),
                None if self.heard is None else self.heard[name],
                None if self.seen is None else self.seen[name],
            )
        except (InputError, OSError, MemoryError) as error:
            raise unread(name, name, str(error), error) from error

    def _frames(self, name: str, pictures: Pictures) -> UInt8[np.ndarray, "v h w 3"]:
        if name not in self._kept:
            frames = self.clips.frames(name, pictures.count, pictures.size)
            if (len(self._kept) + 1) * frames.nbytes > self.cache_mib * 2**20:
                return frames
            self._kept[name] = frames
        return self._kept[name]


def seld_batches(
    loader: ClipLoader,
    config: SeldPipelineConfig,
    *,
    seed: int,
    split: str = "train",
    rows: Sequence[int] | None = None,
) -> TrainBatches:
    """Endless, reshuffled, augmented training batches of this process.

    Args:
      loader: of the clips.
      config: batch size, augmentation, workers.
      seed: order and augmentation follow from it.
      split: whose clips.
      rows: which rows of each global batch are built here, ascending; None for all.

    Returns:
      Iterator over `audio` float32 [b, 2, t] and `targets` float32 [b, l, 6, 5, c]; with pictures
      `frames` uint8 [b, v, h, w, 3], with caches `heard` [b, n, e] and `seen` [b, v, w, e]; b =
      rows built here. It has `get_state`, `set_state` and `close`; close it.

    Raises:
      InputError: the split has no clips.
    """
    names = loader.clips.splits.get(split, ())
    if not names:
        raise InputError(
            f"--data: has no clips of the split {split!r}; give a folder that has some."
        )
    split_seed = np.random.SeedSequence([seed, *split.encode()]).generate_state(1)[0]
    order = grain.MapDataset.source(names).seed(int(split_seed)).shuffle().repeat()
    augment = functools.partial(_augmented, loader=loader, names=names, config=config)
    examples = order.random_map(augment)
    wanted = tuple(range(config.clips_per_batch)) if rows is None else tuple(rows)
    build = functools.partial(
        _build_batch,
        cast("Sequence[LabelledClip]", examples),
        config.clips_per_batch,
        wanted,
        functools.partial(collate_clips, labels=loader.clips.labels, classes=loader.clips.classes),
    )

    def samples(step: int) -> list[str]:
        first = step * config.clips_per_batch
        return [str(order[first + row]) for row in range(config.clips_per_batch)]

    return TrainBatches(grain.MapDataset.range(ENDLESS).map(build), config, samples)


def collate_clips(clips: Sequence[LabelledClip], labels: int, classes: Sequence[str]) -> Batch:
    """One batch of clips, as `seld_batches` describes it.

    Args:
      clips: all of one length, with the same of pictures and features.
      labels: label frames of a clip.
      classes: their names.
    """
    batch = {
        "audio": np.stack([clip.audio for clip in clips]).astype(np.float32),
        "targets": np.stack([adpit_targets(clip.events, labels, len(classes)) for clip in clips]),
    }
    for name in ("frames", "heard", "seen"):
        parts = [getattr(clip, name) for clip in clips]
        if parts[0] is not None:
            batch[name] = np.stack(parts)
    return batch


def _build_batch(
    examples: Sequence[LabelledClip],
    per_step: int,
    wanted: tuple[int, ...],
    collated: Callable[[list[LabelledClip]], Batch],
    step: int,
) -> Built:
    clips = [examples[step * per_step + row] for row in wanted]
    return Built(collated(clips), tuple(name for clip in clips for name in clip.instead_of))


def _augmented(
    name: str,
    rng: np.random.Generator,
    *,
    loader: ClipLoader,
    names: Sequence[str],
    config: SeldPipelineConfig,
) -> LabelledClip:
    # Every draw is made, so that one option does not change what the others draw.
    mixes, swaps = rng.random() < config.mix_share, rng.random(2) < 0.5
    other_name = names[int(rng.integers(len(names)))]
    gains = 10 ** (rng.uniform(*config.gain_db, 2) / 20)
    clip = _varied(_read(loader, name, names, config), bool(swaps[0]) and config.swap, gains[0])
    if mixes and other_name != name:
        other = _read(loader, other_name, names, config)
        clip = clip.mixed(_varied(other, bool(swaps[1]) and config.swap, gains[1]))
    return clip


def _read(
    loader: ClipLoader, name: str, names: Sequence[str], config: SeldPipelineConfig
) -> LabelledClip:
    if config.bad_records == "stop":
        return loader[name]
    clip, bad = read_or_replace(loader.__getitem__, name, names, seed=[*name.encode()])
    return dataclasses.replace(clip, instead_of=bad)


def _varied(clip: LabelledClip, swap: bool, gain: float) -> LabelledClip:
    return (clip.mirrored() if swap else clip).scaled(gain)
