"""Levels and their augmentation, by hand and by law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.systems.content import (
    Augmentation,
    SpecAugmentConfig,
    below_peak,
    random_equaliser,
)


def test_below_peak_by_hand_and_blind_to_gain():
    level = jnp.array([[[-10.0, -50.0], [-200.0, -90.0]]])
    np.testing.assert_allclose(below_peak(level), [[[2.0, 0.0], [-2.0, -2.0]]])
    np.testing.assert_allclose(below_peak(level + 13.0), below_peak(level), atol=1e-6)


def test_equaliser_has_the_spread_that_was_asked_for():
    curves = random_equaliser(jax.random.key(0), 2000, 64, spread=0.3)
    assert float(jnp.sqrt((curves**2).mean())) == pytest.approx(0.3, rel=0.05)
    # Smooth: neighbours differ by little.
    assert float(jnp.abs(jnp.diff(curves, axis=1)).max()) < 0.2


def test_nothing_is_drawn_in_evaluation():
    level = jnp.ones((2, 3, 4))
    evaluated = Augmentation(SpecAugmentConfig(), 6.0, None)
    assert evaluated.equalised(level) is level
    assert evaluated.masked(level) is level


def test_masks_hide_behind_the_mean():
    level = jnp.arange(2 * 30 * 8.0).reshape(2, 30, 8)
    masks = SpecAugmentConfig(time_masks=1, time_width=10, frequency_masks=0)
    hidden = Augmentation(masks, 0.0, lambda: jax.random.key(2)).masked(level)
    changed = np.asarray(hidden != level).all(axis=2)
    assert changed.any()
    mean = np.broadcast_to(level.mean(axis=(1, 2), keepdims=True), level.shape)
    np.testing.assert_allclose(hidden[changed], mean[changed], rtol=1e-6)
