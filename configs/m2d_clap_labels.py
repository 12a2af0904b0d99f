"""M2D-CLAP, stage 1.1 (arXiv 2503.22104): the encoder of stage 1, fine-tuned on labels.

    spatial-clap train configs/m2d_clap_labels.py --size small --data data/clips \
        --workdir runs/m2d_labels --init.model runs/m2d

The classes are those of the data. Clips come whole, in training and in use, and are mixed in pairs,
with masks of up to 192 frames and 30 mel bands. A linear head tells the classes from the mean of
all tokens; that, the batch, the warm-up and the clips of an epoch of `base`, and the rate and
length of `small` are our choice. Each size starts from the same size of configs/m2d_clap.py.
"""

from dataclasses import replace

from spatial_clap_jax.systems.content import SpecAugmentConfig
from spatial_clap_jax.systems.m2d_clap import M2dClapConfig
from spatial_clap_jax.train.experiment import Experiment, load_config
from spatial_clap_jax.train.optim import OptimizerConfig

# Of `base`, 70 epochs of 4,000 batches: AudioSet's two million clips.
_STEPS = {"quickstart": 150, "small": 150, "base": 280_000}
_BATCHES = {"quickstart": 32, "small": 64, "base": 512}


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    stage = load_config("m2d_clap.py", size)
    model = stage.model
    assert isinstance(model, M2dClapConfig)
    return replace(
        stage,
        name=f"m2d_clap_labels_{size}",
        model=replace(
            model,
            crop_frames=None,
            content=replace(model.content, frames=model.frames),
            mask_ratio=0.0,
            masked_weight=0.0,
            contrast_weight=0.0,
            classes=None,
            mixup=0.5,
            spec_augment=SpecAugmentConfig(
                time_masks=1, time_width=192, frequency_masks=1, frequency_width=30
            ),
        ),
        data=replace(stage.data, captions_per_batch=_BATCHES[size]),
        optimizer=OptimizerConfig(
            kind="lars",
            learning_rate=2.0,
            warmup_steps=20_000 if size == "base" else 30,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
        steps=_STEPS[size],
    )
