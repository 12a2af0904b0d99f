"""Studies: several models trained alike, compared on the same scenes, as one command."""

from spatial_clap_jax.study.run import run_study
from spatial_clap_jax.study.spec import (
    Noise,
    Phrases,
    Rendered,
    Row,
    Study,
)

__all__ = ["Noise", "Phrases", "Rendered", "Row", "Study", "run_study"]
