"""Noise of the surroundings: the same power from everywhere, other in each channel."""

import numpy as np
from jaxtyping import Float32


def pink_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32[np.ndarray, "*s"]:
    """Gaussian noise whose power falls by 3 dB an octave, of mean power one.

    Args:
      rng: source of the draws.
      shape: of the result; its last axis is time, and rows are independent of each other.

    Returns:
      The noise.

    Reference: our choice; a diffuse field in which two microphones far apart hear different noise.
    """
    *rows, samples = shape
    bins = samples // 2 + 1
    spectrum = rng.standard_normal((*rows, bins)) + 1j * rng.standard_normal((*rows, bins))
    spectrum /= np.sqrt(np.maximum(np.arange(bins), 1))
    # Neither a constant nor less than a period in the recording is a sound.
    spectrum[..., 0] = 0
    noise = np.fft.irfft(spectrum, samples)
    power = np.mean(noise**2, axis=-1, keepdims=True)
    return (noise / np.sqrt(np.where(power > 0, power, 1.0))).astype(np.float32)


def with_noise(
    audio: Float32[np.ndarray, "*b c t"], snr_db: float, rng: np.random.Generator
) -> Float32[np.ndarray, "*b c t"]:
    """Audio in pink noise, as strong in every channel.

    Args:
      audio: recordings; level differences between their channels stay.
      snr_db: power of a recording, the mean of its channels, over that of the noise in each.
      rng: source of the noise.

    Returns:
      The sums.

    Example:
      At 0 dB the noise in each channel has the mean power of the recording's channels.
    """
    power = np.mean(audio.astype(np.float64) ** 2, axis=(-2, -1), keepdims=True)
    level = np.sqrt(power * 10 ** (-snr_db / 10)).astype(np.float32)
    return audio + level * pink_noise(rng, audio.shape)
