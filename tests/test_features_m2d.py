"""M2D's front end against librosa in float64, and what its natural logarithms are of."""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import M2D_LOG_MEL
from spatial_clap_jax.intensity import intensity_vectors

RATE_HZ = M2D_LOG_MEL.sample_rate_hz
_EPSILON = 1.1920929e-07


@functools.cache
def _ours():
    return jax.jit(lambda audio: features.log_mel(audio, M2D_LOG_MEL))


def _theirs(audio: np.ndarray) -> np.ndarray:
    mel = librosa.feature.melspectrogram(
        y=audio.astype(np.float64),
        sr=16_000,
        n_fft=400,
        win_length=400,
        hop_length=160,
        window="hann",
        center=True,
        pad_mode="reflect",
        power=2.0,
        n_mels=80,
        fmin=50.0,
        fmax=8000.0,
        htk=False,
        norm="slaney",
        dtype=np.float64,
    )
    return np.log(mel + _EPSILON).T


def _clip(kind: str, samples: int) -> np.ndarray:
    rng, time_s = np.random.default_rng(0), np.arange(samples) / RATE_HZ
    sounds = {
        "noise": 0.1 * rng.standard_normal(samples),
        "tone": np.sin(2 * np.pi * 1234.5 * time_s),
        # Far below the loudest cell, most bands hold next to nothing.
        "tone in a quiet room": np.sin(2 * np.pi * 440 * time_s) + 1e-5 * rng.normal(size=samples),
        "burst": np.where(time_s < 0.2, rng.standard_normal(samples), 0.0),
    }
    return sounds[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "tone", "tone in a quiet room", "burst"])
def test_it_is_librosas(kind):
    audio = _clip(kind, 16_000)
    ours = _ours()(audio)
    assert ours.shape == (101, 80)
    np.testing.assert_allclose(ours, _theirs(audio), atol=1e-3)


@pytest.mark.parametrize(("amplitude", "bound"), [(1.0, 1e-2), (0.5, 5e-3), (0.1, 1e-3)])
def test_tones_over_the_whole_range(amplitude, bound):
    """In bands far below a loud pure tone products in float32 leave rounding noise."""
    time_s = np.arange(8_000) / RATE_HZ
    for frequency_hz in (*np.geomspace(50, 7900, 40), 4405.7, 4503.4, 6848.2):
        tone = (amplitude * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)
        ours, theirs = np.asarray(_ours()(tone)), _theirs(tone)
        np.testing.assert_allclose(ours, theirs, atol=bound, err_msg=f"{frequency_hz} Hz")
        # 60 dB are 13.8 in natural logarithms.
        near = theirs > theirs.max(axis=1, keepdims=True) - 13.8
        np.testing.assert_allclose(ours[near], theirs[near], atol=5e-4, err_msg=f"{frequency_hz}")


def test_ten_seconds_are_1001_frames_and_whatever_is_left_over_counts():
    audio = _clip("noise", 160_000)
    assert jax.eval_shape(_ours(), audio).shape == (1001, 80)
    np.testing.assert_allclose(_ours()(audio[:4001]), _theirs(audio[:4001]), atol=1e-3)


def test_silence_is_the_logarithm_of_the_offset():
    levels = _ours()(np.zeros(1600, np.float32))
    np.testing.assert_allclose(levels, np.log(_EPSILON), rtol=1e-6)


@pytest.mark.parametrize(
    "front_end",
    [
        lambda audio: features.mel_cross(audio[:2], M2D_LOG_MEL),
        lambda audio: intensity_vectors(audio, M2D_LOG_MEL),
    ],
)
def test_front_ends_of_decibels_refuse_natural_logarithms(front_end):
    with pytest.raises(InputError, match=r"log-mel: level 'natural', but .* in decibels; set lev"):
        jax.eval_shape(front_end, jnp.zeros((4, 1600)))
