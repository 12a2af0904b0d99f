"""The front end of CLAP's checkpoints against Hugging Face's feature extractor."""

import jax
import numpy as np
import pytest

from spatial_clap_jax import features, windows

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytestmark = pytest.mark.parity

RATE_HZ, WINDOW = 48_000, 480_000


@pytest.fixture(scope="module")
def extractor():
    """As the released checkpoints' preprocessor configuration."""
    return transformers.ClapFeatureExtractor(frequency_min=50, frequency_max=14_000)


log_mel = jax.jit(features.log_mel)


def short_front_end(audio):
    return np.asarray(log_mel(windows.repeat_pad(audio, WINDOW)))


def long_front_end(audio, starts):
    levels = windows.log_mel_on_host(audio, features.CLAP_FUSION_LOG_MEL)
    return windows.fusion_views(levels, starts=starts)


def sound(kind, samples):
    rng, time = np.random.default_rng(samples), np.arange(samples) / RATE_HZ
    noise, tone = rng.standard_normal(samples), np.sin(2 * np.pi * 997 * time)
    kinds = {
        "noise": 0.3 * noise,
        "faint": 1e-5 * noise,
        "tone": 0.5 * tone,
        "tone in noise": 0.1 * tone + 0.01 * noise,
        "silence": 0 * noise,
        "tone, then silence": 0.5 * tone * (time < time[-1] / 2),
    }
    return kinds[kind].astype(np.float32)


def below_the_loudest(theirs, decibels=60):
    """Where a level lies farther below the loudest band of its frame."""
    return theirs < theirs.max(axis=-1, keepdims=True) - decibels


def assert_same_levels(ours, theirs):
    """Within 1e-3 dB of levels to 60 dB below the loudest band of the frame.

    Theirs are computed in float64 and ours in float32, whose rounding leaves some 1e-12 of a
    frame's power in every bin: an error of decibels in what leaks of a pure tone into bands
    120 dB below it. So below 60 dB what is held is the power, to 1e-10 of the loudest band.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    low = below_the_loudest(theirs)
    assert np.abs(ours - theirs)[~low].max() <= 1e-3
    loudest = theirs.max(axis=-1, keepdims=True)
    error = np.abs(10 ** ((ours - loudest) / 10) - 10 ** ((theirs - loudest) / 10))
    assert error[low].max(initial=0) <= 1e-10


@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        ("noise", 1),
        ("noise", 7),
        ("noise", 1000),
        ("noise", 12_345),
        ("noise", 240_001),
        ("noise", 479_999),
        ("noise", 480_000),
        ("faint", 12_345),
        ("tone", 7),
        ("tone", 480_000),
        ("tone in noise", 12_345),
        ("tone, then silence", 479_999),
        ("silence", 1000),
        ("silence", 480_000),
    ],
)
def test_short_audio_is_repeated_and_padded_as_theirs(extractor, kind, samples):
    audio = sound(kind, samples)
    theirs = extractor(audio, truncation="rand_trunc", padding="repeatpad", sampling_rate=RATE_HZ)[
        "input_features"
    ][0]
    ours = short_front_end(audio)
    assert_same_levels(ours[None], theirs)
    if kind in ("noise", "tone in noise"):  # no deep gaps in the spectrum: 1e-3 dB everywhere
        audible = theirs[0] > -90 if samples > 7 else theirs[0] > theirs.max() - 60
        assert np.abs(ours - theirs[0])[audible].max(initial=0) <= 1e-3


@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        ("noise", 480_001),
        ("noise", 480_479),
        ("noise", 480_480),
        ("tone in noise", 480_960),
        ("noise", 500_000),
        ("noise", 720_000),
        ("tone", 500_000),
        ("noise", 1_000_000),
        ("tone in noise", 1_000_000),
        ("tone, then silence", 1_000_000),
    ],
)
def test_long_audio_becomes_their_four_views(extractor, monkeypatch, kind, samples):
    starts, choice = [], np.random.choice
    np.random.seed(samples)  # noqa: NPY002 - theirs draws from the global generator

    def noted(possible):
        starts.append(int(choice(possible)))
        return starts[-1]

    monkeypatch.setattr(np.random, "choice", noted)
    audio = sound(kind, samples)
    theirs = extractor(audio, truncation="fusion", padding="repeatpad", sampling_rate=RATE_HZ)
    # Up to a hop more than the window gives no frame more: theirs draws nothing.
    assert len(starts) == (0 if samples < 480_480 else 3)
    theirs = theirs["input_features"][0]
    ours = long_front_end(audio, tuple(starts) or None)
    assert_same_levels(ours[1:], theirs[1:])
    # The shrunk view mixes decibels, so that a quiet band's rounding reaches into the next frame,
    # however loud: there the power says nothing, and the shrinking is held apart, on their levels.
    assert np.abs(ours[0] - theirs[0])[~below_the_loudest(theirs[0])].max() <= 1e-3
    levels = extractor._np_extract_fbank_features(audio, extractor.mel_filters)
    views = windows.fusion_views(levels.astype(np.float32), starts=tuple(starts) or None)
    np.testing.assert_allclose(views, theirs, rtol=0, atol=3e-5)
