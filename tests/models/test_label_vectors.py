"""Scenes told by labels: a sum of free vectors."""

import jax
import numpy as np
import pytest

from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.label_vectors import LabelsConfig, LabelVectors

CONFIG = LabelsConfig(("dog", "rain", "bell"))


def test_a_scene_is_the_sum_of_its_events():
    vectors = LabelVectors(CONFIG, width=7)
    events = np.zeros((4, *CONFIG.events), np.float32)
    events[0, 0, 1] = events[1, 2, 4] = 1.0
    events[2] = events[0] + events[1]
    params = vectors.init(jax.random.key(0), events)
    told = np.asarray(vectors.apply(params, events))
    assert told.shape == (4, 7)
    np.testing.assert_allclose(told[2], told[0] + told[1], rtol=1e-6)
    np.testing.assert_array_equal(told[3], 0.0)


def test_every_class_has_a_vector_of_its_own_in_every_direction():
    vectors = LabelVectors(CONFIG, width=7)
    pairs = len(CONFIG.classes or ()) * len(STEREO_DIRECTIONS)
    events = np.eye(pairs, dtype=np.float32).reshape(pairs, *CONFIG.events)
    params = vectors.init(jax.random.key(0), events)
    assert len(np.unique(np.asarray(vectors.apply(params, events)), axis=0)) == pairs


def test_a_class_is_named_once():
    with pytest.raises(InputError, match=r"model\.text\.classes: .* name one twice; name each onc"):
        LabelsConfig(("dog", "dog"))
