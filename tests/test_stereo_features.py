"""Planes of stereo audio: librosa, NumPy in double precision, and laws of swapped channels."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.stereo_features import (
    AV_SELD,
    BASELINE,
    StereoFeaturesConfig,
    power_autocorrelation,
    stereo_features,
)

ALL = StereoFeaturesConfig(
    mel=LogMelConfig(24_000, n_fft=256, hop=160, mels=16, low_hz=0.0, high_hz=12_000.0),
    win_length=200,
    planes=("autocorrelation", "phase_difference", "log_mel", "level_difference"),
    lag_n_fft=256,
)
planes_of = jax.jit(stereo_features, static_argnums=1)
correlation_of = jax.jit(power_autocorrelation, static_argnums=(1, 2, 3))


@pytest.fixture
def stereo():
    """Noise that is louder and earlier on the left, [b, 2, t]."""
    left = np.random.default_rng(0).standard_normal((2, 4800))
    right = 0.4 * np.roll(left, 2, axis=-1) + 0.1 * np.random.default_rng(1).standard_normal(4800)
    return np.stack([left, right], axis=1).astype(np.float32)


def test_log_mel_is_librosas_with_a_joint_floor():
    time_s = np.arange(9600) / 24_000
    quiet = 1e-4 * np.sin(2 * np.pi * 3000 * time_s)
    audio = np.stack([np.random.default_rng(0).standard_normal(9600), quiet])
    ours = np.asarray(planes_of(audio.astype(np.float32), BASELINE))
    power = librosa.feature.melspectrogram(
        y=audio,
        sr=24_000,
        n_fft=1024,
        hop_length=480,
        win_length=960,
        n_mels=64,
        pad_mode="reflect",
    )
    # One array, so one floor for both channels; the last frame is centred on the end.
    theirs = librosa.power_to_db(power[..., :-1], top_db=80.0)
    assert ours.shape == (20, 64, 2)
    np.testing.assert_allclose(ours, theirs.transpose(2, 1, 0), atol=2e-3)
    assert ours[..., 1].min() == pytest.approx(ours.max() - 80, abs=1e-4)


def test_differences_are_numpys(stereo):
    audio = stereo.astype(np.float64)
    names = ALL.plane_names
    ours = np.asarray(planes_of(stereo, ALL))
    spectrum = librosa.stft(audio, n_fft=256, hop_length=160, win_length=200, pad_mode="reflect")
    bands = librosa.filters.mel(sr=24_000, n_fft=256, n_mels=16, fmin=0.0, fmax=12_000.0)
    left, right = spectrum[:, 0], spectrum[:, 1]

    def summed(values):
        return np.einsum("mf,bfl->blm", bands, values)[:, :-1]

    power_l, power_r = summed(np.abs(left) ** 2), summed(np.abs(right) ** 2)
    cross = (summed((left * right.conj()).real), summed((left * right.conj()).imag))
    expected = {
        "level_difference": np.log10(power_l / power_r),
        "phase_cosine": cross[0] / np.sqrt(power_l * power_r),
        "phase_sine": cross[1] / np.sqrt(power_l * power_r),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(ours[..., names.index(name)], values, atol=2e-4)


def test_autocorrelation_is_numpys(stereo):
    ours = np.asarray(correlation_of(stereo, 256, 160, 16))
    spectrum = librosa.stft(
        stereo.astype(np.float64), n_fft=256, hop_length=160, pad_mode="reflect"
    )
    power = (np.abs(spectrum) ** 2).sum(axis=1)
    lags = np.fft.irfft(power, axis=1)[:, :128]
    squared = (lags / lags[:, :1]) ** 2
    rows = np.zeros((2, 16, squared.shape[-1]))
    for row in range(16):
        weights = np.clip(1 - np.abs(np.arange(128) - (row + 0.5) * 8) / 8, 0, None)
        rows[:, row] = np.einsum("f,bfl->bl", weights / weights.sum(), squared)
    np.testing.assert_allclose(ours, rows.swapaxes(1, 2), atol=1e-5)


def test_swapped_channels_mirror_the_differences(stereo):
    names = list(ALL.plane_names)
    straight = dict(zip(names, np.moveaxis(planes_of(stereo, ALL), -1, 0), strict=True))
    swapped = dict(zip(names, np.moveaxis(planes_of(stereo[:, ::-1], ALL), -1, 0), strict=True))
    assert np.abs(straight["level_difference"]).mean() > 0.1
    assert np.abs(straight["phase_sine"]).mean() > 0.1
    np.testing.assert_array_equal(swapped["level_difference"], -straight["level_difference"])
    # A fused product and sum rounds one of its two products less than the other.
    np.testing.assert_allclose(swapped["phase_sine"], -straight["phase_sine"], atol=3e-7)
    np.testing.assert_allclose(swapped["phase_cosine"], straight["phase_cosine"], atol=3e-7)
    np.testing.assert_array_equal(swapped["level_left_db"], straight["level_right_db"])
    np.testing.assert_array_equal(swapped["autocorrelation"], straight["autocorrelation"])


def test_a_joint_gain_moves_the_levels_alone(stereo):
    straight, louder = planes_of(stereo, ALL), planes_of(8 * stereo, ALL)
    np.testing.assert_allclose(louder[..., :2] - straight[..., :2], 20 * np.log10(8), atol=1e-4)
    np.testing.assert_allclose(louder[..., 2:], straight[..., 2:], atol=1e-6)


@pytest.mark.parametrize("delay", [76, 204])
def test_an_echo_shows_at_its_lag(delay):
    # White noise, so that nothing but the echo comes again.
    click = np.random.default_rng(0).standard_normal(24_000 + delay)
    audio = np.stack([click[delay:] + 0.8 * click[:-delay]] * 2).astype(np.float32)
    mean = np.asarray(correlation_of(audio, 1024, 150, 64)).mean(axis=0)
    assert mean[8:].argmax() == delay // 8 - 8
    assert mean[delay // 8] > 4 * np.median(mean[8:])


def test_silence_gives_finite_planes_and_gradients():
    half = np.zeros((2, 2400), np.float32)
    half[:, :1000] = np.random.default_rng(0).standard_normal((2, 1000))
    mute = half * np.float32([[1], [0]])

    @jax.jit
    def found_and_gradient(audio):
        def total(audio):
            found = stereo_features(audio, ALL)
            return (0.3 * found).sum(), found

        (_, found), gradient = jax.value_and_grad(total, has_aux=True)(audio)
        return found, gradient

    for audio in (np.zeros_like(half), half, mute):
        found, gradient = found_and_gradient(jnp.asarray(audio))
        assert np.isfinite(found).all()
        assert np.isfinite(gradient).all()
    found, _ = found_and_gradient(jnp.zeros_like(half))
    np.testing.assert_array_equal(found[..., 2:], 0)


@pytest.mark.parametrize(("config", "frames"), [(BASELINE, 250), (AV_SELD, 800)])
def test_frames_are_whole_label_steps(config, frames):
    shape = jax.eval_shape(lambda x: stereo_features(x, config), jnp.zeros((3, 2, 120_000))).shape
    assert shape == (3, frames, config.mel.mels, len(config.plane_names))
    assert config.frames(120_000) == frames
    assert frames % 50 == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planes": ()}, r"planes \(\): give some of log_mel, level_difference"),
        ({"planes": ("log_mel", "log_mel")}, "each once"),
        ({"win_length": 1025}, r"win_length 1025 must lie in 2\.\.1024"),
        ({"range_db": 0.0}, "range_db 0 must be above 0"),
        ({"lag_n_fft": 100}, "lag_n_fft 100 must be even and hold 64 lags"),
        ({"mel": LogMelConfig(level="natural")}, "set level 'decibels'"),
    ],
)
def test_wrong_configs_are_told(changes, message):
    with pytest.raises(InputError, match=message):
        StereoFeaturesConfig(**changes)
