"""Audio-text models that know what sounds and where, in JAX/Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatial_clap_jax.inference import load, load_text
    from spatial_clap_jax.metrics.zero_shot import zero_shot
    from spatial_clap_jax.object_detection import load_detector

__all__ = ["__version__", "load", "load_detector", "load_text", "zero_shot"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Data workers import this package and must not import JAX with it.
    if name in ("load", "load_text"):
        from spatial_clap_jax import inference

        return getattr(inference, name)
    if name == "load_detector":
        from spatial_clap_jax.object_detection import load_detector

        return load_detector
    if name == "zero_shot":
        from spatial_clap_jax.metrics.zero_shot import zero_shot

        return zero_shot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
