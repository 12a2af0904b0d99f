"""The content-aware spatial encoder (CASE): a CRNN that hears both channels."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax.models.cnn import AttentionPool, ConvBlock, fold_patches
from spatial_clap_jax.models.layers import block_class


@dataclass(frozen=True)
class CrnnConfig:
    """Shape of `Crnn`; the defaults are the released CASE, 1,095,616 parameters.

    Attributes:
      patch: (frames, bands) folded into channels by a linear stem; None for no stem.
      channels: filters of each 3x3 block.
      pools: (frames, bands) pooled after each block.
      order: of a block, see `ConvBlock`.
      frame_width: width of a frame after the convolutions.
      gru_width: width a direction.
      gru_layers: bidirectional layers.
      pooling: 'mean' over time (CASE), or 'attention': `heads` learned weightings.
      heads: of the attention pooling.
      width: of the attention pooling's output (mean pooling gives 2 gru_width).
    """

    patch: tuple[int, int] | None = None
    channels: tuple[int, ...] = (64, 64, 64)
    pools: tuple[tuple[int, int], ...] = ((1, 2), (1, 2), (1, 2))
    order: Literal["norm_first", "activation_first"] = "activation_first"
    frame_width: int = 128
    gru_width: int = 128
    gru_layers: int = 2
    pooling: Literal["mean", "attention"] = "mean"
    heads: int = 24
    width: int = 384


class Gru(nn.Module):
    """One direction of a gated recurrent layer, with both of PyTorch's biases.

    The two biases of the reset and update gates are redundant, but published weights
    have them. The input projection of all frames is one matrix product; only the
    recurrence is scanned.

    Attributes:
      width: of the state.
      reverse: run from the last frame to the first.
      dtype: of the computation.
    """

    width: int
    reverse: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l w"]:
        # PyTorch's initial distribution for recurrent layers.
        uniform = nn.initializers.uniform(2 * self.width**-0.5)

        def initial(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
            return uniform(key, shape, dtype) - self.width**-0.5

        w_in = self.param("input_kernel", initial, (x.shape[-1], 3 * self.width))
        b_in = self.param("input_bias", initial, (3 * self.width,))
        w_state = self.param("state_kernel", initial, (self.width, 3 * self.width))
        b_state = self.param("state_bias", initial, (3 * self.width,))
        w_in, b_in, w_state, b_state, x = promote_dtype(
            w_in, b_in, w_state, b_state, x, dtype=self.dtype
        )
        projected = (x @ w_in + b_in).swapaxes(0, 1)

        def advance(state, frame):
            r_in, z_in, n_in = jnp.split(frame, 3, axis=-1)
            r_state, z_state, n_state = jnp.split(state @ w_state + b_state, 3, axis=-1)
            reset = nn.sigmoid(r_in + r_state)
            update = nn.sigmoid(z_in + z_state)
            candidate = jnp.tanh(n_in + reset * n_state)
            state = (1 - update) * candidate + update * state
            return state, state

        start = jnp.zeros((x.shape[0], self.width), projected.dtype)
        _, states = jax.lax.scan(advance, start, projected, reverse=self.reverse)
        return states.swapaxes(0, 1)


class Crnn(nn.Module):
    """Spatial encoder: planes of both channels in, one vector out.

    Attributes:
      config: its shape.
      dtype: of the computation; parameters stay float32.
    """

    config: CrnnConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, planes: Float[Array, "b l f c"], train: bool) -> Float[Array, "b d"]:
        config = self.config
        x = planes.astype(self.dtype)
        if config.patch is not None:
            # The highest bin of a Fourier transform, which fills no patch, is left out.
            x = fold_patches(
                x[:, :, : x.shape[2] // config.patch[1] * config.patch[1]], config.patch
            )
            x = nn.Dense(config.channels[0], dtype=self.dtype, name="stem")(x)
        block = block_class(ConvBlock, train_argument=2)
        for i, (channels, pool) in enumerate(zip(config.channels, config.pools, strict=True)):
            x = block(channels, pool, config.order, dtype=self.dtype, name=f"block{i}")(x, train)
        # Channel-major, as PyTorch flattens [b, c, l, f] frame by frame.
        x = x.swapaxes(2, 3).reshape(*x.shape[:2], -1)
        x = nn.Dense(config.frame_width, dtype=self.dtype, name="frame")(x)
        for i in range(config.gru_layers):
            forward = Gru(config.gru_width, dtype=self.dtype, name=f"gru{i}")(x)
            backward = Gru(config.gru_width, True, dtype=self.dtype, name=f"gru{i}_reverse")(x)
            x = jnp.concatenate([forward, backward], axis=-1)
        if config.pooling == "mean":
            return x.mean(axis=1)
        return AttentionPool(config.heads, config.width, dtype=self.dtype, name="pool")(x)
