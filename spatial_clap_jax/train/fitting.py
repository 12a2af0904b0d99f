"""What an experiment leaves to its data: classes, and the normalisation of M2D-CLAP's levels."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from spatial_clap_jax import features
from spatial_clap_jax.configs_io import from_plain
from spatial_clap_jax.data.drawing import REFERENCE_LEVEL_DB
from spatial_clap_jax.data.manifests import LEVELLED
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.label_vectors import LabelsConfig
from spatial_clap_jax.systems.m2d_clap import M2dClapConfig
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train.experiment import Experiment

# Clips that are listened to, spread over the data, and how many at a time.
_CLIPS, _AT_A_TIME = 512, 16


def fitted_to_data(
    experiment: Experiment, scenes: Any, resumed: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment with what its model leaves to the data.

    Args:
      experiment: as configured.
      scenes: the opened data.
      resumed: the plain experiment of the run that goes on, which holds what was found then.

    Raises:
      InputError: the data have no categories, where those are the model's classes.
    """
    model = experiment.model
    if isinstance(model, SpatialClapConfig) and isinstance(model.text, LabelsConfig):
        text = model.text
        if text.classes is None:
            classes = (
                _classes(scenes, "model.text.classes")
                if resumed is None
                else _resumed_classes(resumed)
            )
            text = dataclasses.replace(text, classes=classes)
        return dataclasses.replace(experiment, model=dataclasses.replace(model, text=text))
    if not isinstance(model, M2dClapConfig):
        return experiment
    init = experiment.init
    is_measured = model.normalisation is None and init.model is None and init.audio is None
    if resumed is not None:
        there = from_plain(Experiment, dict(resumed)).model
        if isinstance(there, M2dClapConfig):
            if model.classes is None:
                model = dataclasses.replace(model, classes=there.classes)
            if is_measured:
                model = dataclasses.replace(model, normalisation=there.normalisation)
        return dataclasses.replace(experiment, model=model)
    if model.classes is None:
        model = dataclasses.replace(model, classes=_classes(scenes, "model.classes"))
    if is_measured:
        batches = training_clips(scenes)
        found = measured_normalisation(batches, model, experiment.seed)
        model = dataclasses.replace(model, normalisation=found)
    return dataclasses.replace(experiment, model=model)


def _classes(scenes: Any, name: str) -> tuple[str, ...]:
    classes = tuple(scenes.manifest["categories"])
    if not classes:
        raise InputError(
            f"{name}: the data have no categories; give data with labels, or train without classes."
        )
    return classes


def _resumed_classes(resumed: Mapping[str, Any]) -> tuple[str, ...] | None:
    there = from_plain(Experiment, dict(resumed)).model
    text = there.text if isinstance(there, SpatialClapConfig) else None
    return text.classes if isinstance(text, LabelsConfig) else None


def check_heard(experiment: Experiment, recipe: Mapping[str, Any]) -> None:
    """Refuses to train an M2D-CLAP on what it would not hear in use.

    Runs that exist are used as they are, so that no model's own description can refuse this.

    Args:
      experiment: fitted to its data.
      recipe: of the clips, as plain JSON.

    Raises:
      InputError: inputs in use would be of another length, or recordings of another level.
    """
    model, level = experiment.model, recipe.get("level", LEVELLED)
    if not isinstance(model, M2dClapConfig):
        return
    trained = model.crop_frames or model.frames
    if model.content.frames != trained:
        what = "crops of" if model.crop_frames else "windows of"
        raise InputError(
            f"model.content.frames: {model.content.frames}, the inputs that a recording is cut "
            f"into in use, but the training hears {what} {trained} frames; give "
            f"--model.content.frames {trained}."
        )
    held = REFERENCE_LEVEL_DB if level == LEVELLED else None
    if model.active_level_db != held:
        raise InputError(
            f"model.active_level_db: {model.active_level_db}, the level of recordings in use, but "
            f"the clips of the data were rendered at level '{level}'; give --model.active-level-db "
            f"{held}, or render clips by --level {'recorded' if held else LEVELLED}."
        )


def measured_normalisation(
    batches: Iterable[Float32[np.ndarray, "b t"]], model: M2dClapConfig, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation of levels, over a random crop of each clip.

    Args:
      batches: clips of a window at the model's rate.
      model: front end and length of the crop.
      seed: of the crops.

    Returns:
      Both rounded to six digits behind the point, as they are stored.

    Raises:
      InputError: there are no clips, or all of them are silent.
    """

    @jax.jit
    def log_mel(audio: Any) -> Any:
        heard = features.resample(audio, model.sample_rate_hz, model.mel.sample_rate_hz)
        return features.log_mel(heard, model.mel)

    rng, count, sums = np.random.default_rng(seed), 0, np.zeros(2)
    for audio in batches:
        for level in np.asarray(log_mel(audio), np.float64):
            frames = model.crop_frames or len(level)
            start = rng.integers(max(len(level) - frames, 0) + 1)
            crop = level[start : start + frames]
            count += crop.size
            sums += crop.sum(), (crop**2).sum()
    mean, square = sums / max(count, 1)
    deviation = np.sqrt(max(square - mean**2, 0.0))
    if not deviation > 1e-6:
        raise InputError(
            "model.normalisation: levels of the data are all the same; give clips with sound in "
            "them, or both numbers."
        )
    return round(float(mean), 6), round(float(deviation), 6)


def training_clips(scenes: Any) -> Iterable[Float32[np.ndarray, "b t"]]:
    """The first member of scenes spread over the training splits, in float32 of one channel."""
    splits = [name for name in sorted(scenes.splits) if name.startswith("train_")]
    places = [(split, index) for split in splits for index in range(len(scenes.source(split)))]
    # From the first to the last: splits and categories may stand one behind the other.
    spread = np.linspace(0, len(places) - 1, min(len(places), _CLIPS)).round().astype(int)
    chosen = [places[index] for index in spread]
    sources = {split: scenes.source(split) for split in splits}
    for begin in range(0, len(chosen), _AT_A_TIME):
        groups = [sources[split][index] for split, index in chosen[begin : begin + _AT_A_TIME]]
        yield np.stack([group.audio[0, 0] * np.float32(group.scale) for group in groups])
