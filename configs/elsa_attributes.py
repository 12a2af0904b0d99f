"""Pre-training of ELSA's spatial-attributes branch (arXiv 2409.11369) on its 44 targets.

    spatial-clap train configs/elsa_attributes.py --data data/elsa --workdir runs/branch
    spatial-clap train configs/elsa.py --data data/elsa --workdir runs/elsa \
        --init.branch runs/branch

The targets are direction, distance, volume, and direct-to-reverberant ratio and T30 in 20
third-octave bands, all measured or drawn by `render`. Each size fits the same size of
configs/elsa.py: its branch and its intensity vectors.
"""

from dataclasses import replace

from spatial_clap_jax.systems.attributes import AttributesConfig
from spatial_clap_jax.systems.elsa import ElsaConfig
from spatial_clap_jax.train.experiment import Experiment, load_config

# Steps of the pre-training: a fifth of ELSA's, or so.
_STEPS = {"quickstart": 150, "small": 400, "base": 3000}


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    elsa = load_config("elsa.py", size)
    model = elsa.model
    assert isinstance(model, ElsaConfig)
    return replace(
        elsa,
        name=f"elsa_attributes_{size}",
        model=AttributesConfig(
            sample_rate_hz=model.sample_rate_hz,
            window_s=model.window_s,
            attributes=model.attributes,
            intensity=model.intensity,
            intensity_scale=model.intensity_scale,
            equaliser_db=model.equaliser_db,
        ),
        # Plain clips and mixtures have no attributes, and there is no temperature.
        data=replace(elsa.data, plain_share=0.0, mixture_share=0.0),
        optimizer=replace(elsa.optimizer, rate_rules=()),
        steps=_STEPS[size],
    )
