"""Audio-text models that know what sounds and where, in JAX/Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatial_clap_jax.inference import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Data workers import this package and must not import JAX with it.
    if name == "load":
        from spatial_clap_jax.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
