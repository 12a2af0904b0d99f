"""The convolutions of a SELD network: planes of both channels in, a vector a label frame out."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.cnn import fold_patches
from spatial_clap_jax.models.conformer import check_dropout
from spatial_clap_jax.models.crnn import Gru
from spatial_clap_jax.models.layers import Conv, SelfAttention, block_class


@dataclass(frozen=True)
class SeldEncoderConfig:
    """Shape of `SeldEncoder`; the defaults are those of the AV-SELD encoder.

    Attributes:
      patch: (frames, bands) folded into channels by a linear stem of as many channels as the first
        block, because first-layer convolutions are slow on a CPU; None for no stem.
      channels: filters of each block.
      pools: (frames, bands) that become one after each block.
      block: 'residual', two 3x3 convolutions beside a 1x1 one; 'plain', one convolution.
      bands: what becomes of the bands that are left: their 'mean', or all side by side ('flat').
      pooling: what pooled cells become: their 'mean', or the largest ('max').
      has_bias: whether convolutions have biases, which the norms after them take off again.
      dropout: share of the channels that are dropped whole after each block.
      projects: whether a linear layer brings what is left to the width of what comes next.

    Reference: Berghi and Jackson, arXiv 2509.06598, and their earlier public code; 'plain', 'max'
      and 'flat', biases, dropout and no projection are the baseline of DCASE 2025 Task 3.
    """

    patch: tuple[int, int] | None = None
    channels: tuple[int, ...] = (64, 128, 256, 512)
    pools: tuple[tuple[int, int], ...] = ((2, 2), (2, 2), (2, 2), (2, 2))
    block: Literal["residual", "plain"] = "residual"
    bands: Literal["mean", "flat"] = "mean"
    pooling: Literal["mean", "max"] = "mean"
    has_bias: bool = False
    dropout: float = 0.0
    projects: bool = True

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.pools):
            raise InputError(
                f"SeldEncoderConfig.pools: {len(self.pools)} of them for {len(self.channels)} "
                "blocks of channels; give one a block."
            )
        if min(self.channels) < 1 or min(map(min, (*self.pools, self.patch or (1, 1)))) < 1:
            raise InputError(
                f"SeldEncoderConfig: channels {self.channels}, pools {self.pools} and patch "
                f"{self.patch} must be at least 1."
            )
        check_dropout("SeldEncoderConfig", self.dropout)


class SeldBlock(nn.Module):
    """Convolutions with BatchNorm and ReLU, pooled over cells; residual or plain.

    Attributes:
      config: of the encoder; tells the kind of block.
      channels: filters.
      pool: (frames, bands) that become one.
      dtype: of the computation.
    """

    config: SeldEncoderConfig
    channels: int
    pool: tuple[int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l f c"], train: bool) -> Float[Array, "b l2 f2 d"]:
        config, beside = self.config, x
        is_residual = config.block == "residual"
        for i in range(2 if is_residual else 1):
            x = Conv(self.channels, config.has_bias, dtype=self.dtype, name=f"conv{i}")(x)
            norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=self.dtype, name=f"norm{i}")
            x = nn.relu(norm(x, use_running_average=not train))
        pool = nn.avg_pool if config.pooling == "mean" else nn.max_pool
        x = pool(x, self.pool, strides=self.pool)
        if is_residual:
            frames, bands = self.pool
            strided = beside[:, ::frames, ::bands][:, : x.shape[1], : x.shape[2]]
            x = x + nn.Dense(self.channels, dtype=self.dtype, name="beside")(strided)
        return nn.Dropout(config.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)


class SeldEncoder(nn.Module):
    """Convolution blocks, then a vector for each frame that is left.

    Attributes:
      config: its shape.
      width: of the vectors, where it projects.
      dtype: of the computation; parameters stay float32.
    """

    config: SeldEncoderConfig
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, planes: Float[Array, "b l m p"], train: bool) -> Float[Array, "b n d"]:
        """Encodes planes; frames at the end that fill no pooled cell are left out."""
        config, x = self.config, planes.astype(self.dtype)
        if config.patch is not None:
            x = nn.Dense(config.channels[0], dtype=self.dtype, name="stem")(
                fold_patches(x, config.patch)
            )
        block = block_class(SeldBlock, train_argument=2)
        for i, (channels, pool) in enumerate(zip(config.channels, config.pools, strict=True)):
            x = block(config, channels, pool, dtype=self.dtype, name=f"block{i}")(x, train)
        x = x.mean(axis=2) if config.bands == "mean" else x.reshape(*x.shape[:2], -1)
        if not config.projects:
            return x
        return nn.Dense(self.width, dtype=self.dtype, name="frame")(x)


@dataclass(frozen=True)
class RecurrentConfig:
    """Shape of `Recurrent`.

    Attributes:
      width: of a frame.
      layers: bidirectional recurrent layers.
      attentions: self-attention layers after them.
      heads: of each.
      dropout: on what each attention adds.
      gated: False has half the width in each direction, side by side; True, as the task's baseline,
        all of it in each, and after the last layer the product of both directions' tanh.
      recurrent_dropout: between recurrent layers.
      attention_dropout: on the weights of each attention.
    """

    width: int = 256
    layers: int = 2
    attentions: int = 2
    heads: int = 8
    dropout: float = 0.05
    gated: bool = False
    recurrent_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2 or self.width % self.heads:
            raise InputError(
                f"RecurrentConfig.width: {self.width} must be even and a multiple of the "
                f"{self.heads} heads."
            )
        for name in ("dropout", "recurrent_dropout", "attention_dropout"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise InputError(f"RecurrentConfig.{name}: {share} must be in [0, 1); give 0.05.")


class Recurrent(nn.Module):
    """Bidirectional gated recurrence, then self-attention: what a CRNN has after its convolutions.

    Attributes:
      config: its shape.
      dtype: of the computation; parameters stay float32.

    Reference: baseline of DCASE 2025 Task 3.
    """

    config: RecurrentConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n e"]:
        config, still = self.config, not train
        width = config.width if config.gated else config.width // 2
        for i in range(config.layers):
            if i:
                between = nn.Dropout(config.recurrent_dropout, name=f"between{i}")
                x = between(x, deterministic=still)
            both = [
                Gru(width, reverse, dtype=self.dtype, name=f"gru{i}_{name}")(x)
                for name, reverse in (("forward", False), ("backward", True))
            ]
            x = jnp.concatenate(both, axis=-1)
        if config.gated:
            forward, backward = jnp.split(jnp.tanh(x), 2, axis=-1)
            x = forward * backward
        for i in range(config.attentions):
            attention = SelfAttention(
                config.heads, config.attention_dropout, dtype=self.dtype, name=f"attention{i}"
            )
            mixed = attention(x, jnp.zeros(()), train)
            x = x + nn.Dropout(config.dropout)(mixed, deterministic=still)
            x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"norm{i}")(x)
        return x
