"""Intensity vectors by their laws: plane waves, turned fields, gains, plain clips, silence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig, StftConfig
from spatial_clap_jax.intensity import intensity_vectors

BINS = StftConfig(n_fft=128, hop=64)
MEL = LogMelConfig(sample_rate_hz=16_000, n_fft=128, hop=64, mels=12, low_hz=50.0, high_hz=8_000.0)
FRONT_ENDS = pytest.mark.parametrize("config", [BINS, MEL], ids=["bins", "mel"])
SAMPLES = 1600

vectors = jax.jit(intensity_vectors, static_argnums=(1, 2))


def unit(azimuth_deg, elevation_deg):
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    return np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plane_waves(directions):
    """One wave of noise from each direction, W, Y, Z, X."""
    signal = noise(len(directions), 1, SAMPLES)
    gains = np.array([[1, y, z, x] for x, y, z in directions], np.float32)
    return signal * gains[:, :, None]


DIRECTIONS = [
    unit(azimuth, elevation)
    for azimuth in (0, 37, 90, 135, 180, -60, -90, -179)
    for elevation in (-80, -40, 0, 15, 48, 90)
]


@FRONT_ENDS
@pytest.mark.parametrize("scaled_by", ["active", "energy"])
def test_a_plane_wave_points_at_its_source(config, scaled_by):
    found = vectors(plane_waves(DIRECTIONS), config, scaled_by)
    true = np.array(DIRECTIONS)[:, None, None]
    error_deg = np.degrees(np.arccos(np.clip((found.active * true).sum(-1), -1, 1)))
    assert found.active.shape == (48, 26, 65 if config is BINS else 12, 3)
    # Of noise in tens of thousands of cells, one may hold nearly nothing.
    is_sound = (found.active != 0).any(axis=-1)
    assert is_sound.mean() > 0.9999
    assert error_deg[is_sound].max() < 0.1
    np.testing.assert_allclose(found.reactive, 0, atol=1e-4)


def test_left_is_plus_y_by_hand():
    signal = noise(1, SAMPLES)
    left = np.concatenate([signal, signal, 0 * signal, 0 * signal])
    found = vectors(left, BINS, "active")
    np.testing.assert_allclose(found.active[5, 9], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(
        vectors(left * [[1], [-1], [1], [1]], BINS, "active").active[5, 9], [0, -1, 0], atol=1e-6
    )


@FRONT_ENDS
@pytest.mark.parametrize("scaled_by", ["active", "energy"])
def test_a_turned_field_turns_the_vectors(config, scaled_by):
    field = noise(4, SAMPLES)
    turn = np.radians(50.0)
    matrix = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    w, y, z, x = field
    x, y, z = matrix @ np.stack([x, y, z])
    straight = vectors(field, config, scaled_by)
    turned = vectors(np.stack([w, y, z, x]).astype(np.float32), config, scaled_by)
    for before, after in ((straight.active, turned.active), (straight.reactive, turned.reactive)):
        # Reactive vectors are long where nothing arrives.
        expected = before @ matrix.T
        length = np.maximum(np.linalg.norm(expected, axis=-1, keepdims=True), 1)
        np.testing.assert_allclose(after / length, expected / length, atol=2e-3)


@FRONT_ENDS
@pytest.mark.parametrize("gain", [1e-4, 0.37, 3e3])
def test_a_louder_recording_changes_no_vector(config, gain):
    # Half of it is nearly silent: cells near the limit must stay on their side of it.
    field = noise(4, SAMPLES) * np.where(np.arange(SAMPLES) < 800, 0.3, 1e-4).astype(np.float32)
    straight, louder = (vectors(x, config, "active") for x in (field, np.float32(gain) * field))
    # Nor does it hide half of the recording.
    assert ((straight.active**2).sum(axis=-1) > 0.9).mean() > 0.4
    np.testing.assert_allclose(louder.active, straight.active, atol=1e-3)
    relative = np.maximum(np.linalg.norm(straight.reactive, axis=-1, keepdims=True), 1)
    np.testing.assert_allclose(louder.reactive / relative, straight.reactive / relative, atol=1e-3)


@FRONT_ENDS
def test_one_signal_in_all_channels_is_constant(config):
    found = vectors(np.repeat(noise(1, SAMPLES), 4, axis=0), config, "active")
    np.testing.assert_allclose(found.active, 3**-0.5, atol=1e-5)
    np.testing.assert_allclose(found.reactive, 0, atol=1e-5)


@FRONT_ENDS
@pytest.mark.parametrize("scaled_by", ["active", "energy"])
def test_silence_gives_zeros_and_no_gradient_is_nan(config, scaled_by):
    silent = np.zeros((4, SAMPLES), np.float32)
    half = noise(4, SAMPLES) * (np.arange(SAMPLES) < 700)
    mute = np.concatenate([np.zeros((1, SAMPLES)), noise(3, SAMPLES)])

    @jax.jit
    def found_and_gradient(audio):
        def total(audio):
            found = intensity_vectors(audio, config, scaled_by)
            return (found.active * 0.3).sum() + (found.reactive * 0.1).sum(), found

        (_, found), gradient = jax.value_and_grad(total, has_aux=True)(audio)
        return found, gradient

    for audio in (silent, half, mute):
        found, gradient = found_and_gradient(jnp.asarray(audio, jnp.float32))
        assert all(np.isfinite(x).all() for x in (*found, gradient))
        if audio is not half:
            np.testing.assert_array_equal(found.active, 0)
            np.testing.assert_array_equal(found.reactive, 0)
    # Frames inside the silent half.
    found, _ = found_and_gradient(jnp.asarray(half, jnp.float32))
    np.testing.assert_array_equal(found.active[14:], 0)
    assert np.abs(found.active[:10]).max() > 0


def test_bins_are_scipys():
    field = noise(4, SAMPLES)
    padded = np.pad(field.astype(np.float64), [(0, 0), (64, 64)], mode="reflect")
    _, _, spectra = scipy.signal.stft(
        padded, 16_000, "hann", nperseg=128, noverlap=64, boundary=None, padded=False
    )
    w, y, z, x = np.swapaxes(spectra, -1, -2)
    cross = np.stack([np.conj(w) * axis for axis in (x, y, z)], axis=-1)
    length = np.linalg.norm(cross.real, axis=-1, keepdims=True)
    found = vectors(field, BINS, "active")
    np.testing.assert_allclose(found.active, cross.real / length, atol=1e-3)
    scale = np.maximum(np.abs(cross.imag / length), 1)
    np.testing.assert_allclose(found.reactive / scale, cross.imag / length / scale, atol=2e-3)
    energy = (np.abs(np.stack([w, y, z, x])) ** 2).sum(axis=0)[..., None] / 2
    found = vectors(field, BINS, "energy")
    np.testing.assert_allclose(found.active, cross.real / energy, atol=1e-4)
    np.testing.assert_allclose(found.reactive, cross.imag / energy, atol=1e-4)


def test_level_is_that_of_w():
    field = noise(2, 4, SAMPLES)
    found = vectors(field, MEL, "energy")
    log_mel = jax.jit(features.log_mel, static_argnums=1)(field[:, 0], MEL)
    np.testing.assert_allclose(found.level_db, log_mel, atol=1e-4)


def test_in_blocks_as_at_once(monkeypatch):
    field = noise(2, 4, 9000)
    whole = vectors(field, MEL, "energy")
    monkeypatch.setattr(features, "_BLOCK_SAMPLES", 1)
    jax.clear_caches()
    in_blocks = jax.jit(intensity_vectors, static_argnums=(1, 2))(field, MEL, "energy")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), in_blocks, whole)


def test_diffuse_fields_have_short_vectors():
    # Waves from everywhere: the active intensity is shorter than that of one wave.
    waves = plane_waves(DIRECTIONS).sum(axis=0)
    found = vectors(waves, MEL, "energy")
    length = np.linalg.norm(found.active, axis=-1)
    assert length.max() <= 1
    assert np.median(length) < 0.7


@pytest.mark.parametrize("change", [{"n_fft": 401}, {"hop": 0}])
def test_frames_that_cannot_be_are_refused(change):
    with pytest.raises(InputError, match=r"n_fft must be even and hop at least 1"):
        dataclasses.replace(BINS, **change)
