"""Cross entropies between a scene's own caption and one that differs in who is where."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def rival_loss(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    rival: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    contested: Bool[Array, "b"],
) -> Float[Array, ""]:
    """Cross entropy of each audio between its own text and one rival.

    Args:
      audio: unit embeddings.
      text: unit embeddings, aligned.
      rival: a text that each audio must not be taken for.
      logit_scale: what the cosines are multiplied by, after exp and clamp.
      contested: which rows have a rival; the others do not count.

    Returns:
      The mean over contested rows, in nats; 0 where there are none.

    Example:
      Where a rival is as near as the own text, a row costs log(2).

    Reference: our choice, after the hard-negative captions of NegCLIP (arXiv 2210.01936).
    """
    margin = logit_scale * (audio * (text - rival)).sum(axis=1)
    costs = jnp.where(contested, jax.nn.softplus(-margin), 0.0)
    return costs.sum() / jnp.maximum(contested.sum(), 1)


def group_rival_loss(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    group: Int[Array, "b"],
    meaning: Int[Array, "b"],
) -> Float[Array, ""]:
    """`rival_loss` in both directions between the two members of each scene group.

    Args:
      audio: unit embeddings, members of a group side by side.
      text: unit embeddings, aligned.
      logit_scale: what the cosines are multiplied by, after exp and clamp.
      group: the same number where rows are members of one scene group, two at most.
      meaning: the same number where scenes mean the same, which are no rivals.

    Returns:
      The mean of both directions over rows that have a rival; 0 where there are none.

    Reference: our choice.
    """

    def of_mate(rows: Array) -> Array:
        mate = with_next.reshape(-1, *[1] * (rows.ndim - 1))
        return jnp.where(mate, jnp.roll(rows, -1, axis=0), jnp.roll(rows, 1, axis=0))

    with_next = group == jnp.roll(group, -1)
    contested = (of_mate(group) == group) & (of_mate(meaning) != meaning)
    to_text = rival_loss(audio, text, of_mate(text), logit_scale, contested)
    return 0.5 * (to_text + rival_loss(text, audio, of_mate(audio), logit_scale, contested))
