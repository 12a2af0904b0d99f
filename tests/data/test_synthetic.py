"""The procedural bank: repeatable, varied, wide-band, and told apart by a plain classifier."""

from collections import Counter

import librosa
import numpy as np
import pytest

from spatial_clap_jax.data.sources import SourceOptions, open_source
from spatial_clap_jax.data.synthetic import CATEGORIES, synthesise


def test_the_dozen_classes():
    names = "siren beeps footsteps engine wind bell whistle knocking drops buzz chirps noise"
    assert [category.split()[-1] for category in CATEGORIES] == names.split()
    assert {"water drops", "static noise"} <= set(CATEGORIES)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_clip_is_a_pure_function_of_its_key(category):
    first = synthesise(category, (0, 2, 3), 16_000)
    assert first.dtype == np.float32
    assert first.tobytes() == synthesise(category, (0, 2, 3), 16_000).tobytes()
    for other in ((1, 2, 3), (0, 0, 3), (0, 2, 4)):
        length = min(first.size, (changed := synthesise(category, other, 16_000)).size)
        assert not np.allclose(changed[:length], first[:length], atol=1e-3)


@pytest.mark.parametrize("category", CATEGORIES)
def test_length_level_and_bandwidth(category):
    for number in range(4):
        audio = synthesise(category, (0, number), 16_000)
        assert 32_000 <= audio.size <= 80_000
        assert 0.25 <= np.abs(audio).max() <= 0.9
        assert abs(audio.mean()) < 0.01
        power = np.abs(np.fft.rfft(audio)) ** 2
        frequency_hz = np.fft.rfftfreq(audio.size, 1 / 16_000)
        for low_hz in (250, 500, 1000, 2000, 4000):
            octave = (low_hz <= frequency_hz) & (frequency_hz < 2 * low_hz)
            # Direction is to be heard in every octave, if the room is quiet.
            assert 10 * np.log10(power[octave].sum() / power.sum()) > -36


def test_the_same_event_at_another_rate():
    at_16k, at_48k = (synthesise("bell", (5,), rate_hz) for rate_hz in (16_000, 48_000))
    assert at_48k.size == 3 * at_16k.size
    np.testing.assert_allclose(at_48k[::3], at_16k, atol=0.03)


def log_mel_statistics(audio):
    mel = librosa.feature.melspectrogram(
        y=audio / np.sqrt(np.mean(audio**2)), sr=16_000, n_fft=1024, hop_length=1024, n_mels=32
    )
    log_mel = librosa.power_to_db(mel)
    return np.concatenate([log_mel.mean(1), log_mel.std(1)])


@pytest.mark.slow
def test_nearest_centroids_tell_unseen_clips_apart():
    source = open_source("synthetic", SourceOptions(synthetic_clips=(6, 0, 3)))
    statistics = {"train": [], "test": []}
    for clip in source.clips:
        statistics[clip.split].append(log_mel_statistics(source.load(clip, 16_000)))
    train = np.reshape(statistics["train"], (12, 6, -1))
    test = np.reshape(statistics["test"], (12, 3, -1))
    spread = train.std((0, 1))
    distance = ((test[:, :, None] - train.mean(1)) / spread) ** 2
    correct = distance.sum(-1).argmin(-1) == np.arange(12)[:, None]
    assert correct.mean() >= 0.85  # Chance is 1/12.
    assert correct.mean(1).min() >= 0.5


def test_the_bank_lists_clips_by_split_and_class():
    source = open_source("synthetic")
    for clip in source.clips:
        assert clip.category in CATEGORIES
        assert len(clip.captions) >= 3
    counts = Counter(clip.split for clip in source.clips)
    assert counts == {"train": 12 * 24, "validation": 12 * 4, "test": 12 * 8}
    assert source.name == "synthetic"
    assert len({clip.clip_id for clip in source.clips}) == len(source.clips)
    assert len({clip.recording for clip in source.clips}) == len(source.clips)


def test_the_bank_is_fixed_by_its_seed_and_counts():
    def bank(seed=0, count=2):
        return open_source("synthetic", SourceOptions(seed=seed, synthetic_clips=(count, 1, 1)))

    assert bank().fingerprint() == bank().fingerprint()
    assert len({bank().fingerprint(), bank(seed=1).fingerprint(), bank(count=3).fingerprint()}) == 3
    clip = bank().clips[0]
    np.testing.assert_array_equal(bank().load(clip, 16_000), bank(count=3).load(clip, 16_000))
    other = bank(seed=1).load(clip, 16_000)
    assert bank().load(clip, 16_000).tobytes() != other.tobytes()
