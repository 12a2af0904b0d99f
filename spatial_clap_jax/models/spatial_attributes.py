"""ELSA's spatial-attributes branch: where a sound is and in what room, from intensity vectors.

    active intensity   -> CNN --+
                                +-> dropout -> MLP -> 44 attributes
    reactive intensity -> CNN --+

Reference: Devnani et al., ELSA, arXiv 2409.11369, with the widths of its re-implementations.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.intensity import Intensity
from spatial_clap_jax.models.cnn import AttentionPool, fold_patches
from spatial_clap_jax.models.layers import Conv, block_class

# Azimuth and elevation, distance, volume, and in 20 third-octave bands each DRR and T30.
ATTRIBUTES = 44


@dataclass(frozen=True)
class SpatialAttributesConfig:
    """Shape of `SpatialAttributes`; the defaults are ELSA's: 337,964 parameters for 10 s.

    Attributes:
      patch: (frames, bands) folded into channels by a linear stem; None for no stem.
      channels: filters of each 3x3 block.
      pools: (frames, bands) of which each block keeps the greatest.
      hears_level: the level of W is a further plane of both CNNs: it tells beginnings, where
        a sound comes straight from its source, from reverberation.
      level_reference_db: the level that is heard as 0, so that the plane tells how loud a recording
        is, and with it, where recordings and sources are calibrated as in rendered scenes, how far
        the source is. None hears levels below the recording's own peak, which no gain changes.
      pooling: 'flatten', a weight for every frame, or 'attention': `heads` learned weightings
        of time, for audio whose events stand anywhere in it.
      heads: of the attention pooling.
      width: of the attention pooling's output.
      dropout: before the MLP.
      hidden: widths inside the MLP.
    """

    patch: tuple[int, int] | None = None
    channels: tuple[int, ...] = (16, 16, 16, 16, 16, 16)
    pools: tuple[tuple[int, int], ...] = ((2, 2),) * 6
    hears_level: bool = False
    level_reference_db: float | None = None
    pooling: Literal["flatten", "attention"] = "flatten"
    heads: int = 16
    width: int = 256
    dropout: float = 0.3
    hidden: tuple[int, ...] = (128, 32)

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.pools) or not self.channels:
            raise InputError(
                f"attributes.pools: {len(self.pools)} for {len(self.channels)} blocks of channels; "
                "give one to each, and at least one block."
            )
        if self.pooling == "attention" and self.width % self.heads:
            raise InputError(
                f"attributes.heads: {self.heads} does not divide the width {self.width}; choose a "
                "divisor."
            )
        if self.level_reference_db is not None and not self.hears_level:
            raise InputError(
                f"attributes.level_reference_db: {self.level_reference_db}, but no level is heard; "
                "set attributes.hears_level True, or this to None."
            )


class AttributeBlock(nn.Module):
    """3x3 convolution, BatchNorm, max pooling, ELU.

    Attributes:
      channels: filters.
      pool: (frames, bands) of which the greatest stays.
      dtype: of the computation.
    """

    channels: int
    pool: tuple[int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l f c"], train: bool) -> Float[Array, "b l2 f2 d"]:
        x = Conv(self.channels, dtype=self.dtype, name="conv")(x)
        norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm")
        return nn.elu(max_pool(norm(x, use_running_average=not train), self.pool))


class IntensityCnn(nn.Module):
    """One of the two CNNs: planes in, one vector out.

    Attributes:
      config: its shape.
      dtype: of the computation.
    """

    config: SpatialAttributesConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, planes: Float[Array, "b l f c"], train: bool) -> Float[Array, "b d"]:
        config = self.config
        x = planes.astype(self.dtype)
        if config.patch is not None:
            # The highest bin of a Fourier transform, which fills no patch, is left out.
            bands = x.shape[2] // config.patch[1] * config.patch[1]
            x = fold_patches(x[:, :, :bands], config.patch)
        x = with_coordinates(x)
        if config.patch is not None:
            x = nn.Dense(config.channels[0], dtype=self.dtype, name="stem")(x)
        block = block_class(AttributeBlock, train_argument=2)
        for i, (channels, pool) in enumerate(zip(config.channels, config.pools, strict=True)):
            x = block(channels, pool, dtype=self.dtype, name=f"block{i}")(x, train)
        if config.pooling == "flatten":
            return x.reshape(x.shape[0], -1)
        x = x.reshape(*x.shape[:2], -1)
        x = nn.elu(nn.Dense(config.width, dtype=self.dtype, name="frame")(x))
        return AttentionPool(config.heads, config.width, dtype=self.dtype, name="pool")(x)


class SpatialAttributes(nn.Module):
    """The learned branch: intensity vectors in, 44 attributes out.

    Attributes:
      config: its shape.
      dtype: of the computation; parameters stay float32.
    """

    config: SpatialAttributesConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, intensity: Intensity, level: Float[Array, "b l f"] | None, train: bool
    ) -> Float[Array, "b 44"]:
        """Attributes of a batch of recordings.

        Args:
          intensity: of the recordings.
          level: the further plane of `config.hears_level`, in units of about 1; else unused.
          train: whether it is trained.

        Returns:
          The attributes as `losses.regression` normalises them, once it is trained to that.
        """
        heard = []
        for name, vectors in (("active", intensity.active), ("reactive", intensity.reactive)):
            planes = vectors
            if self.config.hears_level:
                assert level is not None
                planes = jnp.concatenate([vectors, level[..., None]], axis=-1)
            heard.append(IntensityCnn(self.config, self.dtype, name=name)(planes, train))
        x = jnp.concatenate(heard, axis=-1)
        x = nn.Dropout(self.config.dropout)(x, deterministic=not train)
        for i, width in enumerate(self.config.hidden):
            x = nn.elu(nn.Dense(width, dtype=self.dtype, name=f"hidden{i}")(x))
        return nn.Dense(ATTRIBUTES, dtype=self.dtype, name="out")(x)


def max_pool(x: Float[Array, "b l f c"], pool: tuple[int, int]) -> Float[Array, "b l2 f2 c"]:
    """The greatest of each window of frames and bands; what fills no window is left out.

    Windows do not overlap, so the maximum of their parts does: on CPUs its gradient takes a
    fraction of the time that XLA's windows take. A reduction would divide by how many entries
    equal the greatest, which are none where the compiler computes them twice and rounds otherwise.
    """
    frames, bands = pool
    b, length, width, c = x.shape
    x = x[:, : length // frames * frames, : width // bands * bands]
    x = x.reshape(b, length // frames, frames, width // bands, bands, c)
    x = functools.reduce(jnp.maximum, jnp.split(x, frames, axis=2))
    x = functools.reduce(jnp.maximum, jnp.split(x, bands, axis=4))
    return x.reshape(b, length // frames, width // bands, c)


def with_coordinates(x: Float[Array, "b l f c"]) -> Float[Array, "b l f c2"]:
    """Two more planes: how late and how high a place is, from -1 to 1.

    Reference: Liu et al., CoordConv, arXiv 1807.03247.
    """
    *b, length, bands, _ = x.shape
    late = jnp.linspace(-1, 1, length, dtype=x.dtype)[:, None, None]
    high = jnp.linspace(-1, 1, bands, dtype=x.dtype)[:, None]
    planes = [jnp.broadcast_to(plane, (*b, length, bands, 1)) for plane in (late, high)]
    return jnp.concatenate([x, *planes], axis=-1)


def static_statistics(intensity: Intensity, bands: int) -> Float[Array, "b d"]:
    """What stands in place of the learned branch: means of the intensity vectors.

    Each cell counts by its power, so that the vectors of loud cells decide.

    Args:
      intensity: of the recordings.
      bands: groups of neighbouring frequencies that a mean is taken over, together with all time.

    Returns:
      Active, then reactive means: 6 numbers a band, each at most of length 1 if the vectors are.
      A reactive vector of any length is shortened to 1 at most before.

    Reference: ELSA's ablation names static intensity vectors; these means are our choice.
    """
    peak = intensity.level_db.max(axis=(1, 2), keepdims=True)
    weight = 10 ** ((intensity.level_db - peak) / 10)
    groups = np.zeros((weight.shape[-1], bands), np.float32)
    for band, members in enumerate(np.array_split(np.arange(weight.shape[-1]), bands)):
        groups[members, band] = 1
    reactive = intensity.reactive
    longest = jnp.maximum((reactive**2).sum(axis=-1, keepdims=True), 1.0)
    vectors = jnp.concatenate([intensity.active, reactive * longest**-0.5], axis=-1)
    sums = jnp.einsum("blfv,blf,fg->bgv", vectors, weight, groups)
    total = jnp.einsum("blf,fg->bg", weight, groups)[..., None]
    # Level has a floor, and so has weight: a total is never 0.
    return (sums / total).reshape(vectors.shape[0], -1)
