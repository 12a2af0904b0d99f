"""A small convolutional content encoder: what sounds, from a log-mel spectrogram."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax.models.layers import Conv, block_class


@dataclass(frozen=True)
class CnnConfig:
    """Shape of `Cnn`.

    Attributes:
      patch: frames and bands that the stem folds into one position; a fold and a matrix
        product, because first-layer convolutions with few planes are slow on a CPU.
      channels: filters of each 3x3 block.
      pools: (frames, bands) that are pooled after each block.
      width: width of the pooled vector.
      heads: heads of the attention pooling over time.
      dropout: before the last projection.
    """

    patch: tuple[int, int] = (4, 4)
    channels: tuple[int, ...] = (64, 96, 128)
    pools: tuple[tuple[int, int], ...] = ((1, 2), (1, 2), (1, 1))
    width: int = 256
    heads: int = 8
    dropout: float = 0.1

    @property
    def frame_stride(self) -> int:
        """Frames of the input that one of the output stands for."""
        return self.patch[0] * math.prod(frames for frames, _ in self.pools)


class ConvBlock(nn.Module):
    """3x3 convolution, BatchNorm and activation in either order, then pooling.

    Attributes:
      channels: filters.
      pool: (frames, bands) pooled into one.
      order: 'norm_first' (convolution, norm, GELU; no bias, average pool) or
        'activation_first' (convolution, ReLU, norm; max pool), the order of CASE.
      dtype: of the computation.
    """

    channels: int
    pool: tuple[int, int]
    order: Literal["norm_first", "activation_first"] = "norm_first"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l f c"], train: bool) -> Float[Array, "b l2 f2 d"]:
        norm_first = self.order == "norm_first"
        x = Conv(self.channels, use_bias=not norm_first, dtype=self.dtype, name="conv")(x)
        norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm")
        if norm_first:
            x = nn.gelu(norm(x, use_running_average=not train))
            return nn.avg_pool(x, self.pool, strides=self.pool)
        x = norm(nn.relu(x), use_running_average=not train)
        return nn.max_pool(x, self.pool, strides=self.pool)


class AttentionPool(nn.Module):
    """Several heads, each a learned weighting of the positions, side by side.

    A mean lets the loudest source win; many heads let several sources survive pooling.

    Attributes:
      heads: weightings.
      width: of the output, shared evenly by the heads.
      dtype: of the computation.
    """

    heads: int
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b e"]:
        scores = nn.Dense(self.heads, dtype=self.dtype, name="score")(x)
        weights = nn.softmax(scores.astype(jnp.float32), axis=1).astype(self.dtype)
        # Positions are weighed before their values are taken: the same sum, of far fewer products.
        pooled = jnp.einsum("bnh,bnd->hbd", weights, x)
        values = nn.DenseGeneral(
            self.width // self.heads, batch_dims=(0,), dtype=self.dtype, name="value"
        )(pooled)
        return values.swapaxes(0, 1).reshape(x.shape[0], -1)


def fold_patches(x: Float[Array, "b l f c"], patch: tuple[int, int]) -> Float[Array, "b l2 f2 c2"]:
    """Fold non-overlapping patches of frames and bands into channels.

    Frames are padded by zeros at the end to a whole number of patches.

    Args:
      x: planes over frames and bands.
      patch: (frames, bands) of one patch; bands must divide.

    Returns:
      ceil(l / frames) x f / bands positions of frames * bands * c channels.
    """
    frames, bands = patch
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % frames), (0, 0), (0, 0)))
    b, length, width, c = x.shape
    x = x.reshape(b, length // frames, frames, width // bands, bands, c).swapaxes(2, 3)
    return x.reshape(b, length // frames, width // bands, frames * bands * c)


class CnnOutput(NamedTuple):
    """What a `Cnn` gives.

    Attributes:
      pooled: one vector a clip.
      frames: what it is pooled from, `CnnConfig.frame_stride` frames of the input apart.
    """

    pooled: Float[Array, "b d"]
    frames: Float[Array, "b n d"]


class Cnn(nn.Module):
    """Content encoder of the small sizes.

    Attributes:
      config: its shape.
      dtype: of the computation; parameters stay float32.
    """

    config: CnnConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, log_mel: Float[Array, "b l m"], train: bool) -> CnnOutput:
        config = self.config
        x = log_mel[..., None].astype(self.dtype)
        x = fold_patches(x, config.patch)
        x = nn.Dense(config.channels[0], dtype=self.dtype, name="stem")(x)
        block = block_class(ConvBlock, train_argument=2)
        for i, (channels, pool) in enumerate(zip(config.channels, config.pools, strict=True)):
            x = block(channels, pool, dtype=self.dtype, name=f"block{i}")(x, train)
        x = x.reshape(*x.shape[:2], -1)
        frames = nn.gelu(nn.Dense(config.width, dtype=self.dtype, name="frame")(x))
        pooled = AttentionPool(config.heads, config.width, dtype=self.dtype, name="pool")(frames)
        return CnnOutput(nn.Dropout(config.dropout)(pooled, deterministic=not train), frames)
