"""A tiny Spatial-CLAP: scenes, experiment and saved run of half a second and a few weights."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.pipeline import PipelineConfig
from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts, SceneRecipe
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.features import M2D_LOG_MEL, LogMelConfig
from spatial_clap_jax.inference import AudioTextModel, load
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.crnn import CrnnConfig
from spatial_clap_jax.models.m2d import PredictorConfig
from spatial_clap_jax.models.spatial_attributes import SpatialAttributesConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.systems.elsa import ElsaConfig
from spatial_clap_jax.systems.m2d_clap import M2dClapConfig
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train.checkpoint import RunCheckpoints
from spatial_clap_jax.train.description import write_description
from spatial_clap_jax.train.experiment import Experiment, load_config
from spatial_clap_jax.train.optim import OptimizerConfig

RATE_HZ = 16_000
WINDOW = 8_000
MAX_TOKENS = 24
CAPTIONS = ("a dog barks on the left side.", "rain falls in front, and a bell rings in front.")


def tiny_recipe() -> SceneRecipe:
    """Scenes of the synthetic bank for `tiny_experiment`, rendered in seconds."""
    return SceneRecipe(
        name="tiny",
        sample_rate_hz=RATE_HZ,
        duration_s=WINDOW / RATE_HZ,
        room_counts=RoomCounts(train=2, validation=1, test=1),
        places_per_room=5,
        group_counts=GroupCounts(8, 8, 0, 2, 2, 0, 4, 4, 4),
        sources=SourceOptions(synthetic_clips=(2, 1, 1)),
    )


def tiny_experiment() -> Experiment:
    """Both encoders of the small sizes at a width that compiles in a second."""
    mel = LogMelConfig(
        sample_rate_hz=RATE_HZ, n_fft=256, hop=160, mels=16, low_hz=50.0, high_hz=8000.0
    )
    return Experiment(
        name="tiny",
        model=SpatialClapConfig(
            sample_rate_hz=RATE_HZ,
            window_s=WINDOW / RATE_HZ,
            content=CnnConfig(channels=(8,), pools=((1, 2),), width=16, heads=2),
            content_mel=mel,
            spatial=CrnnConfig(
                patch=(4, 4),
                channels=(8,),
                pools=((1, 2),),
                order="norm_first",
                frame_width=16,
                gru_width=8,
                gru_layers=1,
                pooling="attention",
                heads=4,
                width=16,
            ),
            spatial_planes="mel_cross",
            spatial_mel=mel,
            text=TextConfig(
                vocabulary=320,
                width=16,
                layers=1,
                heads=2,
                mlp_width=32,
                max_tokens=MAX_TOKENS,
            ),
            fusion_width=16,
            joint_width=12,
            spec_augment=None,
        ),
        data=PipelineConfig(captions_per_batch=8),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        steps=2,
        log_every=1,
        checkpoint_every=1,
    )


def random_variables(experiment: Experiment, seed: int = 0) -> dict:
    """Variables of the experiment's shapes, every one of them drawn, as NumPy arrays."""
    shapes = jax.eval_shape(experiment.build_system().init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.uniform(0.05, 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    signs = lambda leaf: rng.choice(np.float32([-1, 1]), leaf.shape)  # noqa: E731
    return {
        "params": jax.tree.map(lambda s: np.asarray(draw(s) * signs(s)), shapes["params"]),
        # Variances must be positive.
        "batch_stats": jax.tree.map(draw, shapes["batch_stats"]),
    }


def save_tiny_run(
    workdir: Path,
    steps: tuple[int, ...] = (1, 2),
    averaged: bool = True,
    experiment: Experiment | None = None,
) -> Path:
    """Saves a run as the trainer does; at step n, variables drawn by n, their average by n + 100.

    Args:
      workdir: folder to write.
      steps: checkpoints to save.
      averaged: whether a moving average was kept.
      experiment: of the run, of the tiny one's lengths and rate; the tiny one when None.

    Returns:
      The folder.
    """
    experiment = experiment or tiny_experiment()
    system = experiment.build_system()
    max_tokens = min(MAX_TOKENS, system.max_tokens)
    tokenizer = Tokenizer.train(CAPTIONS, system.vocabulary, max_tokens)
    write_description(
        workdir,
        {
            "experiment": to_plain(replace(experiment, tokenizer=Path("/home/me/tokenizer.json"))),
            "data_fingerprint": "0123456789abcdef",
            "tokenizer": tokenizer.to_json(),
            "max_tokens": max_tokens,
            "preprocessing": {
                "sample_rate_hz": RATE_HZ,
                "channels": system.channels,
                "window_samples": WINDOW,
            },
        },
    )
    checkpoints = RunCheckpoints(workdir)
    for step in steps:
        state = {
            "step": np.array(step, np.int32),
            "variables": random_variables(experiment, step),
            "optimizer": {"count": np.array(step, np.int32)},
            "average": random_variables(experiment, step + 100) if averaged else {},
        }
        checkpoints.save(step, state, {"step": step}, wait=True)
    checkpoints.close()
    return workdir


@functools.cache
def shared_run(folder: Path) -> Path:
    """A saved tiny run, one a session; give `tmp_path_factory.getbasetemp()`."""
    return save_tiny_run(folder / "tiny_run")


@functools.cache
def shared_model(folder: Path) -> AudioTextModel:
    """The model of `shared_run`, compiled once."""
    return load(shared_run(folder))


def tiny_elsa() -> Experiment:
    """ELSA with the parts of the small size, at the widths of `tiny_experiment`."""
    tiny = tiny_experiment()
    shared = tiny.model
    assert isinstance(shared, SpatialClapConfig)
    model = ElsaConfig(
        sample_rate_hz=RATE_HZ,
        window_s=WINDOW / RATE_HZ,
        content=shared.content,
        content_mel=shared.content_mel,
        attributes=SpatialAttributesConfig(
            patch=(4, 4),
            channels=(8,),
            pools=((1, 2),),
            hears_level=True,
            pooling="attention",
            heads=4,
            width=16,
            hidden=(16,),
        ),
        intensity=shared.content_mel,
        intensity_scale="energy",
        static_bands=4,
        text=shared.text,
        spatial_width=12,
        fusion_width=16,
        joint_width=12,
        head_width=8,
        spec_augment=None,
    )
    data = PipelineConfig(captions_per_batch=8, swap=False, rotate=True)
    return replace(tiny, name="tiny_elsa", model=model, data=data)


def tiny_m2d(**changes: Any) -> Experiment:
    """Stage 1 of M2D-CLAP with a text encoder that trains along, at the widths of the others.

    Args:
      changes: of its `M2dClapConfig`.
    """
    tiny = tiny_experiment()
    shared = tiny.model
    assert isinstance(shared, SpatialClapConfig)
    mel = replace(shared.content_mel, amin=M2D_LOG_MEL.amin, level="natural")
    model = M2dClapConfig(
        window_s=WINDOW / RATE_HZ,
        crop_frames=40,
        mel=mel,
        content=VitConfig(mels=16, frames=40, patch=(8, 8), width=16, layers=1, heads=2),
        mask_ratio=0.6,
        predictor=PredictorConfig(width=8, layers=1, heads=2),
        target_decays=(0.9, 0.99),
        contrast_weight=0.1,
        joint_width=12,
        text=shared.text,
    )
    data = PipelineConfig(captions_per_batch=8, plain_share=1.0, swap=False)
    return replace(tiny, name="tiny_m2d", model=replace(model, **changes), data=data)


def tiny_m2d_stage(config: str, **changes: Any) -> Experiment:
    """A shipped stage of M2D-CLAP of the small size, as narrow as `tiny_m2d`.

    Args:
      config: such as 'm2d_clap_text.py'.
      changes: of its `M2dClapConfig`.
    """
    ours, tiny = load_config(config, "small"), tiny_m2d().model
    assert isinstance(ours.model, M2dClapConfig)
    assert isinstance(tiny, M2dClapConfig)
    crop_frames = ours.model.crop_frames and tiny.crop_frames
    model = replace(
        ours.model,
        window_s=tiny.window_s,
        crop_frames=crop_frames,
        mel=tiny.mel,
        content=replace(tiny.content, frames=crop_frames or tiny.frames),
        predictor=tiny.predictor,
        joint_width=tiny.content.width,
        text=tiny.text,
        **changes,
    )
    return replace(ours, model=model)
