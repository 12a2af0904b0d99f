"""A spatial encoder of cross-correlations, which hears no levels of bands: the baseline of CASE."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig, mel_filterbank
from spatial_clap_jax.models.layers import gelu


@dataclass(frozen=True)
class PlainSpatialConfig:
    """Shape of `PlainSpatial`.

    Attributes:
      longest_lag_s: greatest time between the two channels that is looked for.
      lags: number of times between its negative and itself.
      width: of the result, and of the layer before it.
      peaks_above: where given, only the lags are heard at which the correlation of three frames has
        a peak above it at any time, all at one height: neither how lasting a sound is, nor at which
        frequencies, nor how loud on which side.
    """

    longest_lag_s: float = 0.7e-3
    lags: int = 45
    width: int = 384
    peaks_above: float | None = None

    def __post_init__(self) -> None:
        if self.peaks_above is not None and not 0.0 < self.peaks_above < 1.0:
            raise InputError(
                f"peaks_above {self.peaks_above}: must lie between 0, no coherence, and 1, that of "
                "one pure delay; give 0.3, or none to hear the whole correlation."
            )


def lag_matrix(config: PlainSpatialConfig, mel: LogMelConfig) -> Float32[np.ndarray, "2*m k"]:
    """Turns real and imaginary parts of mel bands' cross-spectra into a cross-correlation.

    Args:
      config: the lags.
      mel: the bands, each taken at the centre of gravity of its filter.

    Returns:
      Cosines, then sines, over the number of bands: a source that reaches the left microphone
      t seconds before the right one gives the highest sum at lag t.
    """
    filters = mel_filterbank(
        mel.sample_rate_hz, mel.n_fft, mel.mels, mel.low_hz, mel.high_hz, mel.norm, mel.scale
    )
    frequency = np.arange(filters.shape[0]) * mel.sample_rate_hz / mel.n_fft
    centre = frequency @ filters / np.maximum(filters.sum(axis=0), 1e-9)
    lag_s = np.linspace(-config.longest_lag_s, config.longest_lag_s, config.lags)
    phase = 2 * np.pi * centre[:, None] * lag_s
    return (np.concatenate([np.cos(phase), np.sin(phase)]) / mel.mels).astype(np.float32)


def peaks_of(
    correlation: Float[Array, "b l k"], threshold: float, frames: int = 3
) -> Float32[Array, "b k"]:
    """Bumps of height one and of a standard deviation of one lag, where there are peaks.

    Args:
      correlation: of each frame, at most 1.
      threshold: height that a peak must pass in the mean of neighbouring frames, at any time.
      frames: that are averaged.

    Returns:
      Between 0 and 1; 1 at the peaks.

    Reference: our choice.
    """
    window = (min(frames, correlation.shape[1]),)
    highest = nn.avg_pool(correlation, window, strides=(1,)).max(axis=1)
    padded = jnp.pad(highest, ((0, 0), (1, 1)), constant_values=-jnp.inf)
    is_peak = (highest >= padded[:, :-2]) & (highest > padded[:, 2:]) & (highest > threshold)
    lag = np.arange(correlation.shape[-1])
    bump = np.exp(-0.5 * np.square(lag[:, None] - lag)).astype(np.float32)
    # Of two that are near each other the higher one, so that no height tells of a neighbour.
    return jnp.where(is_peak[:, :, None], bump, 0.0).max(axis=1)


class PlainSpatial(nn.Module):
    """The long-term cross-correlation and level difference of a recording, and an MLP.

    Everything is averaged over time before a weight is learned, the levels of bands are not heard,
    and their level difference is averaged over frequency. The cross-correlation is no average over
    frequency: it holds the bands' coherence and phase, smoothed over about 1 / (2 longest_lag_s),
    0.7 kHz. Of 45 lags and 64 mel bands up to 8 kHz about 26 are numbers of their own (singular
    values of `lag_matrix` above a hundredth of the greatest). So it is not deaf to what sounds
    where: how high a peak is tells how lasting the sound at that place is, and its shape, at which
    frequencies it sounds (docs/findings.md). With `peaks_above` it hears neither; what is left is
    whether a sound gives a peak at all.

    Attributes:
      config: its shape.
      mel: front end of the planes.
      dtype: of the computation; parameters stay float32.

    Reference: our choice.
    """

    config: PlainSpatialConfig
    mel: LogMelConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, planes: Float[Array, "b l m 4"], train: bool) -> Float[Array, "b d"]:
        """Takes the planes of `features.mel_cross`; the first, the level, is not heard."""
        lags = lag_matrix(self.config, self.mel)
        if self.config.peaks_above is None:
            mean = planes[..., 1:].mean(axis=1)
            correlation = jnp.concatenate([mean[..., 0], mean[..., 1]], axis=-1) @ lags
            level_difference = mean[..., 2].mean(axis=1, keepdims=True)
            x = jnp.concatenate([correlation, level_difference], axis=-1)
        else:
            cross = jnp.concatenate([planes[..., 1], planes[..., 2]], axis=-1)
            x = peaks_of(cross @ lags, self.config.peaks_above)
        x = x.astype(self.dtype)
        x = gelu(nn.Dense(self.config.width, dtype=self.dtype, name="hidden")(x))
        return nn.Dense(self.config.width, dtype=self.dtype, name="out")(x)
