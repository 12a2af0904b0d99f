"""Mixtures against scipy, and what must not change between channels."""

import numpy as np
import pytest
from scipy import signal

from spatial_clap_jax.acoustics.receivers import StereoPair
from spatial_clap_jax.acoustics.render import high_pass, quantise_jointly, render_members
from spatial_clap_jax.acoustics.rirs import image_source_rirs
from spatial_clap_jax.acoustics.rooms import Room

RATE_HZ = 16_000


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rir_samples", [300, 1000, 2500])
def test_members_are_sums_of_convolutions(rir_samples):
    dry, rirs = _noise(3, 1000), _noise(3, 2, rir_samples, seed=1)
    permutations = np.array([[0, 1, 2], [2, 0, 1]], np.int32)
    members = render_members(dry, rirs, permutations)
    assert members.dtype == np.float32
    assert members.shape == (2, 2, 1000)
    for member, places in zip(members, permutations, strict=True):
        for channel in range(2):
            wanted = sum(
                signal.fftconvolve(dry[clip], rirs[place, channel])[:1000]
                for clip, place in enumerate(places)
            )
            np.testing.assert_allclose(member[channel], wanted, atol=2e-3)


def test_clips_stand_at_the_places_that_the_permutation_names():
    dry = np.zeros((3, 8), np.float32)
    dry[:, 0] = [1, 10, 100]
    rirs = np.zeros((3, 2, 4), np.float32)
    for place in range(3):
        rirs[place, :, place] = [1, -1]
    members = render_members(dry, rirs, np.array([[0, 1, 2], [1, 2, 0]], np.int32))
    expected = np.zeros((2, 2, 8), np.float32)
    expected[0, :, :3] = [[1, 10, 100], [-1, -10, -100]]
    expected[1, :, :3] = [[100, 1, 10], [-100, -1, -10]]
    np.testing.assert_allclose(members, expected, atol=1e-4)


def test_mirrored_places_swap_the_channels_of_the_mixture():
    room = Room("room", (6.0, 5.0, 3.0), 0.5)
    azimuth = np.array([60.0, -30.0, -60.0, 30.0], np.float32)
    rirs = image_source_rirs(room, StereoPair(), azimuth, np.full(4, 1.5, np.float32), RATE_HZ)
    dry, identity = _noise(2, 4000), np.array([[0, 1]], np.int32)
    scene = render_members(dry, rirs[:2], identity)
    mirrored = render_members(dry, rirs[2:], identity)
    scale = np.abs(scene).max()
    np.testing.assert_allclose(scene[:, ::-1], mirrored, atol=1e-3 * scale)
    assert np.abs(scene - mirrored).max() > 0.1 * scale


def test_clips_places_and_permutations_must_agree():
    dry, rirs = _noise(2, 10), _noise(3, 2, 4)
    # Where shapes are checked at run time, the axis k speaks first.
    with pytest.raises((ValueError, TypeError), match=r"2 clips and 3 places|rirs"):
        render_members(dry, rirs, np.array([[0, 1]], np.int32))
    with pytest.raises(ValueError, match=r"permutations \[\[0, 0\]\] must permute 0..1"):
        render_members(dry, rirs[:2], np.array([[0, 0]], np.int32))


def test_the_group_has_one_scale_and_never_clips():
    audio = _noise(2, 2, 4000)
    audio[0] *= 0.01
    samples, scale = quantise_jointly(audio, peak=0.9)
    assert samples.dtype == np.int16
    assert np.abs(samples.astype(int)).max() == round(0.9 * 32767)
    np.testing.assert_allclose(samples * np.float32(scale), audio, atol=0.51 * scale)
    full, _ = quantise_jointly(-np.abs(audio), peak=1.0)
    assert full.min() == -32767
    assert full.max() <= 0


def test_silence_stays_silence_and_nan_is_refused():
    samples, scale = quantise_jointly(np.zeros((1, 2, 8), np.float32))
    assert not samples.any()
    assert scale == 1 / 32767
    with pytest.raises(ValueError, match="holds NaN or infinite samples"):
        quantise_jointly(np.full((1, 2, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"peak 1.1 must be in \(0, 1\]"):
        quantise_jointly(np.zeros((1, 2, 8), np.float32), peak=1.1)


def test_level_and_phase_between_channels_outlive_filter_and_quantisation():
    delayed = _noise(5000)
    audio = np.stack([delayed[5:4101], 0.4 * delayed[:4096]])[None]
    samples, scale = quantise_jointly(high_pass(audio, RATE_HZ))
    before, after = (np.fft.rfft(one * np.hanning(4096)) for one in (audio[0], samples[0] * scale))
    # Where the filter passes, the ratio of the channels is what it was.
    passed = slice(100, 1900)
    ratio = (after[0] / after[1] / (before[0] / before[1]))[passed]
    assert np.abs(np.median(np.abs(ratio)) - 1) < 1e-3
    assert np.median(np.abs(np.angle(ratio))) < 2e-3


def test_the_high_pass_is_butterworth_and_alike_on_every_channel():
    impulse = np.zeros((2, 3, RATE_HZ), np.float32)
    impulse[..., 0] = [[1, 2, 3], [-1, 0.5, 0]]
    response = high_pass(impulse, RATE_HZ)
    assert response.dtype == np.float32
    np.testing.assert_allclose(response[0, 1], 2 * response[0, 0], atol=1e-6)
    np.testing.assert_allclose(response[1, 0], -response[0, 0], atol=1e-6)
    level_db = 20 * np.log10(np.abs(np.fft.rfft(response[0, 0])))
    assert level_db[50] == pytest.approx(-3.01, abs=0.02)
    assert level_db[25] == pytest.approx(-24.1, abs=0.3)
    assert np.abs(level_db[200:7000]).max() < 0.05
    with pytest.raises(ValueError, match="cutoff_hz 9000 must lie between 0 and half"):
        high_pass(impulse, RATE_HZ, cutoff_hz=9000.0)


def test_filtering_the_responses_equals_filtering_the_mixtures():
    dry, identity = _noise(2, 3000), np.array([[0, 1], [1, 0]], np.int32)
    rirs = _noise(2, 2, 3000, seed=1) * np.exp(-np.arange(3000) / 100).astype(np.float32)
    once = render_members(dry, high_pass(rirs, RATE_HZ), identity)
    each = high_pass(render_members(dry, rirs, identity), RATE_HZ)
    np.testing.assert_allclose(once, each, atol=1e-4 * np.abs(each).max())
