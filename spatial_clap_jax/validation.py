"""Scores of a training as it goes: the validation split, by the weights of the moment."""

from __future__ import annotations

import dataclasses
from typing import cast

from spatial_clap_jax.data.pipeline import Scenes
from spatial_clap_jax.data.seld_pipeline import SeldPipelineConfig
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate_in_detail
from spatial_clap_jax.evaluate_events import evaluate_events
from spatial_clap_jax.event_locator import EventLocator, trained_member
from spatial_clap_jax.inference import audio_text_model
from spatial_clap_jax.metrics.scores import Results
from spatial_clap_jax.systems.base import System, Variables, reads_texts
from spatial_clap_jax.systems.m2d_clap import M2dClap
from spatial_clap_jax.systems.seld import Seld
from spatial_clap_jax.train.feeds import Feed
from spatial_clap_jax.train.scene_feed import SceneFeed
from spatial_clap_jax.train.seld_feed import SeldFeed

SPLIT = "validation"
# What names a part of a class or a kind of scene, where the log keeps the whole alone.
_DETAIL = ":"


@dataclasses.dataclass
class Validation:
    """Scores variables on the validation split of what feeds a training.

    Localisation and probes, which learn something of their own first, are left out. A model that
    reads no texts is asked for the labels that it has learnt.

    Attributes:
      feed: of the training.

    Raises:
      InputError: there is no such split, or nothing can be asked of the model: it reads no texts,
        and has learnt no labels of plain clips.
    """

    feed: Feed

    def __post_init__(self) -> None:
        feed = self.feed
        if isinstance(feed, SeldFeed):
            splits = [name for name, clips in feed.clips.splits.items() if clips]
        else:
            named = cast(SceneFeed, feed).scenes.splits
            splits = [name.partition("_k")[0] for name in named]
            system = feed.experiment.build_system()
            is_asked = isinstance(system, M2dClap) and system.classes and f"{SPLIT}_k0" in named
            if not reads_texts(system) and not is_asked:
                raise InputError(
                    f"evaluate_every: {feed.experiment.evaluate_every}, but this model reads no "
                    f"texts and tells no labels of clips of {SPLIT}, so that nothing can be asked; "
                    "give None."
                )
        if SPLIT not in splits:
            raise InputError(
                f"evaluate_every: {feed.experiment.evaluate_every}, but the data have no split "
                f"'{SPLIT}' ({', '.join(sorted(set(splits)))}); give data that have one, or None."
            )

    def __call__(self, variables: Variables, step: int) -> dict[str, float]:
        """Scores `validation/{task}/{part}`; see `evaluate` and `evaluate_events`.

        Args:
          variables: on the host, those in use.
          step: training steps behind them.
        """
        results = (
            self._of_events(self.feed, variables, step)
            if isinstance(self.feed, SeldFeed)
            else self._of_scenes(cast(SceneFeed, self.feed), variables, step)
        )
        return {
            f"{SPLIT}/{name}": float(score["value"])
            for name, score in results.items()
            if _DETAIL not in name
        }

    def _of_scenes(self, feed: SceneFeed, variables: Variables, step: int) -> Results:
        system = feed.experiment.build_system()
        assert isinstance(system, System)
        # Every feed has a tokenizer; a model that reads no texts must not be asked in words.
        tokenizer = feed.tokenizer if reads_texts(system) else None
        model = audio_text_model(system, variables, tokenizer, step)
        scenes = cast(Scenes, feed.scenes)
        return evaluate_in_detail(model, scenes, SPLIT, progress=False, localise=0).results

    def _of_events(self, feed: SeldFeed, variables: Variables, step: int) -> Results:
        system, data = feed.experiment.build_trainable(), feed.experiment.data
        assert isinstance(system, Seld)
        assert isinstance(data, SeldPipelineConfig)
        member = trained_member("this training", system, variables, data, step)
        return evaluate_events(EventLocator((member,)), feed.clips, SPLIT, progress=False)[0]
