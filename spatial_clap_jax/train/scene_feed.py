"""Scene groups and their captions as the feed of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clap_jax.acoustics.directions import phrase_set
from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.data.labels import check_clips, check_labels
from spatial_clap_jax.data.manifests import digest
from spatial_clap_jax.data.pipeline import PipelineConfig, TrainBatches, train_batches
from spatial_clap_jax.data.rewritten import REWRITTEN, read_rewrites
from spatial_clap_jax.data.sentences import Sentences
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.small_files import text_of
from spatial_clap_jax.systems.base import Labelled, System, reads_texts
from spatial_clap_jax.train import warm_start
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.fitting import check_heard, fitted_to_data
from spatial_clap_jax.train.warm_start import Towers


@dataclass
class SceneFeed:
    """Scenes of a folder for an audio-text model; see `train.feeds.Feed`.

    Attributes:
      experiment: fitted to the scenes and to pretrained encoders.
      data: the folder.
      scenes: opened.
      towers: pretrained encoders.
      drawn: notes on what a new run leaves as it was drawn.
      tokenizer: of the captions, once `describe` or `adopt` has decided it.
    """

    experiment: Experiment
    data: str | Path
    scenes: Any
    towers: Towers
    drawn: Sequence[str] = ()
    tokenizer: Tokenizer | None = None

    @classmethod
    def opened(
        cls, experiment: Experiment, data: str | Path, resumed: Mapping[str, Any] | None
    ) -> SceneFeed:
        """Opens scenes and towers; see `train.feeds.open_feed`."""
        scenes = open_scenes(data, experiment.data.bad_records)
        experiment = fitted_to_data(experiment, scenes, resumed)
        experiment, towers = warm_start.adopt(experiment, resumed)
        # What a run that goes on has taken lies in its checkpoint.
        drawn = warm_start.notes_on_drawn(experiment, towers.arrays) if resumed is None else []
        return cls(experiment, data, scenes, towers, drawn)

    @property
    def fingerprint(self) -> str:
        scenes, beside = self.scenes.manifest["fingerprint"], self._beside
        return digest({"scenes": scenes, **beside}) if beside else scenes

    @property
    def dataset(self) -> dict[str, Any]:
        manifest = self.scenes.manifest
        of_scenes = {key: manifest.get(key) for key in ("recipe", "source", "rirs", "groups")}
        return {**of_scenes, **self._beside}

    @property
    def _beside(self) -> dict[str, Any]:
        """What lies beside the scenes, where the run reads it."""
        config, beside = self._config, {}
        if config.rewritten_share:
            path = Path(self.data) / REWRITTEN
            beside["rewrites"] = digest(text_of(path)) if path.exists() else None
        if config.sentences is not None:
            beside["sentences"] = Sentences(config.sentences).header
        return beside

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        return self.towers.arrays

    @property
    def _config(self) -> PipelineConfig:
        assert isinstance(self.experiment.data, PipelineConfig)
        return self.experiment.data

    @property
    def _system(self) -> System:
        system = self.experiment.build_system()
        assert isinstance(system, System)
        return system

    def describe(self) -> dict[str, Any]:
        manifest, system = self.scenes.manifest, self._system
        _check_shape(manifest["recipe"], system)
        check_heard(self.experiment, manifest["recipe"])
        self.tokenizer = self._chosen_tokenizer(system)
        content_labels(self.experiment, manifest)
        return {
            "data": {"source": manifest["source"]["name"], "recipe": manifest["recipe"]["name"]},
            "tokenizer": self.tokenizer.to_json(),
            "max_tokens": system.max_tokens,
            "preprocessing": {
                "sample_rate_hz": system.sample_rate_hz,
                "channels": system.channels,
                "window_samples": system.window_samples,
            },
        }

    def adopt(self, description: Mapping[str, Any]) -> None:
        if description["tokenizer"] is None:
            raise InputError(
                "--workdir: holds a run without captions; take another --workdir for this model."
            )
        self.tokenizer = Tokenizer.from_json(description["tokenizer"], description["max_tokens"])

    def batches(self, rows: Sequence[int]) -> TrainBatches:
        assert self.tokenizer is not None
        assert isinstance(self.experiment.loss, ContrastiveConfig)
        return train_batches(
            self.scenes,
            self._config,
            self.tokenizer,
            scl=self.experiment.loss.scl,
            seed=self.experiment.seed,
            rows=rows,
            labels=self._system.labels,
            rewrites=read_rewrites(self.data) if self._config.rewritten_share else None,
            **content_labels(self.experiment, self.scenes.manifest),
        )

    def notes(self) -> list[str]:
        assert self.tokenizer is not None
        corpus = self.scenes.manifest["caption_corpus"] if reads_texts(self._system) else []
        told = long_captions(self.tokenizer, corpus)
        given = self.experiment.tokenizer
        if given is not None and not self._reads_as(given):
            told.append(
                f"--tokenizer {given}: not read; the run goes on with the tokenizer that it began "
                "with, which is in its description.json"
            )
        for report in self.towers.reports:
            told += report.lines if self.experiment.init.verbose else [report.summary]
        return [*told, *self.drawn]

    def _reads_as(self, given: Path) -> bool:
        """Whether a file holds the tokenizer in use; where it is gone, that cannot be told."""
        assert self.tokenizer is not None
        try:
            there = Tokenizer.from_file(given, self.tokenizer.max_tokens)
        except InputError:
            return False
        return there.to_json() == self.tokenizer.to_json()

    def _chosen_tokenizer(self, system: System) -> Tokenizer:
        """The experiment's, else its text encoder's, else a small one of the captions."""
        given, vocabulary = self.experiment.tokenizer, system.vocabulary
        if given is not None:
            tokenizer = Tokenizer.from_file(given, system.max_tokens)
            if tokenizer.vocabulary_size > vocabulary:
                if not reads_texts(system):
                    raise InputError(
                        f"--tokenizer {given}: the model reads no texts; leave it out."
                    )
                raise InputError(
                    f"--tokenizer {given}: has {tokenizer.vocabulary_size} tokens, the model takes "
                    f"{vocabulary}; set --model.text.vocabulary."
                )
            return tokenizer
        if self.towers.tokenizer is not None:
            return self.towers.tokenizer
        corpus = [*self.scenes.manifest["caption_corpus"]]
        for phrases in self._config.phrases:
            corpus += [phrase for phrase in phrase_set(phrases) if phrase not in corpus]
        # The words that join captions are learned too.
        joined = [f"{a}, and {b}." for a, b in pairwise(corpus)]
        return Tokenizer.train(joined, vocabulary, system.max_tokens)


def _check_shape(recipe: Mapping[str, Any], system: System) -> None:
    rate, seconds = recipe["sample_rate_hz"], recipe["duration_s"]
    if rate != system.sample_rate_hz or round(rate * seconds) != system.window_samples:
        raise InputError(
            f"--data: scenes of {seconds:g} s at {rate} Hz, but the model takes "
            f"{system.window_samples / system.sample_rate_hz:g} s at {system.sample_rate_hz} Hz; "
            "render scenes of that length and rate, or set --model.window-s."
        )
    heard = channels_of(recipe)
    if heard != system.channels:
        raise InputError(
            f"--data: scenes of {heard} channels, but the model takes {system.channels}; render "
            "scenes for its receiver (configs/scenes.py for two microphones, "
            "configs/elsa_scenes.py for ambisonics, configs/clips.py for one channel), or train "
            "another model."
        )


def content_labels(experiment: Experiment, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the labels of contents are read from: `sentences` and `classes`, for `train_batches`.

    Args:
      experiment: says where they are.
      manifest: of the data.

    Raises:
      InputError: the model wants what is not there, or what the data lack.
    """
    system = experiment.build_system()
    if not isinstance(system, Labelled) or not isinstance(experiment.data, PipelineConfig):
        return {}
    folder, width = experiment.data.sentences, system.sentence_width
    sentences = Sentences(folder) if folder is not None and width else None
    if sentences is not None and sentences.width != width:
        raise InputError(
            f"data.sentences: {folder} holds vectors of {sentences.width}, but the model takes "
            f"{width}; set --model.text.width, or embed the captions by another encoder."
        )
    check_labels(system.labels, sentences, system.classes)
    check_clips(manifest, system.labels, sentences, system.classes)
    return {"sentences": sentences, "classes": system.classes}


def channels_of(recipe: Mapping[str, Any]) -> int:
    """Channels of the scenes of a plain recipe: its receiver's."""
    # Two microphones were the only receiver before it said which.
    return {"Foa": 4, "Mono": 1}.get(recipe.get("receiver", {}).get("kind"), 2)


def long_captions(tokenizer: Tokenizer, corpus: list[str]) -> list[str]:
    """A note where the longest captions of two sources are cut in training, else nothing."""
    longest = sorted(corpus, key=len)[-2:]
    if not longest:
        return []
    one, other = longest[0], longest[-1]
    try:
        tokenizer.encode([f"{one} in the front-left, and {other} in the front-right."])
    except InputError as error:
        return [f"captions as long as this are cut; --model.text.max-tokens raises it: {error}"]
    return []
