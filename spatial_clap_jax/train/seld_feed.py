"""Clips in DCASE form, with their cached features, as the feed of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clap_jax.configs_io import from_plain
from spatial_clap_jax.data.dcase import Clips, open_clips
from spatial_clap_jax.data.pipeline import TrainBatches
from spatial_clap_jax.data.seld_pipeline import ClipLoader, SeldPipelineConfig, seld_batches
from spatial_clap_jax.data.tower_cache import TowerCache
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.systems.seld import SeldConfig
from spatial_clap_jax.train import warm_start
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.warm_start import Towers


@dataclass
class SeldFeed:
    """Clips of a folder for a SELD network; see `train.feeds.Feed`.

    Attributes:
      experiment: fitted to the clips, their cached features and pretrained towers.
      clips: opened.
      towers: pretrained towers that compute in the step.
    """

    experiment: Experiment
    clips: Clips
    towers: Towers

    @classmethod
    def opened(
        cls, experiment: Experiment, data: str | Path, resumed: Mapping[str, Any] | None
    ) -> SeldFeed:
        """Opens clips, caches and towers; see `train.feeds.open_feed`."""
        clips = open_clips(data)
        model, config = experiment.model, experiment.data
        assert isinstance(model, SeldConfig)
        assert isinstance(config, SeldPipelineConfig)
        if model.classes is None:
            model = replace(model, classes=clips.classes)
        if resumed is not None:
            there = from_plain(Experiment, dict(resumed)).model
            if isinstance(there, SeldConfig):
                model = replace(model, classes=there.classes)
        heard, seen = (cached(path, clips) for path in (config.heard, config.seen))
        model = replace(
            model,
            heard=None if heard is None else heard.shape,
            heard_step_s=None if heard is None else heard.step_s,
            seen=None if seen is None else seen.shape,
        )
        experiment, towers = warm_start.adopt(replace(experiment, model=model), resumed)
        check_clips_fit(clips, model)
        return cls(experiment, clips, towers)

    @property
    def fingerprint(self) -> str:
        return self.clips.fingerprint

    @property
    def dataset(self) -> dict[str, Any]:
        _, config = self._parts
        # Recordings of others have no manifest.
        rendered = {k: v for k, v in self.clips.manifest.items() if k in ("recipe", "source")}
        caches = {name: cached(getattr(config, name), self.clips) for name in ("heard", "seen")}
        return {
            **rendered,
            "classes": list(self.clips.classes),
            "splits": {split: len(names) for split, names in self.clips.splits.items()},
            "fingerprint": self.clips.fingerprint,
            # A folder of features may hold those of another tower today.
            "caches": {
                name: found.header["tower"] for name, found in caches.items() if found is not None
            },
        }

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        return self.towers.arrays

    @property
    def _parts(self) -> tuple[SeldConfig, SeldPipelineConfig]:
        model, config = self.experiment.model, self.experiment.data
        assert isinstance(model, SeldConfig)
        assert isinstance(config, SeldPipelineConfig)
        return model, config

    def describe(self) -> dict[str, Any]:
        model, _ = self._parts
        return {
            "data": {"clips": len(self.clips.splits.get("train", ()))},
            # It reads no words.
            "tokenizer": None,
            "max_tokens": 0,
            "preprocessing": {
                "sample_rate_hz": model.sample_rate_hz,
                "channels": 2,
                "window_samples": round(model.duration_s * model.sample_rate_hz),
            },
        }

    def adopt(self, description: Mapping[str, Any]) -> None:
        """Nothing that a description says is needed to go on."""

    def batches(self, rows: Sequence[int]) -> TrainBatches:
        model, config = self._parts
        loader = clip_loader(self.clips, model, config)
        return seld_batches(loader, config, seed=self.experiment.seed, rows=rows)

    def notes(self) -> list[str]:
        told = []
        for report in self.towers.reports:
            told += report.lines if self.experiment.init.verbose else [report.summary]
        return told


def clip_loader(
    clips: Clips, model: SeldConfig, config: SeldPipelineConfig, reads_labels: bool = True
) -> ClipLoader:
    """What reads a folder's clips as a network takes them.

    Args:
      clips: opened.
      model: says what is looked at.
      config: says where cached features lie.
      reads_labels: see `ClipLoader`.

    Raises:
      InputError: a cache is of other clips, or of another shape than the network's.
    """
    caches = {}
    for name in ("heard", "seen"):
        source = {"heard": model.heard_from, "seen": model.seen_from}[name]
        if source != "cache":
            caches[name] = None
            continue
        found, wanted = cached(getattr(config, name), clips), getattr(model, name)
        shape = None if found is None else found.shape
        if shape != wanted:
            raise InputError(
                f"data.{name}: {getattr(config, name)} holds {shape} a clip, but the model takes "
                f"{wanted}; give features made by the same tower (`spatial-clap embed`)."
            )
        caches[name] = found
    return ClipLoader(
        clips,
        model.looked_at,
        **caches,
        cache_mib=config.frame_cache_mib,
        reads_labels=reads_labels,
    )


def cached(path: Path | None, clips: Clips) -> TowerCache | None:
    """The cached features in a folder, None without one.

    Raises:
      InputError: they are of other clips.
    """
    if path is None:
        return None
    cache = TowerCache(path)
    if cache.fingerprint != clips.fingerprint:
        raise InputError(
            f"{path}: holds features of other clips; run `spatial-clap embed` on these, into "
            "another folder."
        )
    return cache


def check_clips_fit(clips: Clips, model: SeldConfig) -> None:
    """Refuses clips that are not what a network takes.

    Raises:
      InputError: another rate or length, other classes, or no videos to look at.
    """
    if clips.sample_rate_hz != model.sample_rate_hz or clips.labels != model.labels:
        raise InputError(
            f"--data: clips of {clips.duration_s:g} s at {clips.sample_rate_hz} Hz, but the model "
            f"takes {model.duration_s:g} s at {model.sample_rate_hz} Hz; give such clips, or set "
            "--model.duration-s and --model.sample-rate-hz."
        )
    if clips.classes != model.classes:
        raise InputError(
            f"--data: clips of the classes {', '.join(clips.classes)}, but the model tells "
            f"{', '.join(model.classes or ())}; give data of these classes, or train another model."
        )
    if model.looked_at is not None and not clips.has_video:
        raise InputError(
            "--data: the clips have no videos, but the model looks at them; give clips with "
            "videos, or leave OWL-ViT out (--model.looks False)."
        )
