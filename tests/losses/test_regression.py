"""Regression losses by hand, masks, and the map of directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.losses import regression
from spatial_clap_jax.losses.regression import (
    angle_deg,
    attribute_errors,
    direction_loss,
    direction_of_map,
    log_ratio_loss,
    normalised_attributes,
)

errors_of = jax.jit(attribute_errors)
normalised = jax.jit(normalised_attributes)

AHEAD, LEFT, UP = np.eye(3, dtype=np.float32)


def attributes(azimuth_deg=0.0, elevation_deg=0.0, distance_m=2.0, volume_m3=200.0, **bands):
    drr, t30 = (np.full(20, bands.get(name, value)) for name, value in (("drr", 0), ("t30", 0.5)))
    single = [azimuth_deg, elevation_deg, distance_m, volume_m3]
    return jnp.asarray(np.concatenate([single, drr, t30])[None], jnp.float32)


def test_direction_loss_by_hand_and_of_any_length():
    predicted = jnp.array([5 * AHEAD, 0.1 * LEFT, -UP, UP])
    target = jnp.array([AHEAD, AHEAD, UP, UP])
    known = jnp.array([True, True, True, False])
    assert float(direction_loss(predicted, target, known)) == pytest.approx((0 + 1 + 2) / 3)
    assert float(direction_loss(7 * predicted, target, known)) == pytest.approx(1.0)
    np.testing.assert_allclose(angle_deg(predicted, target), [0, 90, 180, 0], atol=1e-4)


def test_a_factor_costs_as_much_up_as_down():
    known = jnp.array([True, True, False])
    predicted = jnp.log(jnp.array([2.0, 0.5, 9.0]))
    target = jnp.array([2.0, 2.0, 0.0])
    loss = float(log_ratio_loss(predicted, target, 2.0, known))
    assert loss == pytest.approx(np.log(2) ** 2)


@pytest.mark.parametrize("of", ["direction", "log_ratio", "attributes"])
def test_what_is_unknown_has_no_weight_and_no_gradient(of):
    known = jnp.array([True, False])

    def loss(predicted, junk):
        if of == "direction":
            target = jnp.stack([jnp.asarray(LEFT), jnp.full(3, junk)])
            return direction_loss(predicted[:, :3], target, known)
        if of == "log_ratio":
            return log_ratio_loss(predicted[:, 0], jnp.array([1.5, junk]), 2.0, known)
        rows = jnp.concatenate([attributes(30.0), jnp.full((1, 44), jnp.nan)])
        return sum(attribute_errors(predicted, rows))

    predicted = jnp.asarray(np.random.default_rng(0).normal(size=(2, 44)), jnp.float32)
    gradient = jax.jit(jax.grad(loss))
    found = gradient(predicted, 0.0)
    assert np.abs(found[0]).max() > 0
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_array_equal(found, gradient(predicted, -3.0))


def test_nothing_known_costs_nothing():
    none = jnp.zeros(2, bool)
    assert float(direction_loss(jnp.ones((2, 3)), jnp.zeros((2, 3)), none)) == 0
    assert float(log_ratio_loss(jnp.ones(2), jnp.zeros(2), 2.0, none)) == 0
    unknown = jnp.full((2, 44), jnp.nan)
    assert [float(e) for e in errors_of(jnp.ones((2, 44)), unknown)] == [0.0] * 5


def test_attributes_are_normalised_as_said():
    middle = normalised(attributes())
    np.testing.assert_allclose(middle, [[1, *[0] * 43]], atol=1e-6)
    other = normalised(
        attributes(90.0, 0.0, 2 * np.e**0.5, 200 * np.e**0.8, drr=-10.0, t30=0.5 * np.e**0.6)
    )
    np.testing.assert_allclose(other, [[0, 1, 1, 1, *[-1] * 20, *[1] * 20]], atol=1e-5)
    # No cut behind: two sources on either side of it are neighbours.
    one, two = (normalised(attributes(a))[0, :2] for a in (179.9, -179.9))
    assert np.abs(one - two).max() < 0.01


def test_the_map_has_a_way_back():
    rng = np.random.default_rng(1)
    azimuth, elevation = rng.uniform(-180, 180, 50), rng.uniform(-80, 89, 50)
    rows = jnp.zeros((50, 44)).at[:, 0].set(azimuth).at[:, 1].set(elevation)
    a, e = np.radians(azimuth), np.radians(elevation)
    true = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=1)
    np.testing.assert_allclose(direction_of_map(normalised(rows)[:, :2]), true, atol=1e-5)
    np.testing.assert_allclose(direction_of_map(jnp.array([[9.0, 0.0]])), [[0, 0, -1]], atol=1e-6)


def test_bands_weigh_no_more_than_a_distance():
    target = attributes()
    right = normalised(target)
    off = errors_of(right.at[:, 2].add(1).at[:, 4:24].add(1), target)
    assert [float(e) for e in off] == pytest.approx([0, 1, 0, 1, 0])
    # A band that could not be measured is left out of the mean over bands.
    hole = errors_of(right.at[0, 4].add(9).at[0, 5].add(2), target.at[0, 4].set(jnp.nan))
    assert float(hole.drr) == pytest.approx(4 / 19)
    assert regression.masked_mean(jnp.ones(3), jnp.ones(3, bool)) == 1
