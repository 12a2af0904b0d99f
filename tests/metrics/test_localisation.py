import numpy as np
import pytest

from spatial_clap_jax.acoustics.foa import unit_vectors
from spatial_clap_jax.metrics.localisation import (
    angular_error_deg,
    best_constant,
    fit_localiser,
)


def test_directions_by_hand():
    found = unit_vectors(np.array([0.0, 90.0, 180.0, 0.0]), np.array([0.0, 0.0, 0.0, 90.0]))
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-12)


def test_angles_by_hand():
    tiny = np.radians(1e-6)
    ahead, left = np.array([1.0, 0, 0]), np.array([0, 3.0, 0])
    # The last lies where arccos of the dot product has lost every digit.
    near = np.array([np.cos(tiny), np.sin(tiny), 0.0])
    predicted, target = np.stack([ahead, ahead, left, ahead]), np.stack([left, -ahead, left, near])
    np.testing.assert_allclose(angular_error_deg(predicted, target), [90, 180, 0, 1e-6])


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions, rng.uniform(0.5, 4.0, count)


def test_what_the_embeddings_hold_is_found():
    directions, distance_m = drawn(900, 0)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0]
    held = np.column_stack([directions, distance_m, np.zeros((900, 12))]) @ turn
    localiser = fit_localiser(held[:600], directions[:600], distance_m[:600])
    found, found_m = localiser.predict(held[600:])
    assert angular_error_deg(found, directions[600:]).mean() < 4
    assert np.abs(found_m - distance_m[600:]).mean() < 0.1
    again = fit_localiser(held[:600], directions[:600], distance_m[:600])
    np.testing.assert_array_equal(again.predict(held[600:])[0], found)


def test_embeddings_that_say_nothing_leave_a_right_angle():
    directions, distance_m = drawn(900, 2)
    nothing = np.random.default_rng(3).standard_normal((900, 16))
    localiser = fit_localiser(nothing[:600], directions[:600], distance_m[:600])
    found, _ = localiser.predict(nothing[600:])
    assert angular_error_deg(found, directions[600:]).mean() == pytest.approx(90, abs=8)


def test_a_few_scenes_are_enough_to_run():
    directions, distance_m = drawn(4, 4)
    localiser = fit_localiser(directions, directions, np.full_like(distance_m, 2.0))
    found, found_m = localiser.predict(directions)
    assert found.shape == (4, 3)
    assert np.isfinite(found).all()
    assert np.isfinite(found_m).all()


def test_the_best_constant_lies_among_the_most():
    around = unit_vectors(np.array([75.0, 90.0, 100.0, 110.0, 95.0]), np.zeros(5))
    np.testing.assert_array_equal(best_constant(around), around[4])
