"""Spatial-CLAP (arXiv 2509.14785) that learns to read with an audio side that hears already.

    spatial-clap train configs/spatial_clap_labels.py --size small --data data/esc10 \
        --workdir runs/labels
    spatial-clap train configs/spatial_clap_from_labels.py --size small --data data/esc10 \
        --workdir runs/esc10 --init.model runs/labels

The audio side moves a tenth as fast as the text side: at the full rate it would forget what sounds
where before there is a text encoder that tells it so.
"""

from dataclasses import replace

from spatial_clap_jax.train.experiment import Experiment, load_config

# On the paths of parameters: the audio side, and how much slower it moves.
SLOW_AUDIO = (r"^(content|spatial|fusion|spatial_projection)/", 0.1)
_STEPS = {"quickstart": 300, "small": 1100, "base": 40_000}


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    experiment = load_config("spatial_clap.py", size)
    rules = (*experiment.optimizer.rate_rules, SLOW_AUDIO)
    return replace(
        experiment,
        name=f"{experiment.name}_from_labels",
        optimizer=replace(experiment.optimizer, rate_rules=rules),
        steps=_STEPS[size],
    )
