"""Front ends against librosa and scipy, and the laws that make them spatial."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig

SMALL = LogMelConfig(sample_rate_hz=16_000, n_fft=512, hop=320, mels=32, high_hz=8_000.0)


@pytest.fixture
def noise():
    """Two stereo examples of noise, [b, c, t]."""
    return np.random.default_rng(0).standard_normal((2, 2, 4001)).astype(np.float32)


cross = jax.jit(features.mel_cross, static_argnums=1)
cross_and_mono = jax.jit(features.mel_cross_and_mono, static_argnums=1)
log_mel = jax.jit(features.log_mel, static_argnums=1)
planes_of = jax.jit(features.magnitude_phase, static_argnums=(1, 2))
resample_poly = jax.jit(features.resample_poly, static_argnums=(1, 2))


@pytest.mark.parametrize(
    ("n_fft", "hop", "win_length", "window", "centre", "pad_mode"),
    [
        (512, 320, None, "hann", True, "reflect"),
        (1024, 480, 800, "hann", True, "reflect"),
        (256, 64, None, "hamming", True, "constant"),
        (256, 300, None, "hann", False, "reflect"),
    ],
)
def test_stft_is_librosas(noise, n_fft, hop, win_length, window, centre, pad_mode):
    stft = jax.jit(features.stft, static_argnums=range(1, 7))
    ours = stft(noise, n_fft, hop, win_length, window, centre, pad_mode)
    theirs = librosa.stft(
        noise.astype(np.float64),
        n_fft=n_fft,
        hop_length=hop,
        win_length=win_length,
        window=window,
        center=centre,
        pad_mode=pad_mode,
    )
    assert ours.dtype == jnp.complex64
    np.testing.assert_allclose(ours, np.swapaxes(theirs, -1, -2), atol=2e-6 * abs(theirs).max())


def test_stft_of_an_impulse_by_hand():
    # Frames are centred on samples 0 and 4; the window is 0, 1/2, 1, 1/2, and the impulse
    # stands in the middle of the first: the transform of 0, 0, 1, 0.
    spectrum = features.stft(jnp.array([1.0, 0, 0, 0, 0]), n_fft=4, hop=4)
    np.testing.assert_allclose(spectrum, [[1, -1, 1], [0, 0, 0]], atol=1e-7)


@pytest.mark.parametrize("samples", [1, 7, 319, 320, 321, 511, 512, 640, 3199, 3200])
def test_every_front_end_gives_a_frame_a_hop_and_one(samples):
    stereo = jax.ShapeDtypeStruct((3, 2, samples), jnp.float32)
    frames = samples // 320 + 1

    def shape(f):
        return jax.eval_shape(f, stereo).shape

    assert shape(lambda a: features.stft(a, 512, 320)) == (3, 2, frames, 257)
    assert shape(lambda a: features.log_mel(a, SMALL)) == (3, 2, frames, 32)
    assert shape(lambda a: features.magnitude_phase(a, 512, 320)) == (3, frames, 257, 4)
    assert shape(lambda a: features.mel_cross(a, SMALL)) == (3, frames, 32, 4)


@pytest.mark.parametrize("shape", [(900,), (5, 900), (2, 1, 4, 900)])
def test_any_leading_axes(shape):
    audio = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    flat = log_mel(audio.reshape(-1, 900), SMALL)
    np.testing.assert_allclose(log_mel(audio, SMALL), flat.reshape(*shape[:-1], 3, 32), atol=1e-4)


def test_half_precision_audio_is_computed_in_float32(noise):
    coarse = jnp.asarray(noise, jnp.bfloat16)
    np.testing.assert_array_equal(cross(coarse, SMALL), cross(coarse.astype(jnp.float32), SMALL))
    assert planes_of(coarse).dtype == jnp.float32


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        features.LAION_CLAP_LOG_MEL,
        features.CLAP_FUSION_LOG_MEL,
        LogMelConfig(16_000, 400, 160, 40, 0.0, 7_000.0, norm=None, scale="htk", amin=1e-5),
    ],
)
def test_log_mel_is_librosas(noise, config):
    # The reflection is NumPy's: librosa's own takes the last frame's from too short a tail
    # when the audio is a whole number of hops.
    half = config.n_fft // 2
    padded = np.pad(noise.astype(np.float64), [(0, 0), (0, 0), (half, half)], mode="reflect")
    bands = librosa.feature.melspectrogram(
        y=padded,
        sr=config.sample_rate_hz,
        n_fft=config.n_fft,
        hop_length=config.hop,
        center=False,
        n_mels=config.mels,
        fmin=config.low_hz,
        fmax=config.high_hz,
        norm=config.norm,
        htk=config.scale == "htk",
    )
    theirs = librosa.power_to_db(bands, amin=config.amin, top_db=None)
    np.testing.assert_allclose(log_mel(noise, config), np.swapaxes(theirs, -1, -2), atol=1e-4)


def test_log_mel_hears_what_is_60_db_below_the_loudest():
    # Where float32 sums lose digits: a loud tone, and noise far below it in the other bands.
    rng = np.random.default_rng(2)
    tone = np.sin(2 * np.pi * 440 / 16_000 * np.arange(8_001))
    audio = (tone + 3e-3 * rng.standard_normal(tone.size)).astype(np.float32)
    bands = librosa.feature.melspectrogram(
        y=audio.astype(np.float64),
        sr=16_000,
        n_fft=512,
        hop_length=320,
        n_mels=32,
        fmin=50,
        pad_mode="reflect",
    )
    theirs = 10 * np.log10(bands).T
    assert (theirs.max() - theirs.min()) > 60
    np.testing.assert_allclose(log_mel(audio, SMALL), theirs, atol=1e-3)


@pytest.mark.parametrize(("hop", "samples"), [(320, 4001), (320, 3519), (32, 750)])
@pytest.mark.parametrize("front_end", [features.log_mel, features.mel_cross])
def test_frames_are_the_same_in_blocks_and_all_at_once(noise, front_end, hop, samples, monkeypatch):
    # 13 and 11 frames in blocks of 4: the last block reaches back over 3 and 1. Of the 24 close
    # frames several blocks lie partly before the first sample, and several behind the last.
    config, audio = dataclasses.replace(SMALL, hop=hop), noise[..., :samples]

    def slope(audio):
        return jax.grad(lambda a: jnp.sin(front_end(a, config)).sum())(audio)

    at_once, slope_at_once = (jax.jit(f)(audio) for f in (lambda a: front_end(a, config), slope))
    monkeypatch.setattr(features, "_BLOCK_SAMPLES", 1)
    monkeypatch.setattr(features, "_SHORTEST_BLOCK", 4)
    in_blocks, slopes = (jax.jit(f)(audio) for f in (lambda a: front_end(a, config), slope))
    np.testing.assert_allclose(in_blocks, at_once, atol=1e-4)
    np.testing.assert_allclose(slopes, slope_at_once, atol=1e-3 * np.abs(slope_at_once).max())


def test_magnitude_phase_planes(noise):
    planes = planes_of(noise, 512, 320)
    padded = np.pad(noise.astype(np.float64), [(0, 0), (0, 0), (256, 256)], mode="reflect")
    spectrum = librosa.stft(padded, n_fft=512, hop_length=320, center=False).swapaxes(-1, -2)
    left_right = np.moveaxis(spectrum, 1, -1)
    np.testing.assert_allclose(planes[..., :2], abs(left_right), atol=1e-4)
    turned = np.exp(1j * np.asarray(planes[..., 2:])) * abs(left_right)
    np.testing.assert_allclose(turned, left_right, atol=1e-4)
    # Bins at 0 Hz and Nyquist are real: their angle is 0 or +pi, never -pi.
    real = np.asarray(planes[:, :, [0, -1], 2:])
    np.testing.assert_array_equal(
        real, np.where(left_right[:, :, [0, -1]].real < 0, np.float32(np.pi), 0)
    )


def test_magnitude_phase_of_silence_is_zero_and_has_a_gradient():
    silence = jnp.zeros((2, 300))
    gradient = jax.jit(jax.grad(lambda a: features.magnitude_phase(a, 64, 32).sum()))
    np.testing.assert_array_equal(planes_of(silence, 64, 32), 0)
    faint = silence.at[0, 100:].set(1e-25)
    for audio in (silence, faint):
        assert np.isfinite(gradient(audio)).all()


def test_swapping_channels_mirrors_the_stereo_planes(noise):
    straight, swapped = cross(noise, SMALL), cross(noise[:, ::-1], SMALL)
    np.testing.assert_allclose(swapped * jnp.array([1, 1, -1, -1]), straight, atol=2e-5)


@pytest.mark.parametrize("gain", [1e-3, 0.3, 8.0])
def test_a_joint_gain_moves_the_level_plane_alone(noise, gain):
    before, after = cross(noise, SMALL), cross(gain * noise, SMALL)
    np.testing.assert_allclose(after[..., 0] - before[..., 0], 20 * np.log10(gain), atol=1e-4)
    np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=2e-5)


def test_the_level_plane_is_the_log_mel_of_the_mean_power(noise):
    powers = 10 ** (log_mel(noise, SMALL) / 10)
    np.testing.assert_allclose(
        cross(noise, SMALL)[..., 0], 10 * np.log10(powers.mean(axis=1)), atol=1e-4
    )


def test_cross_spectrum_by_its_definition(noise):
    left, right = np.moveaxis(
        np.asarray(features.stft(jnp.asarray(noise), 512, 320), np.complex128), 1, 0
    )
    weights = features.mel_filterbank(16_000, 512, 32, 50.0, 8_000.0)
    power_left, power_right = abs(left) ** 2 @ weights, abs(right) ** 2 @ weights
    expected = (left * right.conj()) @ weights / np.sqrt(power_left * power_right)
    planes = np.asarray(cross(noise, SMALL))
    np.testing.assert_allclose(planes[..., 1] + 1j * planes[..., 2], expected, atol=1e-5)
    np.testing.assert_allclose(planes[..., 3], np.log10(power_left / power_right), atol=1e-5)
    assert np.hypot(planes[..., 1], planes[..., 2]).max() <= 1 + 1e-5


def test_a_delayed_channel_lags_in_phase():
    # R hears the same 500 Hz tone 4 samples later: L leads by 2 pi 500 4 / 16000 = pi / 4.
    time = np.arange(8_000)
    tone = np.stack([np.sin(2 * np.pi * 500 / 16_000 * (time - d)) for d in (0, 4)])
    band = int(np.argmax(cross(tone, SMALL)[12, :, 0]))
    real, imaginary, level = np.asarray(cross(tone, SMALL))[5:20, band, 1:].T
    np.testing.assert_allclose(np.arctan2(imaginary, real), np.pi / 4, atol=1e-3)
    np.testing.assert_allclose(np.hypot(real, imaginary), 1, atol=1e-4)
    np.testing.assert_allclose(level, 0, atol=1e-3)


def test_a_louder_channel_shows_its_decibels(noise):
    pair = np.stack([2 * noise[0, 0], noise[0, 0]])
    planes = cross(pair, SMALL)
    np.testing.assert_allclose(
        planes[..., 1:3], np.broadcast_to([1, 0], planes[..., 1:3].shape), atol=1e-5
    )
    np.testing.assert_allclose(planes[..., 3], np.log10(4), atol=1e-5)


def test_stereo_planes_of_silence_are_finite_zeros_with_finite_gradients(noise):
    silence = jnp.zeros((2, 4001))
    gradient = jax.jit(jax.grad(lambda a: features.mel_cross(a, SMALL).sum()))
    planes = cross(silence, SMALL)
    np.testing.assert_array_equal(planes[..., 0], -100)
    np.testing.assert_array_equal(planes[..., 1:], 0)
    one_sided = np.stack([noise[0, 0], 0 * noise[0, 0]])
    np.testing.assert_allclose(cross(one_sided, SMALL)[..., 3], 6, atol=1e-5)
    np.testing.assert_allclose(cross(one_sided, SMALL)[..., 1:3], 0)
    for audio in (silence, one_sided, noise[1]):
        assert np.isfinite(gradient(audio)).all()


def test_the_level_of_the_mean_of_the_channels_costs_a_sum(noise):
    planes, mono = cross_and_mono(noise, SMALL)
    np.testing.assert_allclose(planes, cross(noise, SMALL), atol=1e-6)
    np.testing.assert_allclose(mono, log_mel(noise.mean(axis=1), SMALL), atol=1e-3)
    np.testing.assert_allclose(cross_and_mono(noise[:, ::-1], SMALL)[1], mono, atol=1e-5)


def test_the_mean_of_equal_of_one_sided_of_cancelling_and_of_silent_channels(noise):
    left = noise[:, :1]
    levels = log_mel(left[:, 0], SMALL)
    equal, one_sided, cancelled = (
        np.asarray(cross_and_mono(np.concatenate([left, gain * left], axis=1), SMALL)[1])
        for gain in np.float32([1, 0, -1])
    )
    np.testing.assert_allclose(equal, levels, atol=1e-3)
    # Half the pressure: 6.02 dB less.
    np.testing.assert_allclose(one_sided, levels - 20 * np.log10(2), atol=1e-3)
    assert np.isfinite(cancelled).all()
    assert (cancelled < levels - 55).all()
    np.testing.assert_array_equal(cross_and_mono(0 * noise, SMALL)[1], -100)


@pytest.mark.parametrize("samples", [1, 96, 1000])
@pytest.mark.parametrize(("up", "down"), [(3, 1), (1, 3), (6, 4), (160, 147), (147, 640)])
def test_resample_poly_is_scipys(up, down, samples):
    audio = np.random.default_rng(3).standard_normal((2, samples)).astype(np.float32)
    theirs = scipy.signal.resample_poly(audio.astype(np.float64), up, down, axis=-1)
    ours = resample_poly(audio, up, down)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_resample_keeps_a_tone_and_its_level():
    tone = jnp.sin(2 * np.pi * 440 / 16_000 * jnp.arange(4_000))
    wanted = np.sin(2 * np.pi * 440 / 48_000 * np.arange(12_000))
    ours = features.resample(tone, from_hz=16_000, to_hz=48_000)
    np.testing.assert_allclose(ours[200:-200], wanted[200:-200], atol=2e-3)
    np.testing.assert_array_equal(features.resample(tone, 16_000, 16_000), tone)


def augment(seed, array, **options):
    return np.asarray(
        jax.jit(functools.partial(features.spec_augment, **options))(jax.random.key(seed), array)
    )


def test_spec_augment_hides_bands_up_to_their_width():
    ones = jnp.ones((200, 50, 40))
    hidden = augment(0, ones, time_masks=1, time_width=7, frequency_masks=0) == 0
    np.testing.assert_array_equal(hidden, np.broadcast_to(hidden[:, :, :1], hidden.shape))
    rows = hidden[:, :, 0]
    assert set(rows.sum(axis=1)) == set(range(8))  # every width from none to the widest
    assert (abs(np.diff(rows.astype(int), axis=1)).sum(axis=1) <= 2).all()  # one run each
    assert rows[:, 0].any()
    assert rows[:, -1].any()
    hidden = augment(0, ones, time_masks=0, frequency_masks=2, frequency_width=5) == 0
    np.testing.assert_array_equal(hidden, np.broadcast_to(hidden[:, :1], hidden.shape))
    assert set(hidden[:, 0].sum(axis=1)) == set(range(11))


def test_spec_augment_hides_all_planes_alike_with_a_fill_each():
    planes = jnp.ones((3, 60, 32, 4), jnp.bfloat16)
    fill = jnp.array([-100.0, 0.0, 0.0, 0.5])
    out = augment(1, planes, time_width=20, fill=fill)
    hidden = out[..., 0] == -100
    assert hidden.any()
    assert not hidden.all()
    np.testing.assert_array_equal(
        out, np.where(hidden[..., None], np.asarray(fill, out.dtype), np.ones(4, out.dtype))
    )
    assert out.dtype == jnp.bfloat16


def test_spec_augment_wider_than_the_features_does_not_hide_them_all():
    out = augment(2, jnp.ones((400, 3, 2)), time_masks=1, time_width=64, frequency_masks=0)
    np.testing.assert_allclose(out.mean(), 0.5, atol=0.08)  # widths 0 to 3, alike


@pytest.mark.parametrize(
    "front_end",
    [
        features.magnitude_phase,
        lambda a: features.mel_cross(a, SMALL),
        lambda a: features.log_mel(features.resample(a, 16_000, 48_000)),
    ],
)
def test_no_front_end_calls_an_fft(front_end):
    # XLA cannot partition one: it would gather the whole global batch on every device.
    audio = jax.ShapeDtypeStruct((8, 2, 1600), jnp.float32)
    text = jax.jit(front_end).lower(audio).as_text()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.fft" not in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: features.stft(jnp.zeros(0)), "audio has 0 samples; give at least one"),
        (lambda: features.stft(jnp.zeros(9), 16, 4, centre=False), "9 samples; .* n_fft 16"),
        (lambda: features.stft(jnp.zeros(9), 15, 4), "n_fft 15, hop 4: n_fft must be even"),
        (lambda: LogMelConfig(hop=0), "hop 0"),
        (lambda: LogMelConfig(sample_rate_hz=16_000), "high_hz 14000: .* <= 8000; lower high_hz"),
        (lambda: LogMelConfig(mels=0), "mels 0, amin 1e-10: both must be above zero"),
        (lambda: features.resample_poly(jnp.zeros(9), 0, 1), "up 0, down 1: both must be"),
        (lambda: features.resample(jnp.zeros(9), 16_001, 48_000), "48000/16001 .* soxr"),
    ],
)
def test_errors_name_value_rule_and_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
