"""ELSA (arXiv 2409.11369): first-order ambisonics and text; directions, distances and rooms.

    spatial-clap render configs/elsa_scenes.py --sources esc10.csv --out data/elsa
    spatial-clap train configs/elsa_attributes.py --size small --data data/elsa \
        --workdir runs/branch
    spatial-clap train configs/elsa.py --size small --data data/elsa --workdir runs/elsa \
        --init.branch runs/branch
    spatial-clap evaluate runs/elsa --data data/elsa --split test --out results.json

The branch first learns by itself what configs/elsa_attributes.py asks of it; without
`--init.branch` training begins from nothing and tells distances and rooms less well.

Rows of the paper's ablation, and a CLAP that hears W alone, are one option of `train` each:

    --model.branch static                   fixed statistics in place of the learned branch
    --model.regression-weights 0 0 0        the contrastive loss alone
    --model.branch none --model.regression-weights 0 0 0

`base` has the paper's parts and optimiser (Adam 5e-5, 2,304 captions) and has not been trained by
us.
"""

from dataclasses import replace

from spatial_clap_jax.data.pipeline import PipelineConfig
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.spatial_attributes import SpatialAttributesConfig
from spatial_clap_jax.models.text import TextConfig, roberta_base
from spatial_clap_jax.systems.content import SpecAugmentConfig
from spatial_clap_jax.systems.elsa import ElsaConfig
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.optim import OptimizerConfig


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    return {"quickstart": quickstart, "small": small, "base": base}[size]()


def _mel_16k() -> LogMelConfig:
    return LogMelConfig(
        sample_rate_hz=16_000, n_fft=512, hop=320, mels=64, low_hz=50.0, high_hz=8000.0
    )


def small() -> Experiment:
    """2.6 M parameters, half an hour on one core, its branch included.

    Mel bands and a stem of patches make the branch cheap enough for that. Its intensity vectors are
    divided by the energy, so that they tell how diffuse the field is. It hears how loud recordings
    are, as scenes are rendered; where recordings are not calibrated alike,
    `--model.attributes.level-reference-db None --data.gain-db -6 6` trains one that does not.
    """
    model = ElsaConfig(
        sample_rate_hz=16_000,
        window_s=4.0,
        content=CnnConfig(channels=(48, 64, 96)),
        content_mel=_mel_16k(),
        attributes=SpatialAttributesConfig(
            patch=(4, 4),
            channels=(32, 64, 64),
            pools=((1, 2), (1, 2), (1, 2)),
            hears_level=True,
            # Scenes are calibrated: a farther source is softer, more so in a large room.
            level_reference_db=-20.0,
            pooling="attention",
            dropout=0.1,
        ),
        intensity=_mel_16k(),
        intensity_scale="energy",
        text=TextConfig(
            vocabulary=1024,
            width=192,
            layers=2,
            heads=6,
            mlp_width=768,
            max_tokens=64,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        fusion_width=512,
        joint_width=256,
        spec_augment=SpecAugmentConfig(2, 24, 2, 8),
        equaliser_db=6.0,
    )
    return Experiment(
        name="elsa_small",
        model=model,
        loss=ContrastiveConfig(initial_scale=20.0),
        data=PipelineConfig(
            captions_per_batch=64,
            mixture_share=0.125,
            plain_share=0.125,
            swap=False,
            rotate=True,
            # Levels tell distances.
            gain_db=(0.0, 0.0),
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=100,
            weight_decay=0.01,
            final_share=0.02,
            # The temperature must find its place early.
            rate_rules=((r"^logit_scale$", 2.5),),
        ),
        steps=1000,
        ema_decay=0.998,
        log_every=20,
        checkpoint_every=250,
    )


def quickstart() -> Experiment:
    """`small` with narrower encoders and fewer steps, for the built-in sounds."""
    ours = small()
    model = ours.model
    assert isinstance(model, ElsaConfig)
    model = replace(
        model,
        content=CnnConfig(channels=(32, 48, 64), width=128),
        attributes=replace(model.attributes, channels=(32, 32, 48), heads=8, width=128),
        text=replace(model.text, width=128, layers=2, heads=4, mlp_width=512),
    )
    return replace(
        ours,
        name="elsa_quickstart",
        model=model,
        data=replace(ours.data, captions_per_batch=32),
        steps=300,
        checkpoint_every=150,
    )


def base() -> Experiment:
    """The paper's parts: HTSAT of CLAP, the branch, RoBERTa-base; for accelerators."""
    return Experiment(
        name="elsa_base",
        model=ElsaConfig(text=replace(roberta_base(), max_tokens=128)),
        data=PipelineConfig(
            captions_per_batch=2304,
            mixture_share=0.1,
            plain_share=0.2,
            swap=False,
            rotate=True,
            workers=8,
        ),
        # 40 epochs of 890,038 samples.
        optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=500, weight_decay=0.0),
        steps=15_500,
        checkpoint_every=500,
    )
