"""The loss of masked prediction: how far a prediction lies from what a target encoder says."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_EPSILON = 1e-6
# The least length that a row is divided by.
_SHORTEST = 1e-12


def masked_prediction_loss(
    predicted: Float[Array, "b n d"], target: Float[Array, "b n d"]
) -> Float[Array, "b"]:
    """2 - 2 cos between predictions and standardised targets, the mean of each example's tokens.

    Args:
      predicted: at the masked positions.
      target: of the target encoder at the same positions; each token is standardised over its
        width, with the unbiased variance. No gradient flows into it.

    Returns:
      Between 0 (same direction) and 4 (opposite).

    Reference: M2D (Niizumi et al., arXiv 2210.14648).

    Example:
      A target (1, 2, 3) is standardised to (-1, 0, 1); a prediction (-2, 0, 2) has loss 0, and
      (0, 5, 0) has loss 2.
    """
    predicted, target = (x.astype(jnp.float32) for x in (predicted, target))
    target = jax.lax.stop_gradient(target)
    centred = target - target.mean(axis=-1, keepdims=True)
    variance = target.var(axis=-1, keepdims=True, ddof=1)
    standard = centred * jax.lax.rsqrt(variance + _EPSILON)
    cosine = (_directions(predicted) * _directions(standard)).sum(axis=-1)
    return (2 - 2 * cosine).mean(axis=-1)


def _directions(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), _SHORTEST**2))
