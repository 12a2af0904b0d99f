"""The content side that systems share: either encoder, its levels, and how they are augmented."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax import features
from spatial_clap_jax.models.cnn import Cnn, CnnConfig
from spatial_clap_jax.models.htsat import Htsat, HtsatConfig

# Levels reach this far below the loudest cell, and span 4 units.
_DEPTH_DB = 80.0
_DB_PER_UNIT = _DEPTH_DB / 4


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Bands of time and frequency that are hidden from the content encoder in training.

    The spatial encoder is not masked: tying contents to places is what is hard to learn, and
    it is the less well learned the less both can be seen together.

    Attributes:
      time_masks: bands of time.
      time_width: their greatest width in frames.
      frequency_masks: bands of frequency.
      frequency_width: their greatest width in mel bands.
    """

    time_masks: int = 2
    time_width: int = 64
    frequency_masks: int = 2
    frequency_width: int = 8


@dataclass(frozen=True)
class Augmentation:
    """What is done to mel levels in training.

    Attributes:
      masks: bands that are hidden from the content encoder; None for none.
      equaliser_db: spread of the random smooth equaliser; 0 for none.
      draw: gives a fresh key with each call; None in evaluation, where nothing is done.
    """

    masks: SpecAugmentConfig | None
    equaliser_db: float
    draw: Callable[[], jax.Array] | None

    def equalised(self, level: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
        """Levels of `below_peak`, of each example with a curve of its own."""
        if self.draw is None or not self.equaliser_db:
            return level
        b, _, m = level.shape
        spread = self.equaliser_db / _DB_PER_UNIT
        return level + random_equaliser(self.draw(), b, m, spread)[:, None, :]

    def masked(self, level: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
        """Levels in any unit, with bands at each example's mean."""
        masks = self.masks
        if self.draw is None or masks is None:
            return level
        mean = level.mean(axis=(1, 2), keepdims=True)
        hidden = features.spec_augment(
            self.draw(),
            level - mean,
            masks.time_masks,
            masks.time_width,
            masks.frequency_masks,
            masks.frequency_width,
        )
        return hidden + mean


def content_encoder(config: HtsatConfig | CnnConfig, dtype: DTypeLike) -> Htsat | Cnn:
    """The encoder of a shape, not yet named."""
    return Htsat(config, dtype) if isinstance(config, HtsatConfig) else Cnn(config, dtype)


def encode_content(
    encoder: Htsat | Cnn, log_mel: Float[Array, "b l m"], augmentation: Augmentation, train: bool
) -> Float[Array, "b d"]:
    """What sounds: HTSAT takes levels in dB, a CNN those below the peak.

    Args:
      encoder: of the content.
      log_mel: in dB.
      augmentation: what is done to them in training.
      train: whether the encoder is trained.
    """
    if isinstance(encoder, Htsat):
        return encoder(augmentation.masked(log_mel), train).pooled
    level = augmentation.equalised(below_peak(log_mel))
    return encoder(augmentation.masked(level), train)


def below_peak(level_db: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
    """Levels relative to each example's loudest cell, floored 80 dB below, as [-2, 2].

    A joint gain then changes nothing: how loud a recording was made is neither content
    nor place.
    """
    peak = level_db.max(axis=(1, 2), keepdims=True)
    return jnp.maximum(level_db - peak, -_DEPTH_DB) / _DB_PER_UNIT + 2


def random_equaliser(
    rng: jax.Array, examples: int, mels: int, spread: float, order: int = 4
) -> Float[Array, "b m"]:
    """Smooth random curves over mel bands, sums of the first cosines.

    Args:
      rng: key.
      examples: curves to draw.
      mels: bands.
      spread: standard deviation of the curve, in the units it will be added to.
      order: cosines; the highest has `order` half periods over the bands.

    Returns:
      One curve an example. All channels share it, so level differences stay.

    Reference: our choice.
    """
    band = (jnp.arange(mels) + 0.5) / mels
    cosines = jnp.cos(jnp.pi * band * jnp.arange(1, order + 1)[:, None])
    return jax.random.normal(rng, (examples, order)) @ cosines * (spread * (2 / order) ** 0.5)
