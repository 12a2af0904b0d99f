"""Test scenes under the conditions of a study."""

import numpy as np
import pytest

from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.study import Noise, Phrases
from spatial_clap_jax.study.conditions import changed


def test_noise_has_its_level_and_is_the_same_at_every_reading(tiny_scenes):
    scenes = open_scenes(tiny_scenes)
    plain = scenes.source("test_k2")[0].waveforms()
    noisy = changed(Noise("n", "", 10.0), scenes, 4, 4).source("test_k2")
    added = noisy[0].waveforms() - plain
    power = (plain**2).mean(axis=(1, 2))
    noise = (added**2).mean(axis=2)
    np.testing.assert_allclose(10 * np.log10(power[:, None] / noise), 10.0, atol=0.1)
    np.testing.assert_array_equal(noisy[0].audio, noisy[0].audio)
    assert not np.array_equal(added[0, 0], added[0, 1])


def test_other_phrases_change_captions_alone(tiny_scenes):
    scenes = open_scenes(tiny_scenes)
    plain = scenes.source("test_k1")[0]
    told = changed(Phrases("p", "", "from"), scenes, 4, 4).source("test_k1")[0]
    assert told.captions != plain.captions
    assert " from the " in told.captions[0]
    np.testing.assert_array_equal(told.audio, plain.audio)


def test_the_unchanged_are_the_first_test_scenes(tiny_scenes):
    scenes = open_scenes(tiny_scenes)
    seen = changed(None, scenes, 3, 4).source("test_k1")
    assert len(seen) == 3
    for index, group in enumerate(seen):
        plain = scenes.source("test_k1")[index]
        assert (group.scene_id, group.captions) == (plain.scene_id, plain.captions)
        np.testing.assert_array_equal(group.audio, plain.audio)


def test_only_as_many_test_scenes_are_seen_as_asked(tiny_scenes):
    scenes = open_scenes(tiny_scenes)
    seen = changed(Noise("n", "", 10.0), scenes, 3, 4)
    assert sorted(seen.splits) == ["test_k1", "test_k2"]
    assert len(seen.source("test_k1")) == 3
    assert len(seen.source("test_k2")) == 4
    with pytest.raises(IndexError):
        seen.source("test_k1")[3]
