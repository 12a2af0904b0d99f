"""Symmetric contrastive losses between audio and text embeddings.

Members of a scene group (the same clips and places, permuted) stand in one batch and so
are each other's hard negatives in both directions: that is spatial contrastive learning,
and it needs no other loss than InfoNCE over the whole global batch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_clap_jax.errors import InputError


@dataclass(frozen=True)
class ContrastiveConfig:
    """The contrastive objective.

    Attributes:
      scl: put all permutations of a scene group into the batch (spatial contrastive
        learning); without it one drawn member of twice as many groups.
      initial_scale: what cosines are multiplied by at first, exp(logit_scale).
      min_scale: lower clamp of the learned scale.
      max_scale: upper clamp of the learned scale.
    """

    scl: bool = True
    initial_scale: float = 1 / 0.07
    min_scale: float = 0.01
    max_scale: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= self.initial_scale <= self.max_scale < float("inf"):
            raise InputError(
                f"loss: scales {self.min_scale} <= {self.initial_scale} <= {self.max_scale} (min, "
                "initial, max) must be in this order, finite and above 0."
            )


def clamped_scale(logit_scale: Float[Array, ""], config: ContrastiveConfig) -> Float[Array, ""]:
    """Temperature scale exp(logit_scale), held in the config's range.

    The clamp lets the gradient through at the bounds only inwards, as jnp.clip does.
    """
    return jnp.clip(jnp.exp(logit_scale), config.min_scale, config.max_scale)


def same_meaning(meaning: Int[Array, "b"]) -> Bool[Array, "b b"]:
    """Which pairs of a batch say the same: audio i fits text j where the entry is true."""
    return meaning[:, None] == meaning[None, :]


def info_nce(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    scale: Float[Array, ""],
    meaning: Int[Array, "b"] | None = None,
    text_scale: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Symmetric InfoNCE over a global batch, dense: all b x b logits are held.

    Several captions may mean the same scene; they are positives of each other, with the
    target spread evenly over them, so that no true pair is ever pushed apart. With all
    meanings different this is the plain InfoNCE of CLIP.

    Args:
      audio: unit embeddings of the global batch.
      text: unit embeddings, row i belonging to audio row i.
      scale: what the cosines are multiplied by, already clamped.
      meaning: the same number where scenes mean the same; None if all differ.
      text_scale: what they are multiplied by in the direction from text to audio; the same
        where None.

    Returns:
      The mean of both directions' cross entropies, in nats.

    Example:
      With d = 2, audio = text = the identity and scale = 0 nothing is told apart:
      the loss is log(2).

    Reference: InfoNCE as in CLIP; the even spread over equal meanings is our choice.
    """
    cosines = jnp.einsum("id,jd->ij", audio, text, precision=jax.lax.Precision.HIGHEST).astype(
        jnp.float32
    )
    logits = scale * cosines
    text_logits = logits.T if text_scale is None else text_scale * cosines.T
    positives = jnp.eye(logits.shape[0], dtype=bool) if meaning is None else same_meaning(meaning)
    targets = positives / positives.sum(axis=1, keepdims=True)
    audio_to_text = -(targets * jax.nn.log_softmax(logits, axis=1)).sum(axis=1)
    text_to_audio = -(targets * jax.nn.log_softmax(text_logits, axis=1)).sum(axis=1)
    return 0.5 * (audio_to_text.mean() + text_to_audio.mean())


def in_batch_accuracy(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    group: Int[Array, "b"],
    meaning: Int[Array, "b"],
) -> dict[str, Float[Array, ""]]:
    """How well a training batch is told apart, watched early for the saddle at chance.

    Args:
      audio: unit embeddings.
      text: unit embeddings, aligned.
      group: the same number where rows are members of one scene group.
      meaning: the same number where scenes mean the same.

    Returns:
      `retrieval`: share of audio rows whose best text means the same scene;
      `assignment`: share of rows in groups of several whose own caption beats the
      other members' captions, NaN where the batch has no such group.
    """
    cosines = audio @ text.T
    best = jnp.argmax(cosines, axis=1)
    rivals = (group[:, None] == group[None, :]) & ~same_meaning(meaning)
    own = jnp.diagonal(cosines)
    hardest = jnp.where(rivals, cosines, -jnp.inf).max(axis=1)
    contested = rivals.any(axis=1)
    won = jnp.where(contested, own > hardest, False).sum()
    return {
        "retrieval": (meaning[best] == meaning).mean(),
        "assignment": won / jnp.where(contested.any(), contested.sum(), jnp.nan),
    }
