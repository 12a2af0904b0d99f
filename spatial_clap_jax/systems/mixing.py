"""Clips as training takes them: a part of each, mixed with another one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def random_crop(
    rng: jax.Array, log_mel: Float[Array, "b l m"], frames: int
) -> Float[Array, "b frames m"]:
    """So many frames of each example, from a place drawn for it."""
    starts = jax.random.randint(rng, (len(log_mel),), 0, log_mel.shape[1] - frames + 1)
    return jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, frames))(
        log_mel, starts
    )


def mixed_up(
    rng: jax.Array,
    log_mel: Float[Array, "b l m"],
    categories: Float[Array, "b k"] | None,
    alpha: float,
) -> tuple[Float[Array, "b l m"], Float[Array, "b k"] | None]:
    """Each example mixed with the one before it, in shares drawn from Beta(alpha, alpha).

    Powers are mixed, as sounds add up; categories are mixed in the same shares. Where one of the
    two has no category, what is in the mix is not known, and it has none either.

    Args:
      rng: key.
      log_mel: natural logarithms of powers.
      categories: of each example, all zero where they are not known; None without.
      alpha: both parameters of the distribution.

    Reference: mixup, Zhang et al., arXiv 1710.09412; of powers, BYOL-A, arXiv 2103.06695.
    """
    share = jax.random.beta(rng, alpha, alpha, (len(log_mel), 1, 1))
    other = jnp.roll(log_mel, 1, axis=0)
    mixed = jnp.logaddexp(jnp.log(share) + log_mel, jnp.log1p(-share) + other)
    if categories is None:
        return mixed, None
    own, others = share[:, :, 0], jnp.roll(categories, 1, axis=0)
    are_known = categories.any(axis=1, keepdims=True) & others.any(axis=1, keepdims=True)
    return mixed, jnp.where(are_known, own * categories + (1 - own) * others, 0)
