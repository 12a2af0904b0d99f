"""Categories of clips, several a clip or none: their loss, and how often the best one is right."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spatial_clap_jax.losses.regression import masked_mean


def label_loss(logits: Float[Array, "b k"], categories: Float[Array, "b k"]) -> Float[Array, ""]:
    """Binary cross entropy, the mean over classes and over the clips that have a category.

    Args:
      logits: of each class by itself.
      categories: 1 where a clip is of a class, 0 elsewhere; shares where clips were mixed.

    Example:
      Logits 0, 0 of a clip of the first class have loss log(2).
    """
    logits = logits.astype(jnp.float32)
    terms = jax.nn.softplus(logits) - categories * logits
    return masked_mean(terms.mean(axis=1), categories.max(axis=1) > 0)


def top_label_accuracy(
    logits: Float[Array, "b k"], categories: Float[Array, "b k"]
) -> Float[Array, ""]:
    """How often the class of the highest logit is one of a clip's (of a mixed clip, a main one)."""
    main = categories.max(axis=1)
    best = jnp.take_along_axis(categories, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    return masked_mean((best >= main).astype(jnp.float32), main > 0)
