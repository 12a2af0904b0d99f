"""The baseline of DCASE 2025 Task 3 on sound alone: convolutions, recurrence, self-attention.

    spatial-clap train configs/seld_crnn.py --size small --data data/seld --workdir runs/seld_crnn

It has the front end of configs/seld.py, no other tower, and as many steps. `base` is the public
baseline's network on its log-mel planes, 734,261 parameters for 13 classes, and has not been
trained by us. Its output layers are ours: GELU and dropout after the hidden one, and a softplus
of the distance, where the baseline has a ReLU.
"""

from dataclasses import replace

from spatial_clap_jax.models.seld_encoder import RecurrentConfig, SeldEncoderConfig
from spatial_clap_jax.stereo_features import BASELINE
from spatial_clap_jax.systems.seld import SeldConfig
from spatial_clap_jax.train.experiment import Experiment, load_config


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    whole = load_config("seld.py", size)
    model = whole.model
    assert isinstance(model, SeldConfig)
    is_base = size == "base"
    encoder, temporal = replace(model.encoder, block="plain"), RecurrentConfig(width=96, heads=4)
    if is_base:
        encoder = SeldEncoderConfig(
            channels=(64, 64, 64),
            pools=((5, 4), (1, 4), (1, 2)),
            block="plain",
            bands="flat",
            pooling="max",
            has_bias=True,
            dropout=0.05,
            projects=False,
        )
        temporal = RecurrentConfig(
            width=128, gated=True, dropout=0.0, recurrent_dropout=0.05, attention_dropout=0.05
        )
    model = replace(
        model,
        features=BASELINE if is_base else model.features,
        encoder=encoder,
        temporal=temporal,
        listens=False,
        looks=False,
        on_screen=False,
    )
    return replace(whole, name=f"seld_crnn_{size}", model=model)
