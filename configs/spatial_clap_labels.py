"""Spatial-CLAP before it reads: its audio side learns what sounds where from labels.

    spatial-clap train configs/spatial_clap_labels.py --size small --data data/esc10 \
        --workdir runs/labels
    spatial-clap train configs/spatial_clap_from_labels.py --size small --data data/esc10 \
        --workdir runs/esc10 --init.model runs/labels

A text encoder learns which place belongs to which sound only from an audio side that hears it, and
that one only from captions that are read: each waits for the other. Labels need no reading. A scene
is the sum of a vector for each class in each direction. The paper (arXiv 2509.14785) starts from
encoders that were pre-trained on labels too, CLAP and a SELD network.

What follows is configs/spatial_clap_from_labels.py.
"""

from dataclasses import replace

from spatial_clap_jax.models.label_vectors import LabelsConfig
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train.experiment import Experiment, load_config

_STEPS = {"quickstart": 300, "small": 1100, "base": 10_000}


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    experiment = load_config("spatial_clap.py", size)
    model = experiment.model
    assert isinstance(model, SpatialClapConfig)
    return replace(
        experiment,
        name=f"spatial_clap_labels_{size}",
        model=replace(model, text=LabelsConfig()),
        steps=_STEPS[size],
    )
