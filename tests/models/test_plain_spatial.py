"""The plain spatial encoder: lags by hand and end to end, and what it cannot hear."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig, mel_cross, mel_filterbank
from spatial_clap_jax.models.plain_spatial import (
    PlainSpatial,
    PlainSpatialConfig,
    lag_matrix,
    peaks_of,
)

MEL = LogMelConfig(sample_rate_hz=16_000, n_fft=512, hop=160, mels=16, low_hz=50.0, high_hz=8_000.0)
# A lag every sixteenth of a millisecond: one sample at 16 kHz.
CONFIG = PlainSpatialConfig(longest_lag_s=0.5e-3, lags=17, width=6)
LAGS_S = np.arange(-8, 9) / 16_000


def centres_hz():
    """Where each band has its weight, by the mean over its bins."""
    weights = mel_filterbank(16_000, 512, 16, 50.0, 8_000.0)
    return np.array([np.average(np.arange(257) * 31.25, weights=band) for band in weights.T])


def cross_of(delay_s):
    """Real and imaginary parts of the cross-spectrum where the right channel is late."""
    phase = 2 * np.pi * centres_hz() * delay_s
    return np.concatenate([np.cos(phase), np.sin(phase)])


@pytest.mark.parametrize("index", [0, 3, 8, 9, 16])
def test_a_pure_delay_peaks_at_its_lag(index):
    matrix = lag_matrix(CONFIG, MEL)
    assert matrix.shape == (32, 17)
    correlation = cross_of(LAGS_S[index]) @ matrix
    assert np.argmax(correlation) == index
    # All bands agree there; one lag further they do not.
    assert correlation[index] == pytest.approx(1.0, abs=1e-5)
    assert np.sort(correlation)[-2] < 0.9


def test_swapped_channels_mirror_the_lags():
    # Any cross-spectrum, not of one delay alone; the swap conjugates it.
    real, imaginary = np.random.default_rng(0).normal(size=(2, 16))
    matrix = lag_matrix(CONFIG, MEL)
    straight, swapped = (np.concatenate([real, s * imaginary]) @ matrix for s in (1, -1))
    np.testing.assert_allclose(swapped, straight[::-1], atol=1e-6)
    assert np.abs(straight - straight[::-1]).max() > 0.1


def test_a_delayed_noise_peaks_at_its_lag():
    # The left microphone hears it 5 samples earlier.
    noise = np.random.default_rng(1).standard_normal(4_005).astype(np.float32)
    audio = np.stack([noise[5:], noise[:-5]])
    planes = np.asarray(jax.jit(mel_cross, static_argnums=1)(audio, MEL))
    mean = planes.mean(axis=0)
    correlation = np.concatenate([mean[:, 1], mean[:, 2]]) @ lag_matrix(CONFIG, MEL)
    assert LAGS_S[np.argmax(correlation)] == pytest.approx(5 / 16_000)


@pytest.fixture(scope="module")
def encoder():
    """The encoder as a function of planes, of two rows of seven frames."""
    planes = np.random.default_rng(2).uniform(-1, 1, (2, 7, 16, 4)).astype(np.float32)
    module = PlainSpatial(CONFIG, MEL)
    variables = module.init(jax.random.key(0), planes, False)
    return jax.jit(lambda planes: module.apply(variables, planes, False)), planes


def test_neither_the_level_nor_the_order_of_frames_is_heard(encoder):
    embed, planes = encoder
    vectors = embed(planes)
    assert vectors.shape == (2, CONFIG.width)
    louder = planes.copy()
    louder[..., 0] = np.random.default_rng(3).normal(size=louder.shape[:-1])
    np.testing.assert_array_equal(embed(louder), vectors)
    order = np.random.default_rng(4).permutation(7)
    np.testing.assert_allclose(embed(planes[:, order]), vectors, atol=1e-6)


@pytest.mark.parametrize("plane", [1, 2, 3])
def test_every_other_plane_is_heard(encoder, plane):
    embed, planes = encoder
    changed = planes.copy()
    changed[..., plane] *= -1
    assert np.abs(embed(changed) - embed(planes)).max() > 1e-3


def test_which_band_is_louder_on_which_side_is_not_heard(encoder):
    """The level difference is one number, so that no content can be told to be in a place."""
    embed, planes = encoder
    exchanged = planes.copy()
    exchanged[..., 3] = planes[:, :, ::-1, 3]
    np.testing.assert_allclose(embed(exchanged), embed(planes), atol=1e-6)


def planes_of(*delays_s):
    """Frames in which one source after another sounds, each alone."""
    planes = np.zeros((1, len(delays_s), 16, 4), np.float32)
    for frame, delay_s in zip(planes[0], delays_s, strict=True):
        frame[:, 1], frame[:, 2] = np.split(cross_of(delay_s), 2)
    return planes


def test_peaks_alone_tell_where_and_neither_how_long_nor_at_which_frequencies():
    config = dataclasses.replace(CONFIG, peaks_above=0.3)
    module = PlainSpatial(config, MEL)
    here, there = LAGS_S[3], LAGS_S[12]
    planes = planes_of(*[here] * 10, *[there] * 10)
    variables = module.init(jax.random.key(0), planes, False)
    embed = jax.jit(lambda planes: module.apply(variables, planes, False))
    both = embed(planes)
    # A short and a lasting one, either way round.
    for count in (4, 16):
        planes = planes_of(*[here] * count, *[there] * (20 - count))
        np.testing.assert_allclose(embed(planes), both, atol=1e-6)
    # One that sounds in every other band alone, and levels.
    planes[0, :4, ::2, 1:3] = 0.0
    planes[..., (0, 3)] = 5.0
    np.testing.assert_allclose(embed(planes), both, atol=1e-6)
    for delays in ([here] * 20, [there] * 20, [here] * 10 + [LAGS_S[8]] * 10):
        assert np.abs(embed(planes_of(*delays)) - both).max() > 1e-3
    # Fewer frames than are averaged, and a bump of known shape.
    bumps = np.asarray(peaks_of(cross_of(here)[None, None] @ lag_matrix(config, MEL), 0.3))[0]
    np.testing.assert_allclose(bumps, np.exp(-0.5 * np.square(np.arange(17) - 3)), atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.3])
def test_a_threshold_that_no_peak_or_all_noise_passes(threshold):
    with pytest.raises(InputError, match=f"peaks_above {threshold}: must lie between 0, .* give"):
        PlainSpatialConfig(peaks_above=threshold)


def test_parameters_stay_float32_in_half_precision():
    module = PlainSpatial(CONFIG, MEL, jnp.bfloat16)
    planes = jax.ShapeDtypeStruct((1, 3, 16, 4), jnp.float32)
    out, variables = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, False), planes
    )
    assert (out.dtype, out.shape) == (jnp.bfloat16, (1, CONFIG.width))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
