"""Masked modelling duo: random masks, the predictor, the target's schedule, a token's projector."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spatial_clap_jax.models.layers import LayerNorm
from spatial_clap_jax.models.vit import (
    VitBlock,
    VitBlocks,
    check_sizes,
    kernel_init,
    sincos_positions,
    token_init,
)


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of a `Predictor`; the defaults are M2D's.

    Attributes:
      width: width of a token.
      layers: number of transformer blocks.
      heads: attention heads; divides `width`.
      mlp_ratio: hidden width of the MLP over `width`.
      layer_norm_epsilon: added to the variance.

    Reference: Niizumi et al., M2D-CLAP, arXiv 2503.22104.
    """

    width: int = 512
    layers: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_sizes("PredictorConfig", self.width, self.layers, self.heads, self.mlp_ratio)


class Masks(NamedTuple):
    """Indices of the patches of each example, ascending: those that are seen, and the rest."""

    kept: Int[Array, "b k"]
    masked: Int[Array, "b h"]


def kept_patches(patches: int, ratio: float) -> int:
    """How many patches a mask leaves; the same in every example, so that shapes are static.

    Example:
      >>> kept_patches(190, 0.7)
      57
    """
    return int(patches * (1 - ratio))


def draw_masks(rng: jax.Array, examples: int, patches: int, ratio: float) -> Masks:
    """Masks drawn for each example by itself.

    Args:
      rng: key.
      examples: how many.
      patches: of each.
      ratio: share that is masked.
    """
    order = jnp.argsort(jax.random.uniform(rng, (examples, patches)), axis=1)
    kept, masked = jnp.split(order, [kept_patches(patches, ratio)], axis=1)
    return Masks(jnp.sort(kept, axis=1), jnp.sort(masked, axis=1))


def moved_target(
    target: Any, online: Any, progress: Float[Array, ""], decays: tuple[float, float]
) -> Any:
    """The target after an update of the online encoder: a moving average of it.

    Args:
      target: arrays.
      online: arrays of the same paths, and perhaps of more.
      progress: 0 at the first step of a training, 1 at its last.
      decays: at the first step and at the last, linear between.
    """
    # Not 1 - decay in float32, where a decay of 0.99999 has lost its digits.
    first, last = (1 - decay for decay in decays)
    rate = first + (last - first) * progress
    if isinstance(target, dict):
        return {name: moved_target(target[name], online[name], progress, decays) for name in target}
    return target + rate * (online - target)


class Predictor(nn.Module):
    """Says of masked patches what the target encoder makes of them, from those that are seen.

    Attributes:
      config: sizes.
      out_width: width of the encoder, whose tokens come in and are predicted.
      dtype: compute type; parameters are float32.
    """

    config: PredictorConfig
    out_width: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        self.embed = dense(config.width)
        self.mask_token = self.param("mask_token", token_init, (config.width,))
        self.blocks = VitBlocks(
            config.layers,
            config.heads,
            round(config.width * config.mlp_ratio),
            config.layer_norm_epsilon,
            self.dtype,
            parent=None,
        )
        nn.share_scope(self, self.blocks)
        self.out = dense(self.out_width)

    def __call__(
        self,
        tokens: Float[Array, "b k d"],
        cls: Float[Array, "b d"],
        masks: Masks,
        grid: tuple[int, int],
        train: bool = False,
    ) -> Float[Array, "b h d"]:
        """Predicts.

        Args:
          tokens: of the patches that are seen, in the order of `masks.kept`.
          cls: of the encoder.
          masks: which patches are seen and which are not.
          grid: patches over frequency and over time.
          train: nothing depends on it.

        Returns:
          Predictions in the order of `masks.masked`.
        """
        positions = jnp.asarray(sincos_positions(*grid, self.config.width)[1:], self.dtype)
        # Positions are added, so that the order in which tokens stand is of no effect.
        seen = self.embed(tokens) + positions[masks.kept]
        hidden = self.mask_token.astype(self.dtype) + positions[masks.masked]
        x = jnp.concatenate([self.embed(cls)[:, None], seen, hidden], axis=1)
        x = self.blocks(x, train)
        return self.out(x[:, 1 + seen.shape[1] :])


class TokenProjection(nn.Module):
    """A learned token that has attended to the patches once, in one block of one head.

    Attributes:
      dtype: compute type; parameters are float32.

    Reference: Niizumi et al., arXiv 2503.22104: 3,548,928 parameters at a width of 768.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b d"]:
        """Projects tokens of patches, however many."""
        b, _, width = tokens.shape
        token = self.param("token", nn.initializers.zeros_init(), (width,))
        first = jnp.broadcast_to(token.astype(tokens.dtype), (b, 1, width))
        x = jnp.concatenate([first, tokens], axis=1)
        block = VitBlock(
            heads=1, mlp_width=width, layer_norm_epsilon=1e-5, dtype=self.dtype, name="block"
        )
        return LayerNorm(1e-5, dtype=self.dtype, name="norm")(block(x, train)[:, 0])
