"""What feeds a training: the data, opened and checked against the experiment, as batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.data.labels import LABELS
from spatial_clap_jax.data.pipeline import PipelineConfig, TrainBatches
from spatial_clap_jax.systems.base import Labelled
from spatial_clap_jax.systems.seld import Seld, SeldConfig
from spatial_clap_jax.train import sharding
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.scene_feed import SceneFeed
from spatial_clap_jax.train.seld_feed import SeldFeed


class Feed(Protocol):
    """Data that fit an experiment, and what of the experiment they decide.

    Attributes:
      experiment: with all that it leaves to its data and to pretrained encoders.
      fingerprint: of the data.
      dataset: what tells the data from others, as plain JSON that a person can compare.
      arrays: variables that are not drawn, by '/'-joined path.
    """

    @property
    def experiment(self) -> Experiment: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dataset(self) -> dict[str, Any]: ...
    @property
    def arrays(self) -> Mapping[str, np.ndarray]: ...

    def describe(self) -> dict[str, Any]:
        """What makes a new run loadable without its command, beside its experiment.

        Raises:
          InputError: the data do not fit the model.
        """
        ...

    def adopt(self, description: Mapping[str, Any]) -> None:
        """Takes what the run's folder says: on a resume, and what its first process wrote."""
        ...

    def batches(self, rows: Sequence[int]) -> TrainBatches:
        """Endless batches of some rows of each global batch."""
        ...

    def notes(self) -> list[str]:
        """What a person should know before the first step, a line each."""
        ...


def open_feed(
    experiment: Experiment, data: str | Path, resumed: Mapping[str, Any] | None = None
) -> Feed:
    """Opens the data of a training.

    Args:
      experiment: as configured.
      data: folder of scenes, or of clips in DCASE form for a SELD network.
      resumed: the plain experiment of the run that goes on.

    Raises:
      InputError: the data cannot be read, or lack what the model learns from.
    """
    if isinstance(experiment.model, SeldConfig):
        return SeldFeed.opened(experiment, data, resumed)
    return SceneFeed.opened(experiment, data, resumed)


def abstract_batch(experiment: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of an experiment's feed, split over a mesh."""
    system = experiment.build_trainable()
    rows = system.batch_rows() if isinstance(system, Seld) else _scene_rows(experiment)
    place = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((experiment.data.rows, *shape), dtype, sharding=place)
        for name, (shape, dtype) in rows.items()
    }


def _scene_rows(experiment: Experiment) -> dict[str, tuple[tuple[int, ...], Any]]:
    system = experiment.build_system()
    rows: dict[str, tuple[tuple[int, ...], Any]] = {
        "audio": ((system.channels, system.window_samples), jnp.float32),
        "tokens": ((system.max_tokens,), jnp.int32),
        "token_mask": ((system.max_tokens,), jnp.bool_),
        "group": ((), jnp.int32),
        "meaning": ((), jnp.int32),
    }
    rows |= {name: LABELS[name] for name in system.labels if name in LABELS}
    if isinstance(system, Labelled):
        classes = len(system.classes)
        events = (classes, len(STEREO_DIRECTIONS))
        shapes = {
            "sentence": (system.sentence_width,),
            "categories": (classes,),
            "events": events,
            "rival_events": events,
        }
        rows |= {name: (shapes[name], jnp.float32) for name in system.labels if name in shapes}
    if isinstance(experiment.data, PipelineConfig) and experiment.data.rivals:
        rows |= {f"rival_{name}": rows[name] for name in ("tokens", "token_mask")}
        rows["has_rival"] = ((), jnp.bool_)
    return rows
