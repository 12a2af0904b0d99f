"""Reverberation time and direct-to-reverberant ratio of a response, in third-octave bands."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Float32
from scipy import fft, signal

from spatial_clap_jax.acoustics.rirs import measure_t60_s

# Nominal names; the exact centres are 1000 Hz times powers of 10^(1/10) (IEC 61260-1, base ten).
BANDS_HZ = (
    *(63.0, 80.0, 100.0, 125.0, 160.0, 200.0, 250.0, 315.0, 400.0, 500.0),
    *(630.0, 800.0, 1000.0, 1250.0, 1600.0, 2000.0, 2500.0, 3150.0, 4000.0, 5000.0),
)
_CENTERS_HZ = 1000.0 * 10.0 ** (np.arange(-12, 8) / 10)
_HALF_BAND = 10.0**0.05
# Least product of bandwidth and reverberation time where a filter's own ringing does not matter.
_LEAST_BANDWIDTH_TIME = 4.0
# What arrives within this time of the direct sound counts to it.
_DIRECT_S = 0.0025


def t30_bands_s(rir: Float[np.ndarray, "r"], sample_rate_hz: int) -> Float32[np.ndarray, "bands"]:
    """Reverberation time in each of `BANDS_HZ`.

    Butterworth band-passes (order 6) run backwards in time, so that they ring into what comes
    before; then `measure_t60_s`.

    Args:
      rir: impulse response of an omnidirectional microphone.
      sample_rate_hz: rate of `rir`.

    Returns:
      Seconds; NaN where a band reaches half the sample rate, nothing decays, or bandwidth times
      reverberation time is below 4.

    Reference: ISO 3382-2; Jacobsen and Rindel 1987 (time reversal).
    """
    backwards = rir[::-1].astype(np.float64)
    times_s = np.full(len(BANDS_HZ), np.nan, np.float32)
    for band, sections in enumerate(_filters(sample_rate_hz)):
        filtered = np.asarray(signal.sosfilt(sections, backwards))
        time_s = measure_t60_s(filtered[::-1], sample_rate_hz)
        bandwidth_hz = _CENTERS_HZ[band] * (_HALF_BAND - 1 / _HALF_BAND)
        if time_s * bandwidth_hz >= _LEAST_BANDWIDTH_TIME:
            times_s[band] = time_s
    return times_s


def drr_bands_db(
    rir: Float[np.ndarray, "r"], sample_rate_hz: int, arrival_s: float
) -> Float32[np.ndarray, "bands"]:
    """Energy of the direct sound over that of all that follows, in each of `BANDS_HZ`.

    The response is cut 2.5 ms after the direct sound arrives; each part's spectrum is weighted
    with the bands' power responses, so that no filter smears one part into the other.

    Args:
      rir: impulse response of an omnidirectional microphone.
      sample_rate_hz: rate of `rir`.
      arrival_s: when the direct sound arrives.

    Returns:
      dB; NaN where a band reaches half the sample rate or one part has no energy.

    Reference: ISO 3382-1 (the ratio); window and bands are our choice.
    """
    cut = round((arrival_s + _DIRECT_S) * sample_rate_hz)
    parts = np.zeros((2, len(rir)))
    parts[0, :cut], parts[1, cut:] = rir[:cut], rir[cut:]
    length = fft.next_fast_len(len(rir), real=True)
    spectra = np.square(np.abs(np.asarray(fft.rfft(parts, length))))
    direct, late = spectra @ _power_responses(sample_rate_hz, length).T
    levels_db = np.full(len(BANDS_HZ), np.nan, np.float32)
    measured = np.flatnonzero((direct > 0) & (late > 0))
    levels_db[measured] = 10 * np.log10(direct[measured] / late[measured])
    return levels_db


@functools.lru_cache(maxsize=4)
def _power_responses(sample_rate_hz: int, length: int) -> Float[np.ndarray, "bands bins"]:
    """Power responses of the band-passes, Butterworth of order 6, at the bins of a spectrum."""
    frequency_hz = np.fft.rfftfreq(length, 1 / sample_rate_hz)[1:]
    centers_hz = _CENTERS_HZ[: len(_filters(sample_rate_hz)), None]
    detuning = (frequency_hz / centers_hz - centers_hz / frequency_hz) / (
        _HALF_BAND - 1 / _HALF_BAND
    )
    return np.pad(1 / (1 + detuning**6), ((0, 0), (1, 0)))


@functools.lru_cache
def _filters(sample_rate_hz: int) -> tuple[np.ndarray, ...]:
    """Sections of the band-passes below half the sample rate."""
    edges_hz = np.stack([_CENTERS_HZ / _HALF_BAND, _CENTERS_HZ * _HALF_BAND], axis=1)
    return tuple(
        np.asarray(signal.butter(3, edges, "bandpass", fs=sample_rate_hz, output="sos"))
        for edges in edges_hz
        if edges[1] < sample_rate_hz / 2
    )
