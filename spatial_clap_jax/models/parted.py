"""A spatial encoder that parts what it hears before it asks what each part is, and where."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.cnn import AttentionPool, ConvBlock, fold_patches
from spatial_clap_jax.models.layers import block_class, conv_same

# A softmax over scores of unit spread parts hardly; three times that does.
_SHARPNESS = 3.0


@dataclass(frozen=True)
class PartedCnnConfig:
    """Shape of `PartedCnn`.

    Attributes:
      patch: (frames, bands) that the stem folds into one position.
      channels: filters of each 3x3 block, which sees all parts at once.
      pools: (frames, bands) that are pooled after each block.
      parts: how many parts each position is divided among.
      frame_width: width of a frame of a part.
      context: frames, an odd number, that a frame of a part is heard with.
      heads: of the attention pooling over time.
      width: of the vector of a part.
    """

    patch: tuple[int, int] = (4, 4)
    channels: tuple[int, ...] = (48,)
    pools: tuple[tuple[int, int], ...] = ((1, 1),)
    parts: int = 6
    frame_width: int = 128
    context: int = 5
    heads: int = 4
    width: int = 96

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise InputError(f"PartedCnnConfig.parts: {self.parts}; give at least 1.")
        if self.context < 1 or not self.context % 2:
            raise InputError(
                f"PartedCnnConfig.context: {self.context} must be odd, as many frames before as "
                "after; give 1, 3, 5, ..."
            )
        if self.width % self.heads:
            raise InputError(
                f"PartedCnnConfig.heads: {self.heads} does not divide the width {self.width}; "
                "choose a divisor."
            )


def in_context(
    frames: Float[Array, "b l d"], kernel: Float[Array, "i d e"]
) -> Float[Array, "b l e"]:
    """Each frame with its neighbours: a convolution over time, zeros around.

    Args:
      frames: frames of parts.
      kernel: weights for each of an odd number of frames, the earliest first.

    Returns:
      As many frames.
    """
    return conv_same(frames[:, :, None], kernel[:, None])[:, :, 0]


class PartedCnn(nn.Module):
    """Spatial encoder: planes of both channels in, one vector out.

    Convolutions see level and phase differences, and give every position in time and frequency
    to a few parts, by shares that sum to one. One and the same network then hears each part by
    itself, so that what it learns of a content in one place it knows in all. Directions are no
    labels: what the parts are is learned.

    Attributes:
      config: its shape.
      dtype: of the computation; parameters stay float32.

    Reference: our choice, after separation by masks in time and frequency.
    """

    config: PartedCnnConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, planes: Float[Array, "b l f c"], train: bool) -> Float[Array, "b d"]:
        config = self.config
        # The highest bin of a Fourier transform, which fills no patch, is left out.
        bands = planes.shape[2] // config.patch[1] * config.patch[1]
        x = fold_patches(planes[:, :, :bands].astype(self.dtype), config.patch)
        x = nn.Dense(config.channels[0], dtype=self.dtype, name="stem")(x)
        block = block_class(ConvBlock, train_argument=2)
        for i, (channels, pool) in enumerate(zip(config.channels, config.pools, strict=True)):
            x = block(channels, pool, dtype=self.dtype, name=f"block{i}")(x, train)
        batch, frames, bands, channels = x.shape
        scores = nn.Dense(config.parts, dtype=self.dtype, name="share")(x).astype(jnp.float32)
        shares = nn.softmax(_SHARPNESS * scores).astype(self.dtype)
        parts = jnp.einsum("blfp,blfd->bplfd", shares, x)
        parts = parts.reshape(batch * config.parts, frames, bands * channels)
        parts = nn.Dense(config.frame_width, use_bias=False, dtype=self.dtype, name="frame")(parts)
        parts = nn.gelu(self._norm("frame_norm")(parts, use_running_average=not train))
        shape = (config.context, config.frame_width, config.frame_width)
        kernel = self.param("context", nn.initializers.lecun_normal(), shape)
        around = in_context(parts, kernel.astype(self.dtype))
        parts = parts + nn.gelu(self._norm("context_norm")(around, use_running_average=not train))
        pooled = AttentionPool(config.heads, config.width, dtype=self.dtype, name="pool")(parts)
        pooled = nn.gelu(nn.LayerNorm(dtype=self.dtype, name="norm")(pooled))
        return pooled.reshape(batch, -1)

    def _norm(self, name: str) -> nn.BatchNorm:
        return nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=self.dtype, name=name)
