"""M2D-CLAP, stages 2 and 2.1 (arXiv 2503.22104): a text encoder learns to follow the encoder.

    spatial-clap train configs/m2d_clap_text.py --size small --data data/clips \
        --workdir runs/m2d_text --init.model runs/m2d

The encoder of sound is frozen; projector, text encoder and scale are trained, on whole clips of
which 0.3 of the patches are hidden. `--init.model` takes the projector and, where stage 1 trained
one along, the text encoder; `base` reads BERT by `--init.text bert-base-uncased`, whose first token
is the embedding. After stage 1.1, which has no projector, give its encoder too:

    --init.model runs/m2d --init.audio runs/m2d_labels

Stage 2.1 goes on from there, on other data, with all patches and the scale that was learned:

    spatial-clap train configs/m2d_clap_text.py --size small --data data/clips \
        --workdir runs/m2d_text21 --init.model runs/m2d_text --init.anew --model.mask-ratio 0

Each size starts from the same size of configs/m2d_clap.py. The batch of `base`, and all of `small`
but what stages are made of, are our choice.
"""

from dataclasses import replace

from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.text import TextConfig, bert_base
from spatial_clap_jax.systems.m2d_clap import M2dClapConfig
from spatial_clap_jax.train.experiment import Experiment, InitConfig, load_config
from spatial_clap_jax.train.optim import OptimizerConfig

_STEPS = {"quickstart": 150, "small": 300, "base": 30_000}


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    stage = load_config("m2d_clap.py", size)
    model, is_base = stage.model, size == "base"
    assert isinstance(model, M2dClapConfig)
    text = model.text
    if not isinstance(text, TextConfig):
        text = replace(bert_base(), max_tokens=128, pooling="first")
    return replace(
        stage,
        name=f"m2d_clap_text_{size}",
        model=replace(
            model,
            crop_frames=None,
            mask_ratio=0.3,
            masked_weight=0.0,
            contrast_weight=1.0,
            text=text,
        ),
        loss=ContrastiveConfig(initial_scale=100.0, min_scale=1.0),
        # 30 epochs of `base`, 5 of them to warm up.
        optimizer=OptimizerConfig(
            learning_rate=2.4e-5 if is_base else 5e-4,
            warmup_steps=5_000 if is_base else 30,
            weight_decay=0.05,
            b2=0.95,
            clip_norm=3.0,
            frozen=(r"^content/",),
        ),
        init=InitConfig(anew=(r"^logit_scale$",)),
        steps=_STEPS[size],
    )
