"""M2D-CLAP, stage 2.1 (arXiv 2503.22104): stage 2 goes on, on data whose captions people wrote.

    spatial-clap train configs/m2d_clap_text_fine.py --size small --data data/captioned \
        --workdir runs/m2d_text_fine --init.model runs/m2d_text

As in stage 2 the encoder of sound is frozen, and whole clips are heard; all their patches are seen
now, and projector, text encoder and scale start from what stage 2 learned. The paper takes WavCaps,
AudioCaps and Clotho, and says of rate and warm-up nothing else than of stage 2. The lengths are our
choice: of `base`, 30 epochs of 220 batches of 2,048 clips, some 450,000.
"""

from dataclasses import replace

from spatial_clap_jax.systems.m2d_clap import M2dClapConfig
from spatial_clap_jax.train.experiment import Experiment, InitConfig, load_config

_STEPS = {"quickstart": 75, "small": 150, "base": 6_600}


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    stage = load_config("m2d_clap_text.py", size)
    model = stage.model
    assert isinstance(model, M2dClapConfig)
    return replace(
        stage,
        name=f"m2d_clap_text_fine_{size}",
        model=replace(model, mask_ratio=0.0),
        # 5 of the 30 epochs of `base` to warm up.
        optimizer=replace(stage.optimizer, warmup_steps=1_100 if size == "base" else 30),
        init=InitConfig(),
        steps=_STEPS[size],
    )
