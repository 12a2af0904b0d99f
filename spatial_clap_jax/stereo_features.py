"""What a network that locates sounds in stereo hears: levels, differences of channels, echoes."""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import (
    SILENT_POWER,
    LogMelConfig,
    StftConfig,
    by_blocks,
    channel_differences,
    check_decibels,
    decibels,
    mel_cross_sums,
    power_of,
    sorted_bins,
    sorted_spectra,
    split_of,
)
from spatial_clap_jax.shapes import MelFrames, Stereo

Kind = Literal["log_mel", "level_difference", "phase_difference", "autocorrelation"]
# Planes of each kind, in their order.
_PLANES: dict[str, tuple[str, ...]] = {
    "log_mel": ("level_left_db", "level_right_db"),
    "level_difference": ("level_difference",),
    "phase_difference": ("phase_cosine", "phase_sine"),
    "autocorrelation": ("autocorrelation",),
}


_BASELINE_LOG_MEL = LogMelConfig(
    sample_rate_hz=24_000, n_fft=1024, hop=480, mels=64, low_hz=0.0, high_hz=12_000.0
)


@dataclasses.dataclass(frozen=True)
class StereoFeaturesConfig:
    """Which planes are made of stereo audio, and how; the defaults are the DCASE 2025 baseline's.

    Attributes:
      mel: bands and frames of all planes.
      win_length: samples of the window, in frames of `mel.n_fft`.
      planes: kinds of planes, in any order: what comes out is in the order of `Kind`.
      range_db: levels this far below the loudest of both channels, or more, count as that.
      lag_n_fft: samples of the frames whose autocorrelation is taken; half of it are lags.

    Reference: DCASE 2025 Challenge, Task 3, baseline (log-mel); Berghi and Jackson's AV-SELD and
      short-time power autocorrelation (sheet); differences between channels are our choice.
    """

    mel: LogMelConfig = _BASELINE_LOG_MEL
    win_length: int = 960
    planes: tuple[Kind, ...] = ("log_mel",)
    range_db: float = 80.0
    lag_n_fft: int = 1024

    def __post_init__(self) -> None:
        check_decibels(self.mel)
        unknown = [kind for kind in self.planes if kind not in get_args(Kind)]
        if unknown or not self.planes or len(set(self.planes)) < len(self.planes):
            raise InputError(
                f"stereo features: planes {self.planes}: give some of "
                f"{', '.join(get_args(Kind))}, each once."
            )
        if not 2 <= self.win_length <= self.mel.n_fft:
            raise InputError(
                f"stereo features: win_length {self.win_length} must lie in 2..{self.mel.n_fft}, "
                "the frame; lower it or raise mel.n_fft."
            )
        if not self.range_db > 0:
            raise InputError(
                f"stereo features: range_db {self.range_db:g} must be above 0, such as 80."
            )
        if self.lag_n_fft % 2 or self.lag_n_fft // 2 < self.mel.mels:
            raise InputError(
                f"stereo features: lag_n_fft {self.lag_n_fft} must be even and hold "
                f"{self.mel.mels} lags or more in its half, as mel.mels; raise it."
            )

    @property
    def plane_names(self) -> tuple[str, ...]:
        """Names of the planes, in their order."""
        return tuple(
            name for kind in get_args(Kind) if kind in self.planes for name in _PLANES[kind]
        )

    def frames(self, samples: int) -> int:
        """Frames of audio of a length."""
        return -(-samples // self.mel.hop)


BASELINE = StereoFeaturesConfig()
# 16 frames a label step: 800 of 5 s.
AV_SELD = StereoFeaturesConfig(
    mel=LogMelConfig(
        sample_rate_hz=24_000, n_fft=512, hop=150, mels=128, low_hz=0.0, high_hz=12_000.0
    ),
    win_length=512,
    planes=("log_mel", "level_difference", "phase_difference", "autocorrelation"),
)


def stereo_features(
    audio: Stereo, config: StereoFeaturesConfig = BASELINE
) -> Float32[Array, "*b l m planes"]:
    """Planes of stereo audio, all over the same frames and rows.

      level_left_db, level_right_db   log-mel of both channels, floored jointly
      level_difference    log10 of P_L / P_R: tens of dB, within +-6
      phase_cosine, phase_sine    of the phase by which L leads R, times their coherence
      autocorrelation     of the frame, lags in the place of bands; see `power_autocorrelation`

    Swapping L and R exchanges the levels, negates level difference and phase sine, and leaves the
    rest. A joint gain moves the levels alone.

    Args:
      audio: stereo samples, L, R, at `config.mel.sample_rate_hz`.
      config: which planes, and how.

    Returns:
      [*b, ceil(t / hop), mels, planes]: the planes of `config.plane_names`. Frame i is centred on
      sample i * hop; the one that would be centred on the end is left out, so that whole label
      steps have equally many frames.

    Reference: DCASE 2025 Challenge, Task 3, baseline; see `StereoFeaturesConfig`.
    """
    count = config.frames(audio.shape[-1])
    planes: list[MelFrames] = []
    if set(config.planes) - {"autocorrelation"}:
        found = mel_cross_sums(audio, config.mel, config.win_length)
        sums = [plane[..., :count, :] for plane in found]
        cosine, sine, level = channel_differences(*sums)
        if "log_mel" in config.planes:
            levels = decibels(jnp.stack(sums[:2], axis=-3), config.mel.amin)
            loudest = levels.max(axis=(-3, -2, -1), keepdims=True)
            levels = jnp.maximum(levels, loudest - config.range_db)
            planes += [levels[..., 0, :, :], levels[..., 1, :, :]]
        if "level_difference" in config.planes:
            planes.append(level)
        if "phase_difference" in config.planes:
            planes += [cosine, sine]
    if "autocorrelation" in config.planes:
        found = power_autocorrelation(audio, config.lag_n_fft, config.mel.hop, config.mel.mels)
        planes.append(found[..., :count, :])
    return jnp.stack(planes, axis=-1)


def power_autocorrelation(
    audio: Stereo, n_fft: int = 1024, hop: int = 150, rows: int = 64
) -> MelFrames:
    """How much of a frame's sound comes again within it: early echoes, which tell the distance.

    The inverse transform of the power spectrum is the autocorrelation; its first half, divided by
    lag 0 and squared, is smoothed by triangles over the lags and read at `rows` places.

    Args:
      audio: stereo samples; the powers of both channels are added.
      n_fft: samples a frame, under a periodic Hann window; half of it are lags.
      hop: samples from one frame to the next.
      rows: places that lags are read at; row i is about lag (i + 1/2) * n_fft / 2 / rows.

    Returns:
      [*b, t // hop + 1, rows], in 0..1; silence gives 0.

    Reference: Berghi and Jackson's short-time power autocorrelation (sheet). The triangles, the sum
      over channels and a lag-0 norm are our choice.

    Example:
      A click and its echo, as loud, 100 samples later make 0.25 at lag 100, spread over rows.
    """
    bins, split = n_fft // 2 + 1, split_of(n_fft)
    to_lags, to_rows = _lag_matrix(n_fft, split), _row_matrix(n_fft // 2, rows)

    def correlations(audio: Stereo, count: int) -> Float32[Array, "*b l m"]:
        parts = sorted_spectra(audio, count, n_fft, hop, n_fft, "hann", bins, split)
        power = jnp.concatenate([power_of(*part) for part in parts], axis=-1).sum(axis=-3)
        total = _product(power, to_lags[:, :1])
        is_sound = total > SILENT_POWER
        # Scaled first, so that squares neither vanish nor overflow.
        share = jnp.where(is_sound, power / jnp.where(is_sound, total, 1.0), 0.0)
        return _product(jnp.square(_product(share, to_lags)), to_rows)

    config = StftConfig(n_fft=n_fft, hop=hop)
    return by_blocks(correlations, audio, config)


def _product(
    values: Float32[Array, "*b l i"], matrix: Float32[np.ndarray, "i o"]
) -> Float32[Array, "*b l o"]:
    return jnp.matmul(values, matrix, precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=8)
def _lag_matrix(n_fft: int, split: int) -> Float32[np.ndarray, "f lags"]:
    """From a power spectrum, its bins as `sorted_spectra` sorts them, to its first lags."""
    bins = np.concatenate(sorted_bins(n_fft // 2 + 1, split))
    # All bins but the first and the last stand for two.
    twice = np.where(bins % (n_fft // 2) == 0, 1, 2) / n_fft
    turns = np.outer(bins, np.arange(n_fft // 2)) % n_fft / n_fft
    return (twice[:, None] * np.cos(2 * np.pi * turns)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _row_matrix(lags: int, rows: int) -> Float32[np.ndarray, "lags rows"]:
    """Triangles of sum one, each from the middle of the row before to that of the next."""
    step = lags / rows
    away = np.abs(np.arange(lags)[:, None] - (np.arange(rows) + 0.5) * step) / step
    triangles = np.maximum(1 - away, 0)
    return (triangles / triangles.sum(axis=0)).astype(np.float32)
