"""A trained SELD network in use, or several: clips in, tracks of events out.

`load_locator` takes folders of runs or of safetensors exports. Computation is in float32 at full
precision, in batches of one shape; the tracks of several networks are averaged.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from rich.progress import track

from spatial_clap_jax.configs_io import from_plain
from spatial_clap_jax.data.audio import read_audio, resample
from spatial_clap_jax.data.dcase import Clips
from spatial_clap_jax.data.seld_pipeline import (
    LabelledClip,
    SeldPipelineConfig,
    collate_clips,
)
from spatial_clap_jax.data.sound_events import no_events
from spatial_clap_jax.data.tower_cache import TowerCache
from spatial_clap_jax.data.video import check_length, each_frame_at
from spatial_clap_jax.embed_clips import FrozenTower, hearing_tower, looking_tower
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.seld_tracks import average_outputs
from spatial_clap_jax.stored import described_experiment, find_model, read_trained
from spatial_clap_jax.systems.base import Variables, in_use
from spatial_clap_jax.systems.seld import Seld, SeldConfig
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.seld_feed import check_clips_fit, clip_loader

# Clips of every batch.
_BATCH = 8
Tracks = Float32[np.ndarray, "l 3 4 c"]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One network of an ensemble.

    Attributes:
      source: where it was read.
      system: the network.
      data: how its clips are read.
      step: training steps behind it.
      program: a batch without targets -> [b, l, 3, 4, c].
    """

    source: str
    system: Seld
    data: SeldPipelineConfig
    step: int
    program: Callable[[Mapping[str, Any]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class EventLocator:
    """Networks of the same classes, rate and length, whose tracks are averaged.

    Attributes:
      members: at least one.
    """

    members: tuple[Member, ...]

    @property
    def config(self) -> SeldConfig:
        """Of the first member; classes, rate and length are those of all."""
        return self.members[0].system.config

    @property
    def classes(self) -> tuple[str, ...]:
        """What it tells, by number."""
        return self.members[0].system.classes

    def locate_clips(
        self, clips: Clips, names: Sequence[str], progress: bool = True
    ) -> dict[str, Tracks]:
        """Tracks of clips of a folder.

        Args:
          clips: opened; of the classes, rate and length of the networks, with or without labels.
          names: which of them.
          progress: show a progress bar on stderr.

        Returns:
          For each clip x, y, distance in m and probability of being on screen, of three tracks in
          each label frame and class; the probability is that of the networks that tell it, 0
          where none does.

        Raises:
          InputError: the clips are not what a network takes, or its cached features are missing.
        """
        found: dict[str, list[Tracks]] = {name: [] for name in names}
        for member in self.members:
            config = member.system.config
            check_clips_fit(clips, config)
            loader = clip_loader(clips, config, member.data, reads_labels=False)
            starts = range(0, len(names), _BATCH)
            for start in track(
                starts, description="clips located", transient=True, disable=not progress
            ):
                some = names[start : start + _BATCH]
                for name, tracks in zip(
                    some, self._located(member, [loader[name] for name in some]), strict=True
                ):
                    found[name].append(tracks)
        return {name: average_outputs(each, self._tells) for name, each in found.items()}

    def locate_recording(
        self,
        audio: str | Path,
        video: str | Path | None = None,
        heard: str | Path | None = None,
        seen: str | Path | None = None,
    ) -> Tracks:
        """Tracks of a stereo recording of any length, window by window.

        Args:
          audio: a recording of two channels, at any rate.
          video: of it; needed where a network looks.
          heard: folder of the CLAP whose cached features a network was trained with.
          seen: folder of the OWL-ViT whose cached features it was trained with.

        Returns:
          Tracks of all label frames; the last window is filled up by silence and by the last
          picture, and what lies behind the end is left out.

        Raises:
          InputError: the recording is not stereo, a video is missing or ends too early, or a
            tower is missing or another than that of the training.
        """
        config = self.config
        sound, rate_hz = read_audio(audio)
        if len(sound) != 2:
            raise InputError(f"{audio}: has {len(sound)} channels; give a stereo recording.")
        sound = resample(sound, rate_hz, config.sample_rate_hz)
        window = self.members[0].system.window_samples
        count = -(-sound.shape[1] // window)
        padded = np.pad(sound, ((0, 0), (0, count * window - sound.shape[1])))
        recording = _Recording(
            np.split(padded.astype(np.float32), count, axis=1),
            sound.shape[1] / config.sample_rate_hz,
            video,
        )
        found = []
        for member in self.members:
            clips = _clips_of(member, recording, heard, seen)
            tracks: list[Tracks] = []
            while some := [*itertools.islice(clips, _BATCH)]:
                tracks += [*self._located(member, some)]
            found.append(np.concatenate(tracks))
        return average_outputs(found, self._tells)[: -(-sound.shape[1] * config.labels // window)]

    @property
    def _tells(self) -> list[bool]:
        return [member.system.config.on_screen for member in self.members]

    def _located(
        self, member: Member, clips: list[LabelledClip]
    ) -> Float32[np.ndarray, "b l 3 4 c"]:
        filled = clips + clips[-1:] * (_BATCH - len(clips))
        batch = collate_clips(filled, member.system.config.labels, member.system.classes)
        del batch["targets"]
        return np.asarray(member.program(batch))[: len(clips)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Recording:
    """A recording cut into windows.

    Attributes:
      parts: left and right of each window.
      sound_s: length of the sound, which the last window may exceed.
      video: of it, if there is one.
    """

    parts: list[Float32[np.ndarray, "2 t"]]
    sound_s: float
    video: str | Path | None


def _clips_of(
    member: Member, recording: _Recording, heard: str | Path | None, seen: str | Path | None
) -> Iterator[LabelledClip]:
    """The windows of a recording as a network takes them, one after the other."""
    config, nothing = member.system.config, itertools.repeat(None)
    frames: Iterator[Any] = nothing
    heard_features: Iterator[Any] = nothing
    seen_features: Iterator[Any] = nothing
    if config.looked_at is not None:
        frames = _pictures(member, recording, config.looked_at.count, config.looked_at.size)
    if config.heard_from == "cache":
        tower = hearing_tower(_tower_source(member, "heard", heard), config.sample_rate_hz)
        heard_features = _embedded(member, "heard", tower, recording.parts)
    if config.seen_from == "cache":
        assert config.seen is not None
        source = _tower_source(member, "seen", seen)
        tower = looking_tower(source, config.seen[0], config.duration_s)
        shown = _pictures(member, recording, config.seen[0], None)
        seen_features = _embedded(member, "seen", tower, shown)
    for part in recording.parts:
        yield LabelledClip(
            part, no_events(), next(frames), next(heard_features), next(seen_features)
        )


def _pictures(
    member: Member, recording: _Recording, count: int, size: tuple[int, int] | None
) -> Iterator[UInt8[np.ndarray, "v h w 3"]]:
    """`count` pictures of each window."""
    if recording.video is None:
        raise InputError(f"{member.source}: looks at pictures; give the video of the recording.")
    check_length(recording.video, recording.sound_s)
    total = len(recording.parts) * count
    times = (np.arange(total) + 0.5) * member.system.config.duration_s / count
    # No video goes on behind the end of its sound, where the last window does.
    times = np.minimum(times, recording.sound_s)
    frames = each_frame_at(recording.video, times.tolist(), size, at_least_s=recording.sound_s)
    while some := [*itertools.islice(frames, count)]:
        yield np.stack(some)


def _tower_source(member: Member, name: str, source: str | Path | None) -> str | Path:
    if source is None:
        what = {"heard": "a CLAP", "seen": "an OWL-ViT"}[name]
        raise InputError(
            f"{member.source}: was trained with cached features of {what}; give its folder "
            f"(--{name}) to locate events in a recording."
        )
    return source


def _embedded(
    member: Member, name: str, tower: FrozenTower, windows: Iterable[Any]
) -> Iterator[Float32[np.ndarray, "..."]]:
    """What a tower makes of each window, if it is the one that a network was trained with."""
    config, cache = member.system.config, getattr(member.data, name)
    wanted = getattr(config, name)
    if cache is not None and cache.is_dir() and TowerCache(cache).tower != tower.digest:
        raise InputError(
            f"--{name}: is another tower than that of {cache}, which {member.source} was trained "
            "with; give that."
        )
    for window in windows:
        features = tower.embed(window)
        if features.shape != wanted:
            raise InputError(
                f"--{name}: gives {features.shape} a window, but {member.source} takes {wanted}; "
                "give the tower that it was trained with."
            )
        yield features


def load_locator(
    runs: Sequence[str | Path],
    step: int | None = None,
    heard: Path | None = None,
    seen: Path | None = None,
) -> EventLocator:
    """Opens one network, or several to average.

    Args:
      runs: folders of runs or safetensors exports.
      step: checkpoint of the runs to take; None takes the newest.
      heard: cached CLAP features, in place of those of the training.
      seen: cached OWL-ViT features, likewise.

    Raises:
      InputError: there is none, one is no SELD network, or they differ in classes, rate or length.
    """
    if not runs:
        raise InputError("runs: there is none; give the folder of at least one run.")
    members = [_member(str(run), step, heard, seen) for run in runs]
    first = members[0]
    for member in members[1:]:
        for name in ("classes", "sample_rate_hz", "duration_s"):
            ours, theirs = (getattr(one.system.config, name) for one in (first, member))
            if ours != theirs:
                raise InputError(
                    f"{member.source}: has {name} {theirs}, but {first.source} has {ours}; average "
                    "networks that are alike in this."
                )
    return EventLocator(tuple(members))


def is_locator(run: str | Path) -> bool:
    """Whether a folder holds a SELD network rather than an audio-text model.

    Raises:
      InputError: it holds no model.
    """
    return described_experiment(find_model(run)).get("model", {}).get("kind") == SeldConfig.__name__


def _member(source: str, step: int | None, heard: Path | None, seen: Path | None) -> Member:
    trained = read_trained(source, step)
    system = trained.system
    if not isinstance(system, Seld):
        raise InputError(
            f"{source}: is a {type(system).__name__}, no SELD network; give a run of "
            "configs/seld.py."
        )
    data = from_plain(Experiment, trained.experiment).data
    assert isinstance(data, SeldPipelineConfig)
    data = dataclasses.replace(data, heard=heard or data.heard, seen=seen or data.seen)
    return trained_member(source, system, in_use(trained.variables), data, trained.step)


def trained_member(
    source: str, system: Seld, variables: Variables, data: SeldPipelineConfig, step: int
) -> Member:
    """A network with its variables, ready for use; its program is compiled once a network.

    Args:
      source: what it is called in messages.
      system: the network.
      variables: those in use.
      data: how its clips are read.
      step: training steps behind it.
    """
    locate, on_device = _jitted(system), jax.device_put(variables)
    return Member(source, system, data, step, lambda batch: locate(on_device, dict(batch)))


@functools.lru_cache(maxsize=4)
def _jitted(system: Seld) -> Callable[..., Any]:
    @jax.jit
    def locate(variables: Variables, batch: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.locate(variables, batch)

    return locate
