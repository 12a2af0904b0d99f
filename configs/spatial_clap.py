"""Spatial-CLAP (arXiv 2509.14785): stereo audio and text, content tied to place by SCL.

    spatial-clap render configs/scenes.py --sources esc10.csv --out data/esc10
    spatial-clap train configs/spatial_clap.py --size small --data data/esc10 --workdir runs/esc10
    spatial-clap evaluate runs/esc10 --data data/esc10 --split test --out results.json

`small` is about half an hour's work of two cores. Its predecessor, with a CRNN and with text
positions that have no sides, reached on ESC-10, on clips and rooms never heard, 88 % in two-source
content-space assignment (chance 50), 41 % in three-source assignment (chance 17, never trained on)
and 99 % in direction; `small` as it is here has been trained in shorter runs only, after labels
(configs/spatial_clap_labels.py, docs/findings.md). `base` has not been trained by us.
docs/pretrained.md tells how a run starts from published encoders.
"""

from dataclasses import replace

from spatial_clap_jax.data.pipeline import PipelineConfig
from spatial_clap_jax.features import LAION_CLAP_LOG_MEL, LogMelConfig
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.crnn import CrnnConfig
from spatial_clap_jax.models.htsat import htsat_base
from spatial_clap_jax.models.parted import PartedCnnConfig
from spatial_clap_jax.models.text import TextConfig, roberta_base
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig, SpecAugmentConfig
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.optim import OptimizerConfig


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    return {"quickstart": quickstart, "small": small, "base": base}[size]()


def _mel_16k(mels: int) -> LogMelConfig:
    return LogMelConfig(
        sample_rate_hz=16_000, n_fft=512, hop=320, mels=mels, low_hz=50.0, high_hz=8000.0
    )


def _small_model() -> SpatialClapConfig:
    return SpatialClapConfig(
        window_s=4.0,
        content=CnnConfig(channels=(48, 64, 96), width=192),
        content_mel=_mel_16k(64),
        spatial=PartedCnnConfig(),
        spatial_planes="mel_cross",
        spatial_mel=_mel_16k(64),
        text=TextConfig(
            vocabulary=1024,
            width=128,
            layers=2,
            heads=4,
            mlp_width=512,
            max_tokens=40,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        projected="tokens",
        fusion_width=512,
        joint_width=256,
        spec_augment=SpecAugmentConfig(2, 24, 2, 8),
        equaliser_db=6.0,
    )


def small() -> Experiment:
    """1.7 M parameters; minutes on two cores."""
    return Experiment(
        name="spatial_clap_small",
        model=_small_model(),
        loss=ContrastiveConfig(initial_scale=20.0),
        data=PipelineConfig(captions_per_batch=64, mixture_share=0.875),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=100,
            weight_decay=0.01,
            final_share=0.02,
            # The temperature must find its place early.
            rate_rules=((r"^logit_scale$", 2.5),),
        ),
        steps=2200,
        ema_decay=0.998,
        log_every=20,
        checkpoint_every=250,
    )


def quickstart() -> Experiment:
    """`small` with narrower encoders and fewer steps, for the built-in sounds."""
    model = _small_model()
    model = replace(
        model,
        content=CnnConfig(channels=(32, 64, 64), width=128),
        spatial=PartedCnnConfig(channels=(32,), frame_width=96, width=64),
    )
    return replace(
        small(),
        name="spatial_clap_quickstart",
        model=model,
        data=PipelineConfig(captions_per_batch=32, mixture_share=0.875),
        steps=600,
        checkpoint_every=200,
    )


def base() -> Experiment:
    """The released architecture: HTSAT-base, CASE, RoBERTa-base; for accelerators."""
    return Experiment(
        name="spatial_clap_base",
        model=SpatialClapConfig(
            content=htsat_base(),
            content_mel=LAION_CLAP_LOG_MEL,
            spatial=CrnnConfig(),
            text=roberta_base(),
        ),
        data=PipelineConfig(captions_per_batch=512, workers=8),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2200, weight_decay=1e-4),
        steps=50_000,
        checkpoint_every=1000,
    )
