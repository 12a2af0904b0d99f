"""Noise of the surroundings: its power, its colour, and what it does to a recording."""

import numpy as np
import pytest

from spatial_clap_jax.acoustics.noise import pink_noise, with_noise


def rng(seed=0):
    return np.random.default_rng(seed)


def power(audio):
    return np.mean(np.square(audio, dtype=np.float64), axis=-1)


def recordings():
    """Two of noise, left 12 dB above right, the second one 40 dB below the first."""
    audio = rng(1).standard_normal((2, 2, 500)) * np.array([4.0, 1.0])[:, None]
    return (audio * np.array([1.0, 0.01])[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("shape", [(300,), (5, 301), (2, 3, 2)])
def test_every_row_has_mean_power_one_and_no_constant(shape):
    noise = pink_noise(rng(), shape)
    assert noise.dtype == np.float32
    assert noise.shape == shape
    np.testing.assert_allclose(power(noise), 1.0, rtol=1e-5)
    np.testing.assert_allclose(noise.mean(axis=-1), 0.0, atol=1e-6)


def test_a_single_sample_has_nothing_but_a_constant_and_is_silent():
    np.testing.assert_array_equal(pink_noise(rng(), (2, 1)), 0)


def test_power_falls_by_3_db_an_octave():
    spectra = np.abs(np.fft.rfft(pink_noise(rng(), (200, 2048)))) ** 2
    density = spectra.mean(axis=0)
    octaves_db = [10 * np.log10(density[k : 2 * k].mean()) for k in (16, 32, 64, 128, 256, 512)]
    np.testing.assert_allclose(np.diff(octaves_db), -3.01, atol=0.3)


def test_rows_are_independent_in_sign_and_size():
    noise = pink_noise(rng(), (300, 2, 256)).astype(np.float64)
    alike = (noise[:, 0] * noise[:, 1]).mean(axis=-1)
    # The lowest bins rule, so that two rows are alike by chance; on the mean they are not.
    assert abs(alike.mean()) < 0.05
    assert np.abs(alike).max() < 0.9
    assert not np.array_equal(noise[0], noise[1])


def test_the_generator_alone_decides_on_the_draw():
    np.testing.assert_array_equal(pink_noise(rng(3), (2, 9)), pink_noise(rng(3), (2, 9)))
    assert not np.array_equal(pink_noise(rng(3), (2, 9)), pink_noise(rng(4), (2, 9)))


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
def test_noise_is_as_strong_in_each_channel_relative_to_the_mean_of_both(snr_db):
    audio = recordings()
    noise = with_noise(audio, snr_db, rng()) - audio
    expected = power(audio).mean(axis=-1, keepdims=True) * 10 ** (-snr_db / 10)
    np.testing.assert_allclose(power(noise), np.repeat(expected, 2, axis=1), rtol=1e-4)
    # Another noise in each channel, and not the recording itself.
    for one, other in ((noise[0, 0], noise[0, 1]), (noise[0, 0], audio[0, 0])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.6


def test_a_recording_alone_and_in_a_batch_have_the_same_level():
    audio = recordings()[1]
    noise = with_noise(audio, 6.0, rng()) - audio
    np.testing.assert_allclose(power(noise), power(audio).mean() * 10**-0.6, rtol=1e-4)


def test_faint_noise_leaves_the_level_difference_and_strong_noise_takes_it():
    audio = recordings()
    differences_db = [
        10 * np.log10(np.divide(*power(with_noise(audio, snr_db, rng())).T))
        for snr_db in (100.0, -30.0)
    ]
    before = 10 * np.log10(np.divide(*power(audio).T))
    assert (before > 10).all()
    np.testing.assert_allclose(differences_db[0], before, atol=1e-3)
    np.testing.assert_allclose(differences_db[1], 0.0, atol=0.5)


def test_silence_stays_silence():
    silence = np.zeros((2, 50), np.float32)
    np.testing.assert_array_equal(with_noise(silence, 0.0, rng()), silence)


def test_the_recording_is_not_written_to():
    audio = recordings()
    with_noise(audio, 0.0, rng())
    np.testing.assert_array_equal(audio, recordings())
