"""How sound energy flows through a point of an ambisonic field: what tells where it comes from."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from spatial_clap_jax.features import (
    LAION_CLAP_LOG_MEL,
    SILENT_POWER,
    LogMelConfig,
    Parts,
    StftConfig,
    by_blocks,
    check_decibels,
    decibels,
    mel_spectra,
    mel_sums,
    power_of,
    stft,
)
from spatial_clap_jax.shapes import Foa

# Intensities below this are no direction, where the four channels together have a mean power of 1.
_SILENT_INTENSITY = 1e-6
_FOA_AXES = (3, 1, 2)  # X, Y, Z among W, Y, Z, X


class Intensity(NamedTuple):
    """How sound energy flows through a point, in cells of time and frequency.

    Attributes:
      active: what arrives, along x ahead, y left, z up; it points at the source.
      reactive: what swings to and fro, along the same axes.
      level_db: power of W, not normalised.
    """

    active: Float32[Array, "*b l f 3"]
    reactive: Float32[Array, "*b l f 3"]
    level_db: Float32[Array, "*b l f"]


def intensity_vectors(
    foa: Foa,
    config: StftConfig | LogMelConfig,
    scaled_by: Literal["active", "energy"] = "active",
) -> Intensity:
    """Active and reactive intensity of a sound field, without its loudness.

    With V the spectra of X, Y, Z: Re(conj(W) V) and Im(conj(W) V), both divided by one length:

      active   ||Re(conj(W) V)||: active vectors are unit vectors, reactive ones have any length
      energy   (|W|^2 + |V|^2) / 2: the two lie in the unit ball, and the active one is as short
               as the field is diffuse

    Both are 0 where that length is 1e-6 or less, of a recording whose four channels have a mean
    power of 1: the limit is relative to the whole recording, so that a joint gain changes
    nothing. A plane wave has a unit active vector towards its source and no reactive one; one
    signal in all four channels points along (1, 1, 1); silence gives zeros.

    Args:
      foa: samples of W, Y, Z, X (ACN order, SN3D) at `config.sample_rate_hz`.
      config: a cell for each bin of a spectrum, or sums over mel bands.
      scaled_by: the length that both are divided by.

    Returns:
      Vectors [*b, t // hop + 1, bins or mels, 3].

    Reference: ELSA (arXiv 2409.11369) for 'active'; directional audio coding (Pulkki 2007) for
      'energy'. The relative limit is our choice.

    Example:
      >>> left = jnp.stack([x, x, 0 * x, 0 * x])              # a plane wave from +90 degrees
      >>> intensity_vectors(left, StftConfig()).active[5, 9]
      Array([0., 1., 0.], dtype=float32)
    """
    audio = jnp.asarray(foa, jnp.float32)
    if isinstance(config, LogMelConfig):
        check_decibels(config)
        sums, amin = _mel_flows(audio, config), config.amin
    else:
        sums, amin = _bin_flows(audio, config), LAION_CLAP_LOG_MEL.amin
    power_mono, power_axes = sums[..., 0, :, :], sums[..., 1, :, :]
    loudness = (audio**2).mean(axis=(-2, -1))[..., None, None, None]
    is_heard = loudness > SILENT_POWER
    per_power = jnp.where(is_heard, 1 / jnp.where(is_heard, loudness, 1.0), 0.0)
    active, reactive = (
        jnp.moveaxis(flow, -3, -1) * per_power
        for flow in (sums[..., 2:5, :, :], sums[..., 5:8, :, :])
    )
    if scaled_by == "active":
        squared = (active**2).sum(axis=-1, keepdims=True)
    else:
        squared = ((power_mono + power_axes)[..., None] * (per_power / 2)) ** 2
    is_sound = squared > _SILENT_INTENSITY**2
    # The root of a zero has no gradient, so its argument is never one.
    scale = jnp.where(is_sound, jax.lax.rsqrt(jnp.where(is_sound, squared, 1.0)), 0.0)
    return Intensity(active * scale, reactive * scale, decibels(power_mono, amin))


def _flows(parts: Sequence[Parts]) -> list[Float32[Array, "*flows l _"]]:
    """|W|^2, |V|^2, Re(conj(W) V) and Im(conj(W) V) of the parts of spectra of W, Y, Z, X."""
    flows = []
    for real, imaginary in parts:
        mono_re, mono_im = real[..., :1, :, :], imaginary[..., :1, :, :]
        axes_re, axes_im = (x[..., np.array(_FOA_AXES), :, :] for x in (real, imaginary))
        of_axes = power_of(axes_re, axes_im).sum(axis=-3, keepdims=True)
        cosines = mono_re * axes_re + mono_im * axes_im
        sines = mono_re * axes_im - mono_im * axes_re
        flows.append(
            jnp.concatenate([power_of(mono_re, mono_im), of_axes, cosines, sines], axis=-3)
        )
    return flows


def _mel_flows(audio: Foa, config: LogMelConfig) -> Float32[Array, "*b 8 l m"]:
    return by_blocks(
        lambda audio, count: mel_sums(_flows(mel_spectra(audio, count, config)), config),
        audio,
        config,
    )


def _bin_flows(audio: Foa, config: StftConfig) -> Float32[Array, "*b 8 l f"]:
    spectrum = stft(audio, config.n_fft, config.hop)
    return _flows([(spectrum.real, spectrum.imag)])[0]
