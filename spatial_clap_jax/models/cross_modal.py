"""The Cross-Modal Conformer: two streams of one clip that listen to each other."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.conformer import (
    ConvolutionModule,
    FeedForward,
    Norm,
    check_dropout,
    check_kernel,
    check_layer,
    kernel_init,
    sinusoidal_positions,
)
from spatial_clap_jax.models.layers import LayerNorm, SelfAttention, block_class

_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class CrossModalConfig:
    """Sizes of a `CrossModalConformer`.

    Attributes:
      width: of both streams.
      layers: number of layers, each of them once for either stream.
      heads: of every attention; divides `width`.
      feed_forward: hidden width of each half step.
      kernel: audio frames that the convolution sees; odd.
      other_kernel: tokens of the other stream that its convolution sees; odd. 0 for no convolution
        and no positions, where tokens have no order in time.
      dropout: rate of all dropouts.
      norm: inside the convolutions, see `ConformerConfig`.
      has_positions: whether sinusoidal positions are added to the inputs.

    Reference: sizes of the earlier public code of Berghi and Jackson, arXiv 2509.06598; the kernel
      of the other stream is our choice.
    """

    width: int = 512
    layers: int = 4
    heads: int = 8
    feed_forward: int = 1024
    kernel: int = 51
    other_kernel: int = 15
    dropout: float = 0.1
    norm: Norm = "batch"
    has_positions: bool = True

    def __post_init__(self) -> None:
        check_layer("CrossModalConfig", self.width, self.layers, self.heads, self.feed_forward)
        check_kernel("CrossModalConfig.kernel", self.kernel)
        if self.other_kernel:
            check_kernel("CrossModalConfig.other_kernel", self.other_kernel)
        check_dropout("CrossModalConfig", self.dropout)


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another; softmax in float32.

    The joint projection of the sources holds keys and values in this order, heads inside each.

    Attributes:
      heads: number of heads; divides the width.
      dropout: rate on the attention weights in training.
      dtype: compute type; parameters are float32.
      kernel_init: initialiser of all projections.
    """

    heads: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable = kernel_init

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], sources: Float[Array, "b m e"], train: bool = False
    ) -> Float[Array, "b n d"]:
        """For each of n positions a mixture of m sources.

        Args:
          x: what asks.
          sources: what is mixed.
          train: applies dropout (rng stream `dropout`).

        Returns:
          The attended values after the output projection.
        """
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)

        def by_head(rows: Array) -> Array:
            split = rows.reshape(*rows.shape[:-1], self.heads, width // self.heads)
            return jnp.swapaxes(split, -2, -3)

        query = by_head(dense(width, name="q")(x)) * (width // self.heads) ** -0.5
        key, value = map(by_head, jnp.split(dense(2 * width, name="kv")(sources), 2, axis=-1))
        logits = jnp.matmul(query, key.mT, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
        mixed = jnp.swapaxes(weights @ value, -2, -3).reshape(x.shape)
        return dense(width, name="out")(mixed)


class CrossModalStream(nn.Module):
    """A Conformer layer whose attention is to its own stream and to another.

    Half a feed-forward; self- and cross-attention of the same normalised input, both added;
    convolution; half a feed-forward; LN.

    Attributes:
      config: sizes.
      kernel: of the convolution over this stream; 0 for none.
      dtype: compute type; parameters are float32.
    """

    config: CrossModalConfig
    kernel: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], sources: Float[Array, "b m d"], train: bool
    ) -> Float[Array, "b n d"]:
        """Updates x by itself and by the sources."""
        config, dtype = self.config, self.dtype
        half = functools.partial(FeedForward, config.feed_forward, config.dropout, dtype)
        norm = functools.partial(LayerNorm, _EPSILON, dtype=dtype)
        attention = (config.heads, config.dropout, dtype, kernel_init)
        dropped = functools.partial(nn.Dropout(config.dropout), deterministic=not train)
        x = x + 0.5 * half(name="before")(x, train)
        asked = norm(name="attention_norm")(x)
        heard = norm(name="sources_norm")(sources)
        own = SelfAttention(*attention, name="self_attention")(asked, jnp.zeros(()), train)
        cross = CrossAttention(*attention, name="cross_attention")(asked, heard, train)
        x = x + dropped(own) + dropped(cross)
        if self.kernel:
            x = x + ConvolutionModule(
                self.kernel, config.norm, config.dropout, dtype, name="convolution"
            )(x, train)
        x = x + 0.5 * half(name="after")(x, train)
        return norm(name="norm")(x)


class CrossModalLayer(nn.Module):
    """Audio from the other stream, then the other from the audio as it is by now.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.
    """

    config: CrossModalConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, audio: Float[Array, "b n d"], other: Float[Array, "b m d"], train: bool
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b m d"]]:
        """Updates both streams (rng stream `dropout` in training)."""
        config = self.config
        stream = functools.partial(CrossModalStream, config, dtype=self.dtype)
        audio = stream(config.kernel, name="audio")(audio, other, train)
        return audio, stream(config.other_kernel, name="other")(other, audio, train)


class CrossModalConformer(nn.Module):
    """Layers `layer_{i}` on audio frames and the tokens of another modality of the same time.

    Both keep their lengths. The last layer's update of the other stream reaches no audio: without
    a gradient for `other` it learns nothing.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.

    Reference: Cross-Modal Conformer, Berghi and Jackson, arXiv 2509.06598. That the audio comes
      first is their earlier public code's; the order of modules inside a layer is our choice.
    """

    config: CrossModalConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, audio: Float[Array, "b n d"], other: Float[Array, "b m d"], train: bool
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b m d"]]:
        """Encodes both streams.

        Args:
          audio: frames of the config's width.
          other: tokens of the same width, in the order of time where there is one, from the
            beginning of the clip to its end.
          train: drops, and normalises by the batch.

        Returns:
          Both, as long as they were.

        Raises:
          InputError: a stream of another width.
        """
        config = self.config
        for name, stream in (("audio", audio), ("other", other)):
            if stream.shape[-1] != config.width:
                raise InputError(
                    f"{name}: {stream.shape[-1]} wide, but the Cross-Modal Conformer takes "
                    f"{config.width}; project it."
                )
        audio, other = audio.astype(self.dtype), other.astype(self.dtype)
        if config.has_positions:
            frames = audio.shape[1]
            audio = audio + sinusoidal_positions(frames, config.width).astype(self.dtype)
            if config.other_kernel:
                places = sinusoidal_positions(other.shape[1], config.width, frames)
                other = other + places.astype(self.dtype)
        layer = block_class(CrossModalLayer, train_argument=3)
        for index in range(config.layers):
            audio, other = layer(config, self.dtype, name=f"layer_{index}")(audio, other, train)
        return audio, other
