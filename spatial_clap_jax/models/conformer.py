"""Conformer: attention over a whole sequence, and convolution over what is near in time."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32
from scipy.fft import next_fast_len

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.layers import LayerNorm, SelfAttention, block_class

kernel_init = nn.initializers.xavier_uniform()
_EPSILON = 1e-5

Norm = Literal["batch", "layer"]


@dataclasses.dataclass(frozen=True)
class ConformerConfig:
    """Sizes of a `Conformer`; the defaults are those of the AV-SELD encoder.

    Attributes:
      width: of a frame, in and out.
      layers: number of layers.
      heads: of the attention; divides `width`.
      feed_forward: hidden width of each half step.
      kernel: frames that the convolution sees; odd.
      dropout: rate of all dropouts.
      norm: inside the convolution: 'batch' as published; 'layer' where batches are too small to
        normalise by, or an example must not depend on the others in training.
      has_positions: whether sinusoidal positions are added to the input.

    Reference: Gulati et al., Conformer, arXiv 2005.08100; sizes: Berghi and Jackson,
      arXiv 2509.06598, and their earlier public code.
    """

    width: int = 512
    layers: int = 4
    heads: int = 8
    feed_forward: int = 1024
    kernel: int = 51
    dropout: float = 0.1
    norm: Norm = "batch"
    has_positions: bool = True

    def __post_init__(self) -> None:
        check_layer("ConformerConfig", self.width, self.layers, self.heads, self.feed_forward)
        check_kernel("ConformerConfig.kernel", self.kernel)
        check_dropout("ConformerConfig", self.dropout)


def check_layer(name: str, width: int, layers: int, heads: int, feed_forward: int) -> None:
    """Refuses sizes of attention layers that cannot be built."""
    if heads < 1 or width < 2 or width % heads or width % 2:
        raise InputError(
            f"{name}.width: {width} with {heads} heads; it must be even and a multiple of them."
        )
    for field, value in (("layers", layers), ("feed_forward", feed_forward)):
        if value < 1:
            raise InputError(f"{name}.{field}: {value} must be at least 1; give more.")


def check_kernel(name: str, kernel: int) -> None:
    """Refuses a kernel without a middle."""
    if kernel < 1 or kernel % 2 == 0:
        raise InputError(f"{name}: {kernel} must be odd and at least 1; give 51.")


def check_dropout(name: str, dropout: float) -> None:
    """Refuses a rate that is none."""
    if not 0 <= dropout < 1:
        raise InputError(f"{name}.dropout: {dropout} must be in [0, 1); give 0.1.")


@functools.lru_cache(maxsize=32)
def sinusoidal_positions(
    count: int, width: int, over: int | None = None
) -> Float32[np.ndarray, "n d"]:
    """Fixed positions of the middles of equal pieces of time.

    Args:
      count: how many pieces.
      width: even; sines first, then cosines, of base 10000.
      over: how many pieces the same time has in the stream that it is compared with; `count` if
        None. Streams of different rates then have the same position at the same time.

    Returns:
      One row a position, read-only, since it is cached.

    Reference: Vaswani et al., arXiv 1706.03762; the common time of two streams is our choice.

    Example:
      >>> sinusoidal_positions(2, 2).round(3).tolist()   # sine and cosine of 0 and 1
      [[0.0, 1.0], [0.841, 0.54]]
      >>> sinusoidal_positions(1, 2, over=2).round(3).tolist()   # between the two: of 0.5
      [[0.479, 0.878]]
    """
    # Pieces as long as those of the other stream have whole numbers, from 0.
    middles = (np.arange(count) + 0.5) * ((over or count) / count) - 0.5
    angles = middles[:, None] * 10000.0 ** (-2 * np.arange(width // 2) / width)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    table.flags.writeable = False
    return table


class DepthwiseConv(nn.Module):
    """Convolution over time of each channel by itself, zeros around; the length stays.

    Attributes:
      kernel: frames; odd.
      dtype: compute type; parameters are float32.
    """

    kernel: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Applies the convolution.

        XLA's grouped convolution takes a hundred times as long on a CPU as a Fourier transform.
        """
        width = x.shape[-1]
        # Channels are apart: a sum has as many terms as the kernel has frames.
        scaled = nn.initializers.lecun_normal(in_axis=0, out_axis=(), batch_axis=1)
        kernel = self.param("kernel", scaled, (self.kernel, width))
        bias = self.param("bias", nn.initializers.zeros_init(), (width,))
        convolved = jax.lax.platform_dependent(
            x.astype(self.dtype), kernel.astype(self.dtype), cpu=_by_fourier, default=_at_once
        )
        return convolved + bias.astype(self.dtype)


def _at_once(x: Float[Array, "b n d"], kernel: Float[Array, "k d"]) -> Float[Array, "b n d"]:
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, None],
        (1,),
        [(len(kernel) // 2, len(kernel) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1],
    )


def _by_fourier(x: Float[Array, "b n d"], kernel: Float[Array, "k d"]) -> Float[Array, "b n d"]:
    frames, taps = x.shape[1], len(kernel)
    length = next_fast_len(frames + taps - 1, real=True)
    spectrum = jnp.fft.rfft(x.astype(jnp.float32), length, axis=1)
    spectrum *= jnp.fft.rfft(kernel[::-1].astype(jnp.float32), length, axis=0)
    whole = jnp.fft.irfft(spectrum, length, axis=1)
    return whole[:, taps // 2 : taps // 2 + frames].astype(x.dtype)


class FeedForward(nn.Module):
    """LN, dense, SiLU, dense back, with dropout after both; not yet added to the input.

    Attributes:
      hidden: width between the two.
      dropout: rate.
      dtype: compute type; parameters are float32.
    """

    hidden: int
    dropout: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        """Applies it to every position by itself."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        dropped = functools.partial(nn.Dropout(self.dropout), deterministic=not train)
        width = x.shape[-1]
        x = LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(x)
        x = dropped(nn.silu(dense(self.hidden, name="up")(x)))
        return dropped(dense(width, name="down")(x))


class ConvolutionModule(nn.Module):
    """LN, pointwise, GLU, depthwise over time, norm, SiLU, pointwise, dropout.

    Attributes:
      kernel: frames that the depthwise convolution sees.
      norm: see `ConformerConfig`.
      dropout: rate.
      dtype: compute type; parameters are float32.
    """

    kernel: int
    norm: Norm
    dropout: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        """What the convolution adds to its input."""
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        x = LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(x)
        x = nn.glu(dense(2 * width, name="into")(x))
        x = DepthwiseConv(self.kernel, self.dtype, name="depthwise")(x)
        if self.norm == "batch":
            norm = nn.BatchNorm(
                not train, momentum=0.9, epsilon=_EPSILON, dtype=self.dtype, name="inner_norm"
            )
        else:
            norm = LayerNorm(_EPSILON, dtype=self.dtype, name="inner_norm")
        x = dense(width, name="out")(nn.silu(norm(x)))
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class ConformerLayer(nn.Module):
    """Half a feed-forward, self-attention, convolution, half a feed-forward, LN.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.
    """

    config: ConformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        """Applies the layer (rng stream `dropout` in training)."""
        config, dtype = self.config, self.dtype
        half = functools.partial(FeedForward, config.feed_forward, config.dropout, dtype)
        attention = SelfAttention(
            config.heads, config.dropout, dtype, kernel_init, name="attention"
        )
        x = x + 0.5 * half(name="before")(x, train)
        mixed = attention(
            LayerNorm(_EPSILON, dtype=dtype, name="attention_norm")(x), jnp.zeros(()), train
        )
        x = x + nn.Dropout(config.dropout)(mixed, deterministic=not train)
        x = x + ConvolutionModule(
            config.kernel, config.norm, config.dropout, dtype, name="convolution"
        )(x, train)
        x = x + 0.5 * half(name="after")(x, train)
        return LayerNorm(_EPSILON, dtype=dtype, name="norm")(x)


class Conformer(nn.Module):
    """Layers `layer_{i}` one after the other, on frames with their positions.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.
    """

    config: ConformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        """Encodes frames, any number of them.

        Args:
          x: frames of the config's width.
          train: drops, and normalises by the batch.

        Returns:
          As many frames of the same width.

        Raises:
          InputError: frames of another width.
        """
        config = self.config
        if x.shape[-1] != config.width:
            raise InputError(
                f"frames: {x.shape[-1]} wide, but the Conformer takes {config.width}; project them."
            )
        x = x.astype(self.dtype)
        if config.has_positions:
            x = x + sinusoidal_positions(x.shape[1], config.width).astype(self.dtype)
        layer = block_class(ConformerLayer, train_argument=2)
        for index in range(config.layers):
            x = layer(config, self.dtype, name=f"layer_{index}")(x, train)
        return x
