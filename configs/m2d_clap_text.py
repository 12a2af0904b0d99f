"""M2D-CLAP, stage 2 (arXiv 2503.22104): a text encoder learns to follow the encoder of sound.

    spatial-clap train configs/m2d_clap_text.py --size small --data data/clips \
        --workdir runs/m2d_text --init.model runs/m2d

The encoder of sound is frozen; projector, text encoder and scale are trained, on whole clips of
which 0.3 of the patches are hidden; in use clips come whole too. `--init.model` takes the projector
and, where stage 1 trained one along, the text encoder; `base` reads BERT by
`--init.text bert-base-uncased`, whose first token is the embedding. After stage 1.1, which has no
projector, give its encoder too:

    --init.model runs/m2d --init.audio runs/m2d_labels

Next comes configs/m2d_clap_text_fine.py (stage 2.1). Each size starts from the same size of
configs/m2d_clap.py, with its positives and, of `base`, its 1,000 steps an epoch. The batch of
`base`, and all of `small` but what stages are made of, are our choice.
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
    model, loss, is_base = stage.model, stage.loss, size == "base"
    assert isinstance(model, M2dClapConfig)
    assert isinstance(loss, ContrastiveConfig)
    text = model.text
    if not isinstance(text, TextConfig):
        text = replace(bert_base(), max_tokens=128, pooling="first")
    return replace(
        stage,
        name=f"m2d_clap_text_{size}",
        model=replace(
            model,
            crop_frames=None,
            content=replace(model.content, frames=model.frames),
            mask_ratio=0.3,
            masked_weight=0.0,
            contrast_weight=1.0,
            text=text,
        ),
        loss=replace(loss, initial_scale=100.0),
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
