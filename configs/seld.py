"""Stereo SELD with CLAP and OWL-ViT (arXiv 2509.06598): what sounds when and where, and is it seen.

    spatial-clap render configs/seld_scenes.py --sources esc10.csv --out data/seld
    spatial-clap train configs/seld.py --size small --data data/seld --workdir runs/seld
    spatial-clap evaluate runs/seld --data data/seld --split test

What the parts are worth is told by leaving them out:

    --model.listens False --model.looks False   audio alone, with a Conformer
    --model.looks False                         and CLAP
    --model.listens False                       and OWL-ViT
    configs/seld_crnn.py                        audio alone, with the baseline's recurrence

In `quickstart` and `small` both towers are small and train along; `--init.audio RUN` starts the one
that listens from a run of ours, and `--optimizer.frozen '^content/'` keeps it. `base` is the shape
of the paper's nearest public code, with HTSAT and OWL-ViT frozen and cached:

    spatial-clap embed CLAP data/seld --kind frames --out caches/clap
    spatial-clap embed OWL_VIT data/seld --kind frames --out caches/owl_vit
    spatial-clap train configs/seld.py --size base --data data/seld --workdir runs/seld \
        --data.heard caches/clap --data.seen caches/owl_vit

It has not been trained by us.
"""

from dataclasses import replace

from spatial_clap_jax.data.seld_pipeline import SeldPipelineConfig
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.losses.accdoa import AccdoaConfig
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.conformer import ConformerConfig
from spatial_clap_jax.models.cross_modal import CrossModalConfig
from spatial_clap_jax.models.owlvit import OwlVitImageConfig
from spatial_clap_jax.models.seld_encoder import SeldEncoderConfig
from spatial_clap_jax.stereo_features import AV_SELD, BASELINE
from spatial_clap_jax.systems.content import SpecAugmentConfig
from spatial_clap_jax.systems.seld import SeldConfig
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.optim import OptimizerConfig


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    return {"quickstart": quickstart, "small": small, "base": base}[size]()


def small() -> Experiment:
    """For two cores: towers of some hundred thousand parameters that train along."""
    return Experiment(
        name="seld_small",
        model=SeldConfig(
            features=replace(BASELINE, planes=AV_SELD.planes),
            # The median of the clips of configs/seld_scenes.py.
            loudest_db=10.0,
            encoder=SeldEncoderConfig(
                patch=(5, 4), channels=(48, 64, 64), pools=((1, 2), (1, 2), (1, 2)), bands="flat"
            ),
            temporal=ConformerConfig(width=96, heads=4, feed_forward=192, layers=2, kernel=15),
            content=CnnConfig(channels=(32, 48, 64), width=96),
            content_mel=LogMelConfig(
                sample_rate_hz=16_000, n_fft=512, hop=320, mels=64, high_hz=8000.0
            ),
            image=OwlVitImageConfig(
                image_size=(96, 160), patch=16, width=96, layers=2, heads=4, mlp_width=192
            ),
            fusion=CrossModalConfig(width=96, heads=4, feed_forward=192, layers=1, kernel=15),
            merged=False,
            column_width=16,
            masks=SpecAugmentConfig(2, 20, 2, 6),
        ),
        loss=AccdoaConfig(distance_error="relative", distance_weight=0.5, active_weight=4.0),
        data=SeldPipelineConfig(clips_per_batch=8, gain_db=(-1.0, 1.0)),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, warmup_steps=60, weight_decay=0.01, final_share=0.02
        ),
        steps=600,
        ema_decay=0.99,
        log_every=20,
        checkpoint_every=200,
    )


def quickstart() -> Experiment:
    """`small` for fewer steps, on the built-in sounds."""
    return replace(small(), name="seld_quickstart", steps=360, checkpoint_every=180)


def base() -> Experiment:
    """The shape of AV-SELD; for accelerators."""
    return Experiment(
        name="seld_base",
        model=SeldConfig(fusion=CrossModalConfig(layers=2)),
        loss=AccdoaConfig(),
        data=SeldPipelineConfig(clips_per_batch=128, mix_share=0.3, workers=8),
        optimizer=OptimizerConfig(
            learning_rate=5e-4, schedule="plateau", warmup_steps=500, weight_decay=1e-4
        ),
        steps=60_000,
        ema_decay=0.999,
    )
