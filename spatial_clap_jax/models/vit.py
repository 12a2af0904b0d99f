"""Vision transformer on log-mel patches, with fixed positions and any subset of the patches."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.layers import (
    LayerNorm,
    Mlp,
    SelfAttention,
    block_class,
    gelu,
    scanned,
    scans_layers,
)

# As in MAE and M2D; only the tokens of their own are drawn from a normal distribution.
kernel_init = nn.initializers.xavier_uniform()
token_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Sizes of a `Vit`; the defaults are M2D's ViT-B.

    Attributes:
      mels: mel bands of the input.
      frames: length that it is trained on; any other is taken too.
      patch: mel bands and frames of a patch.
      width: width of a token.
      layers: number of transformer blocks.
      heads: attention heads; divides `width`.
      mlp_ratio: hidden width of the MLP over `width`.
      layer_norm_epsilon: added to the variance.

    Reference: Niizumi et al., M2D-CLAP, arXiv 2503.22104.
    """

    mels: int = 80
    frames: int = 608
    patch: tuple[int, int] = (16, 16)
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        bands, length = self.patch
        is_whole = min(self.patch) > 0 and self.mels >= bands and not self.mels % bands
        if not is_whole or self.frames < length:
            raise InputError(
                f"VitConfig.patch: {self.patch} with {self.mels} mels and {self.frames} frames; "
                "its bands must divide the mels, and the frames hold at least one."
            )
        check_sizes("VitConfig", self.width, self.layers, self.heads, self.mlp_ratio)

    @property
    def mel_patches(self) -> int:
        """Patches over frequency."""
        return self.mels // self.patch[0]

    def time_patches(self, frames: int) -> int:
        """Whole patches over so many frames."""
        return frames // self.patch[1]

    def patches(self, frames: int) -> int:
        """Tokens of so many frames, without CLS."""
        return self.mel_patches * self.time_patches(frames)

    def inputs(self, frames: int) -> list[tuple[int, int]]:
        """What a recording of so many frames is cut into: inputs of the length of training.

        Returns:
          First frame and patches over time of each; the last one may reach beyond the recording,
          by less than a patch.

        Example:
          >>> VitConfig(frames=40).inputs(94)
          [(0, 2), (40, 2), (80, 1)]
        """
        patch, most = self.patch[1], self.time_patches(self.frames)
        starts = range(0, frames, self.frames)
        return [(start, min(-(-(frames - start) // patch), most)) for start in starts]


class VitOutput(NamedTuple):
    """What a `Vit` gives.

    Attributes:
      tokens: one a patch, in the order of the patches.
      cls: the classification token.
    """

    tokens: Float[Array, "b n d"]
    cls: Float[Array, "b d"]


def check_sizes(name: str, width: int, layers: int, heads: int, mlp_ratio: float) -> None:
    """Refuses blocks that cannot be built.

    Raises:
      InputError: a width that cannot be cut into heads, or into sines and cosines of two axes; no
        layer, or an MLP without a width.
    """
    if width < 1 or heads < 1 or width % heads or width % 4:
        raise InputError(
            f"{name}.width: {width} with {heads} heads; it must be a multiple of the heads and of 4"
        )
    if layers < 1:
        raise InputError(f"{name}.layers: {layers}; give at least 1.")
    if not 1 <= width * mlp_ratio < math.inf:
        raise InputError(
            f"{name}.mlp_ratio: {mlp_ratio} of a width of {width}; the hidden width must be at "
            "least 1: give a ratio such as 4."
        )


@functools.lru_cache(maxsize=32)
def sincos_positions(
    mel_patches: int, time_patches: int, width: int
) -> Float32[np.ndarray, "n_and_cls d"]:
    """Fixed positions of CLS (zero) and of patches, frequency-major.

    Args:
      mel_patches: patches over frequency.
      time_patches: patches over time. Positions of a shorter input are those of a longer one, cut.
      width: a multiple of 4; the first half encodes time, the second frequency, each as sines,
        then cosines, of base 10000.

    Returns:
      Row 0 is CLS; row 1 + f * time_patches + t is patch f, t. Read-only, since it is cached.

    Reference: MAE (He et al., arXiv 2111.06377), whose first half is the horizontal axis.

    Example:
      >>> sincos_positions(1, 2, 4)[2].round(3).tolist()   # sin 1, cos 1 of time; then frequency
      [0.841, 0.54, 0.0, 1.0]
    """
    quarter = width // 4
    rate = 10000.0 ** (-np.arange(quarter) / quarter)
    frequency, time = np.divmod(np.arange(mel_patches * time_patches), time_patches)
    halves = [axis[:, None] * rate for axis in (time, frequency)]
    rows = np.concatenate([wave(half) for half in halves for wave in (np.sin, np.cos)], axis=1)
    table = np.concatenate([np.zeros((1, width)), rows]).astype(np.float32)
    table.flags.writeable = False
    return table


def take_tokens(x: Float[Array, "b n d"], chosen: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    """Tokens of each row by their indices."""
    return jnp.take_along_axis(x, chosen[..., None], axis=1)


class VitBlock(nn.Module):
    """Self-attention and MLP, each normalised before and added to its input (pre-norm).

    Attributes:
      heads: number of heads.
      mlp_width: hidden width of the MLP.
      layer_norm_epsilon: added to the variance.
      dtype: compute type; parameters are float32.
      activation: of the MLP.
    """

    heads: int
    mlp_width: int
    layer_norm_epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    activation: Callable[[Array], Array] = gelu

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        train: bool = False,
        bias: Float32[Array, "..."] | None = None,
    ) -> Float[Array, "b n d"]:
        """Applies the block; nothing in it depends on `train`, `bias` is added to the logits."""
        norm = functools.partial(LayerNorm, self.layer_norm_epsilon, dtype=self.dtype)
        attention = SelfAttention(
            self.heads, dtype=self.dtype, kernel_init=kernel_init, name="attention"
        )
        bias = jnp.zeros(()) if bias is None else bias
        x = x + attention(norm(name="attention_norm")(x), bias, train)
        mlp = Mlp(self.mlp_width, self.dtype, kernel_init, self.activation, name="mlp")
        return x + mlp(norm(name="mlp_norm")(x))


class VitBlocks(nn.Module):
    """Blocks `block_{i}` and a final `norm`: what M2D's target has of its own.

    Attributes:
      layers: number of blocks.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
      layer_norm_epsilon: added to the variance.
      dtype: compute type; parameters are float32.
      activation: of the MLPs.
    """

    layers: int
    heads: int
    mlp_width: int
    layer_norm_epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    activation: Callable[[Array], Array] = gelu

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        train: bool = False,
        bias: Float32[Array, "..."] | None = None,
    ) -> Float[Array, "b n d"]:
        """Applies all blocks and the norm; `bias` is added to the logits of every attention."""
        sizes = (self.heads, self.mlp_width, self.layer_norm_epsilon, self.dtype, self.activation)
        names = [f"block_{index}" for index in range(self.layers)]
        x = x.astype(self.dtype)
        if scans_layers(self, names):
            params = self.variables["params"]
            block = VitBlock(*sizes, parent=None)
            x = scanned(
                lambda params, x, _: cast(Array, block.apply({"params": params}, x, bias=bias)),
                [params[name] for name in names],
                x,
                None,
            )
        else:
            block_cls = block_class(VitBlock, train_argument=2)
            for name in names:
                x = block_cls(*sizes, name=name)(x, train, bias)
        return LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name="norm")(x)


def vit_blocks(config: VitConfig, dtype: DTypeLike = jnp.float32) -> VitBlocks:
    """The blocks and norm of a `Vit` alone, with no parent."""
    hidden = round(config.width * config.mlp_ratio)
    sizes = (config.layers, config.heads, hidden, config.layer_norm_epsilon, dtype)
    return VitBlocks(*sizes, parent=None)


class Vit(nn.Module):
    """Encodes log-mel levels; by `embed` and `encode`, those of their patches that are kept.

    Its cost is that of the patches that it sees: what is not kept never meets a block.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.
    """

    config: VitConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        width = self.config.width
        self.patch = nn.Dense(width, dtype=self.dtype, kernel_init=kernel_init)
        self.cls_token = self.param("cls_token", token_init, (width,))
        self.blocks = vit_blocks(self.config, self.dtype)
        # Blocks stand beside the patch embedding, `block_0` and not `blocks/block_0`.
        nn.share_scope(self, self.blocks)

    def __call__(self, levels: Float[Array, "b l m"], train: bool = False) -> VitOutput:
        """Encodes levels of any length.

        Args:
          levels: normalised log-mel; frames beyond a whole number of patches are cut.
          train: nothing depends on it.

        Returns:
          A token a patch, frequency-major, and CLS.

        Raises:
          InputError: other mels than the encoder's, or less than one patch of frames.
        """
        return self.encode(self.embed(levels), train)

    def embed(self, levels: Float[Array, "b l m"]) -> Float[Array, "b n d"]:
        """Patches with their positions, frequency-major: index f * time_patches + t."""
        config = self.config
        (b, frames, mels), (bands, length) = levels.shape, config.patch
        count = config.time_patches(frames)
        if mels != config.mels or not count:
            raise InputError(
                f"levels: {frames} frames of {mels} mels, but the encoder takes {config.mels} mels "
                f"and at least {length} frames; give longer audio of its front end."
            )
        grid = levels[:, : count * length].reshape(b, count, length, config.mel_patches, bands)
        # Inside a patch mels come before frames, as in a convolution over [mels, frames].
        cut = grid.transpose(0, 3, 1, 4, 2).reshape(b, -1, bands * length)
        positions = sincos_positions(config.mel_patches, count, config.width)[1:]
        return self.patch(cut) + positions.astype(self.dtype)

    def with_cls(self, patches: Float[Array, "b k d"]) -> Float[Array, "b k_and_cls d"]:
        """Patches after the classification token, whose position is zero."""
        cls = jnp.broadcast_to(
            self.cls_token.astype(patches.dtype), (patches.shape[0], 1, self.config.width)
        )
        return jnp.concatenate([cls, patches], axis=1)

    def encode(self, patches: Float[Array, "b k d"], train: bool = False) -> VitOutput:
        """Blocks and norm over embedded patches, any subset of them."""
        x = self.blocks(self.with_cls(patches), train)
        return VitOutput(x[:, 1:], x[:, 0])
