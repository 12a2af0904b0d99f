"""Symmetric contrastive losses between audio and text embeddings.

Members of a scene group (the same clips and places, permuted) stand in one batch and so
are each other's hard negatives in both directions: that is spatial contrastive learning,
and it needs no other loss than a contrastive one over the whole global batch.

Each loss is here twice. The dense one is the reference: it holds all b x b logits. The `ring_` one
is what trains: it computes them block by block (`losses.ring`) with its own backward pass, which
computes the blocks again, and equals the dense one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.ring import Pairs, Ring, add

# Most rows of a block: a few of its float32 blocks of pairs together are some ten megabytes.
BLOCK = 1024

# Below every logit, and finite: the difference of two of these is zero, not NaN.
_LOWEST = -1e30


@dataclass(frozen=True)
class ContrastiveConfig:
    """The contrastive objective.

    Attributes:
      kind: 'info_nce', a softmax over the batch in both directions, or 'siglip', a yes or no for
        each pair.
      positives: 'meaning', every clip and caption of the batch that say the same (a category, or
        captions where there is none, at the same places), or 'pair', a clip and its own caption
        alone, the loss of CLIP. Accuracies count the same meaning as right in either case.
      scl: put all permutations of a scene group into the batch (spatial contrastive
        learning); without it one drawn member of twice as many groups.
      initial_scale: what cosines are multiplied by at first, exp(logit_scale).
      initial_bias: what is added to the logits of 'siglip' at first.
      min_scale: lower clamp of the learned scale.
      max_scale: upper clamp of the learned scale.
      block: most rows and columns of the batch whose pairs are held at once on a device.
      rival_weight: weight of a further cross entropy between a mixture's own caption and that of
        its clips at exchanged places: of the other member of its group with SCL, or of
        `data.rivals`, captions without audio.
    """

    kind: Literal["info_nce", "siglip"] = "info_nce"
    positives: Literal["meaning", "pair"] = "meaning"
    scl: bool = True
    initial_scale: float = 1 / 0.07
    initial_bias: float = -10.0
    min_scale: float = 0.01
    max_scale: float = 100.0
    block: int = BLOCK
    rival_weight: float = 0.0

    # The loss of runs from before there were others.
    kind_by_default: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= self.initial_scale <= self.max_scale < float("inf"):
            raise InputError(
                f"loss: scales {self.min_scale} <= {self.initial_scale} <= {self.max_scale} (min, "
                "initial, max) must be in this order, finite and above 0."
            )
        if self.block < 1:
            raise InputError(f"loss.block: {self.block} is too small; give at least 1.")
        if self.rival_weight < 0:
            raise InputError(f"loss.rival_weight: {self.rival_weight} is negative; give 0 or more.")

    def meaning(self, batch: Mapping[str, Array]) -> Int[Array, "b"] | None:
        """The `meaning` that the losses here take, of a batch; None if no two pairs share one."""
        return batch["meaning"] if self.positives == "meaning" else None


def clamped_scale(logit_scale: Float[Array, ""], config: ContrastiveConfig) -> Float[Array, ""]:
    """Temperature scale exp(logit_scale), held in the config's range.

    Outside of it a gradient that leads back passes and none that leads farther: with no gradient
    at all, as of jnp.clip, a scale that one step has carried over a bound would stay there.
    """
    return _held(logit_scale, config.min_scale, config.max_scale)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _held(logit_scale: Float[Array, ""], low: float, high: float) -> Float[Array, ""]:
    return jnp.clip(jnp.exp(logit_scale), low, high)


def _held_forward(
    logit_scale: Float[Array, ""], low: float, high: float
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    return (scale := _held(logit_scale, low, high)), (logit_scale, scale)


def _held_backward(
    low: float,
    high: float,
    kept: tuple[Float[Array, ""], Float[Array, ""]],
    gradient: Float[Array, ""],
) -> tuple[Float[Array, ""]]:
    logit_scale, scale = kept
    # What descends goes against the gradient.
    free = jnp.exp(logit_scale)
    leaves = jnp.where(gradient < 0, free > high, free < low)
    return (jnp.where(leaves, 0.0, gradient * scale),)


_held.defvjp(_held_forward, _held_backward)


def same_meaning(meaning: Int[Array, "b"]) -> Bool[Array, "b b"]:
    """Which pairs of a batch say the same: audio i fits text j where the entry is true."""
    return meaning[:, None] == meaning[None, :]


def info_nce(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    meaning: Int[Array, "b"] | None = None,
    text_scale: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Symmetric InfoNCE over a global batch, dense: all b x b logits are held.

    Several captions may mean the same scene; they are positives of each other, with the
    target spread evenly over them, so that no true pair is ever pushed apart. With all
    meanings different this is the plain InfoNCE of CLIP.

    Args:
      audio: unit embeddings of the global batch, of any precision; all else is float32.
      text: unit embeddings, row i belonging to audio row i.
      logit_scale: what the cosines are multiplied by, after exp and clamp.
      meaning: the same number where scenes mean the same; None if all differ.
      text_scale: what they are multiplied by in the direction from text to audio; the same
        where None.

    Returns:
      The mean of both directions' cross entropies, in nats.

    Example:
      With d = 2, audio = text = the identity and logit_scale = 0 nothing is told apart:
      the loss is log(2).

    Reference: InfoNCE as in CLIP; the even spread over equal meanings is our choice.
    """
    cosines = _cosines(*_in_float32(audio, text))
    logits = logit_scale * cosines
    text_logits = logits.T if text_scale is None else text_scale * cosines.T
    positives = jnp.eye(logits.shape[0], dtype=bool) if meaning is None else same_meaning(meaning)
    targets = positives / positives.sum(axis=1, keepdims=True)
    audio_to_text = -(targets * jax.nn.log_softmax(logits, axis=1)).sum(axis=1)
    text_to_audio = -(targets * jax.nn.log_softmax(text_logits, axis=1)).sum(axis=1)
    return 0.5 * (audio_to_text.mean() + text_to_audio.mean())


def ring_info_nce(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    meaning: Int[Array, "b"] | None = None,
    text_scale: Float[Array, ""] | None = None,
    *,
    mesh: Mesh | None = None,
    block: int = BLOCK,
) -> Float[Array, ""]:
    """`info_nce` that never holds all pairs, over all devices of a mesh.

    One way round the ring gives both directions: sums over a text travel with it. The backward
    pass goes round once more. Memory on a device is that of its rows and of a block of pairs.

    Args:
      audio: see `info_nce`; rows split over all axes of the mesh.
      text: see `info_nce`.
      logit_scale: see `info_nce`.
      meaning: see `info_nce`.
      text_scale: see `info_nce`.
      mesh: the devices; None for one.
      block: most rows and columns of a block of pairs; any number gives the same loss.

    Returns:
      See `info_nce`.

    Raises:
      InputError: the batch does not divide among the devices.

    Reference: our choice; the ring is that of ring attention (arXiv 2310.01889).
    """
    ring = Ring(mesh, block)
    ring.check(len(audio))
    meaning = jnp.arange(len(audio), dtype=jnp.int32) if meaning is None else meaning
    text_scale = logit_scale if text_scale is None else text_scale
    return _info_nce(ring, *_in_float32(audio, text), meaning, logit_scale, text_scale)


def siglip(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    meaning: Int[Array, "b"] | None = None,
) -> Float[Array, ""]:
    """Pairwise sigmoid loss over a global batch, dense: all b x b logits are held.

    Args:
      audio: unit embeddings of the global batch.
      text: unit embeddings, row i belonging to audio row i.
      logit_scale: what the cosines are multiplied by, after exp and clamp.
      logit_bias: what is added to them.
      meaning: the same number where scenes mean the same, every pair of which is a true one;
        None if all differ.

    Returns:
      The binary cross entropies of all pairs, summed and divided by b, in nats.

    Example:
      With logit_scale = logit_bias = 0 every pair costs log(2), so the loss is b log(2).

    Reference: Zhai et al., arXiv 2303.15343; equal meanings as true pairs is our choice.
    """
    logits = logit_scale * _cosines(*_in_float32(audio, text)) + logit_bias
    positives = jnp.eye(logits.shape[0], dtype=bool) if meaning is None else same_meaning(meaning)
    return jax.nn.softplus(jnp.where(positives, -logits, logits)).sum(axis=1).mean()


def ring_siglip(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    meaning: Int[Array, "b"] | None = None,
    *,
    mesh: Mesh | None = None,
    block: int = BLOCK,
) -> Float[Array, ""]:
    """`siglip` that never holds all pairs, over all devices of a mesh.

    Args:
      audio: see `siglip`; rows split over all axes of the mesh.
      text: see `siglip`.
      logit_scale: see `siglip`.
      logit_bias: see `siglip`.
      meaning: see `siglip`.
      mesh: the devices; None for one.
      block: most rows and columns of a block of pairs; any number gives the same loss.

    Returns:
      See `siglip`.

    Raises:
      InputError: the batch does not divide among the devices.

    Reference: blocks passed round as in arXiv 2303.15343.
    """
    ring = Ring(mesh, block)
    ring.check(len(audio))
    meaning = jnp.arange(len(audio), dtype=jnp.int32) if meaning is None else meaning
    return _siglip(ring, *_in_float32(audio, text), meaning, logit_scale, logit_bias)


def in_batch_accuracy(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    group: Int[Array, "b"],
    meaning: Int[Array, "b"],
) -> dict[str, Float[Array, ""]]:
    """How well a training batch is told apart, dense: all b x b cosines are held.

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
    cosines = _cosines(*_in_float32(audio, text))
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


def ring_in_batch_accuracy(
    audio: Float[Array, "b d"],
    text: Float[Array, "b d"],
    group: Int[Array, "b"],
    meaning: Int[Array, "b"],
    *,
    mesh: Mesh | None = None,
    block: int = BLOCK,
) -> dict[str, Float[Array, ""]]:
    """`in_batch_accuracy` that never holds all pairs, watched early for the saddle at chance.

    Args:
      audio: see `in_batch_accuracy`; rows split over all axes of the mesh.
      text: see `in_batch_accuracy`.
      group: see `in_batch_accuracy`.
      meaning: see `in_batch_accuracy`.
      mesh: the devices; None for one.
      block: most rows and columns of a block of pairs.

    Returns:
      See `in_batch_accuracy`; no gradient flows through it.

    Raises:
      InputError: the batch does not divide among the devices.
    """
    ring = Ring(mesh, block)
    ring.check(len(audio))

    def here(audio, text, group, meaning, place):
        rows = (audio, group, meaning)
        found, _ = ring.meet(_BEST, rows, (text, group, meaning, place))
        own = (audio * text).sum(axis=1)
        contested = found.rival > _LOWEST
        counts = (found.hit.sum(), (contested & (own > found.rival)).sum(), contested.sum())
        return ring.total(counts)

    counted = ring.on_each(here, (True,) * 5, (False,) * 3)
    place = jnp.arange(len(audio), dtype=jnp.int32)
    audio, text = jax.lax.stop_gradient(_in_float32(audio, text))
    hits, won, contested = counted(audio, text, group, meaning, place)
    return {
        "retrieval": hits / len(audio),
        "assignment": jnp.where(contested, won / jnp.maximum(contested, 1), jnp.nan),
    }


def _in_float32(audio: Array, text: Array) -> tuple[Array, Array]:
    """Embeddings as all that follows takes them: bfloat16 would round logits by tenths of a nat."""
    return audio.astype(jnp.float32), text.astype(jnp.float32)


def _cosines(audio: Float[Array, "r d"], text: Float[Array, "c d"]) -> Float[Array, "r c"]:
    return _product("id,jd->ij", audio, text)


class _SoftSum(NamedTuple):
    """Of one row or column: its softmax's denominator, online, and its positives.

    The sum of exp(logit) is exp(highest) * rest.
    """

    highest: Array | float
    rest: Array | float
    positive: Array | float
    positives: Array | float


def _merge_soft(a: _SoftSum, b: _SoftSum) -> _SoftSum:
    highest = jnp.maximum(a.highest, b.highest)
    rest = a.rest * jnp.exp(a.highest - highest) + b.rest * jnp.exp(b.highest - highest)
    return _SoftSum(highest, rest, a.positive + b.positive, a.positives + b.positives)


def _soft(logits: Array, cosines: Array, positives: Array, axis: int) -> _SoftSum:
    highest = logits.max(axis)
    rest = jnp.exp(logits - jnp.expand_dims(highest, axis)).sum(axis)
    return _SoftSum(
        highest,
        rest,
        jnp.where(positives, cosines, 0.0).sum(axis),
        positives.sum(axis).astype(jnp.float32),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _info_nce(ring, audio, text, meaning, audio_scale, text_scale):
    return _info_nce_forward(ring, audio, text, meaning, audio_scale, text_scale)[0]


def _info_nce_forward(ring, audio, text, meaning, audio_scale, text_scale):
    batch = len(audio)

    def here(audio, text, meaning, audio_scale, text_scale):
        def block(rows, columns, row_valid, column_valid):
            (audio, row_meaning), (text, column_meaning) = rows, columns
            cosines = _cosines(audio, text)
            positives = row_meaning[:, None] == column_meaning
            logits, text_logits = audio_scale * cosines, text_scale * cosines
            if row_valid is not None:
                positives &= row_valid[:, None] & column_valid
                logits = jnp.where(column_valid, logits, _LOWEST)
                text_logits = jnp.where(row_valid[:, None], text_logits, _LOWEST)
            return (
                _soft(logits, cosines, positives, 1),
                _soft(text_logits, cosines, positives, 0),
            )

        empty = _SoftSum(_LOWEST, 0.0, 0.0, 0.0)
        pairs = Pairs(block, _merge_soft, _merge_soft, empty, empty)
        of_audio, of_text = ring.meet(pairs, (audio, meaning), (text, meaning))
        # A meaning is shared by as many audios as texts, so both directions spread alike.
        spread = 1 / of_audio.positives
        normalisers = tuple(s.highest + jnp.log(s.rest) for s in (of_audio, of_text))
        losses = (
            normalisers[0] - audio_scale * of_audio.positive * spread,
            normalisers[1] - text_scale * of_text.positive * spread,
        )
        mean = 0.5 * ring.total(losses[0].sum() + losses[1].sum()) / batch
        return mean, *normalisers, spread

    forward = ring.on_each(here, (True,) * 3 + (False,) * 2, (False,) + (True,) * 3)
    loss, *sums = forward(audio, text, meaning, audio_scale, text_scale)
    return loss, (audio, text, meaning, audio_scale, text_scale, *sums)


def _info_nce_backward(ring, saved, gradient):
    batch = len(saved[0])

    def here(audio, text, meaning, audio_scale, text_scale, of_audio, of_text, spread, gradient):
        def block(rows, columns, row_valid, column_valid):
            audio, row_meaning, normaliser, spread = rows
            text, column_meaning, text_normaliser = columns
            cosines = _cosines(audio, text)
            target = jnp.where(row_meaning[:, None] == column_meaning, spread[:, None], 0.0)
            excess = jnp.exp(audio_scale * cosines - normaliser[:, None]) - target
            text_excess = jnp.exp(text_scale * cosines - text_normaliser) - target
            if row_valid is not None:
                # Filled-up rows and columns are zero vectors, but infinity times zero is no zero.
                valid = row_valid[:, None] & column_valid
                excess = jnp.where(valid, excess, 0.0)
                text_excess = jnp.where(valid, text_excess, 0.0)
            moved = audio_scale * excess + text_scale * text_excess
            of_rows = (
                _product("ij,jd->id", moved, text),
                (excess * cosines).sum(1),
                (text_excess * cosines).sum(1),
            )
            return of_rows, _product("ij,id->jd", moved, audio)

        pairs = Pairs(block, add, add, (0.0, 0.0, 0.0), 0.0)
        rows, columns = (audio, meaning, of_audio, spread), (text, meaning, of_text)
        (to_audio, to_scale, to_text_scale), to_text = ring.meet(pairs, rows, columns)
        share = 0.5 * gradient / batch
        scales = ring.total((share * to_scale.sum(), share * to_text_scale.sum()))
        return share * to_audio, share * to_text, *scales

    backward = ring.on_each(
        here,
        (True,) * 3 + (False,) * 2 + (True,) * 3 + (False,),
        (True, True, False, False),
    )
    to_audio, to_text, *to_scales = backward(*saved, gradient)
    return to_audio, to_text, None, *to_scales


_info_nce.defvjp(_info_nce_forward, _info_nce_backward)


def _product(axes: str, a: Array, b: Array) -> Array:
    return jnp.einsum(axes, a, b, precision=jax.lax.Precision.HIGHEST)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _siglip(ring, audio, text, meaning, scale, bias):
    return _siglip_forward(ring, audio, text, meaning, scale, bias)[0]


def _siglip_forward(ring, audio, text, meaning, scale, bias):
    batch = len(audio)

    def here(audio, text, meaning, scale, bias):
        def block(rows, columns, row_valid, column_valid):
            (audio, row_meaning), (text, column_meaning) = rows, columns
            logits = scale * _cosines(audio, text) + bias
            positives = row_meaning[:, None] == column_meaning
            costs = jax.nn.softplus(jnp.where(positives, -logits, logits))
            if row_valid is not None:
                costs = jnp.where(row_valid[:, None] & column_valid, costs, 0.0)
            return costs.sum(1), ()

        pairs = Pairs(block, add, add, 0.0, ())
        costs, _ = ring.meet(pairs, (audio, meaning), (text, meaning))
        return ring.total(costs.sum()) / batch

    forward = ring.on_each(here, (True,) * 3 + (False,) * 2, False)
    saved = (audio, text, meaning, scale, bias)
    return forward(*saved), saved


def _siglip_backward(ring, saved, gradient):
    batch = len(saved[0])

    def here(audio, text, meaning, scale, bias, gradient):
        def block(rows, columns, row_valid, column_valid):
            (audio, row_meaning), (text, column_meaning) = rows, columns
            cosines = _cosines(audio, text)
            logits = scale * cosines + bias
            positives = row_meaning[:, None] == column_meaning
            excess = jnp.where(positives, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
            if row_valid is not None:
                excess = jnp.where(row_valid[:, None] & column_valid, excess, 0.0)
            of_rows = (
                _product("ij,jd->id", excess, text),
                (excess * cosines).sum(1),
                excess.sum(1),
            )
            return of_rows, _product("ij,id->jd", excess, audio)

        pairs = Pairs(block, add, add, (0.0, 0.0, 0.0), 0.0)
        (to_audio, to_scale, to_bias), to_text = ring.meet(pairs, (audio, meaning), (text, meaning))
        share = gradient / batch
        scalars = ring.total((share * to_scale.sum(), share * to_bias.sum()))
        return share * scale * to_audio, share * scale * to_text, *scalars

    backward = ring.on_each(here, (True,) * 3 + (False,) * 3, (True, True, False, False))
    to_audio, to_text, *scalars = backward(*saved, gradient)
    return to_audio, to_text, None, *scalars


_siglip.defvjp(_siglip_forward, _siglip_backward)


class _Best(NamedTuple):
    """Of one audio: its best text, whether that is a true one, and its hardest rival."""

    cosine: Array | float
    place: Array | int
    hit: Array | bool
    rival: Array | float


def _merge_best(a: _Best, b: _Best) -> _Best:
    # Of equal ones the first of the batch, as argmax has it, whoever met it first.
    better = (b.cosine > a.cosine) | ((b.cosine == a.cosine) & (b.place < a.place))
    return _Best(
        jnp.where(better, b.cosine, a.cosine),
        jnp.where(better, b.place, a.place),
        jnp.where(better, b.hit, a.hit),
        jnp.maximum(a.rival, b.rival),
    )


def _best_block(rows, columns, row_valid, column_valid):
    audio, row_group, row_meaning = rows
    text, group, meaning, place = columns
    cosines = _cosines(audio, text)
    if column_valid is not None:
        cosines = jnp.where(column_valid, cosines, _LOWEST)
    best = jnp.argmax(cosines, axis=1)
    rivals = (row_group[:, None] == group) & (row_meaning[:, None] != meaning)
    of_rows = _Best(
        cosines.max(axis=1),
        place[best],
        meaning[best] == row_meaning,
        jnp.where(rivals, cosines, _LOWEST).max(axis=1),
    )
    return of_rows, ()


_BEST = Pairs(_best_block, _merge_best, add, _Best(_LOWEST, 2**31 - 1, False, _LOWEST), ())
