import numpy as np
import pytest

from spatial_clap_jax.metrics.zero_shot import (
    assignment_hits,
    choose,
    confusion_matrix,
    prototype,
)


def test_the_highest_wins_and_ties_are_wrong():
    scores = np.array([[0.7, 0.1, 0.2], [0.1, 0.7, 0.2], [0.5, 0.1, 0.5], [0.2, 0.2, 0.2]])
    chosen = choose(scores, np.array([0, 0, 0, 1]))
    np.testing.assert_array_equal(chosen, [0, 1, 2, 0])


def test_a_lead_within_rounding_is_a_tie():
    assert choose(np.array([[0.5 + 1e-9, 0.5]]), np.array([0]))[0] == 1
    assert choose(np.array([[0.5 + 1e-4, 0.5]]), np.array([0]))[0] == 0


def test_choose_does_not_write_into_its_scores():
    scores = np.array([[0.7, 0.1]])
    choose(scores, np.array([0]))
    np.testing.assert_array_equal(scores, [[0.7, 0.1]])


def test_choose_refuses_nan():
    with pytest.raises(ValueError, match="scores hold NaN"):
        choose(np.array([[np.nan, 0.1]]), np.array([1]))


def test_prototype_is_the_unit_mean():
    np.testing.assert_allclose(prototype(np.eye(2)), [0.5**0.5, 0.5**0.5])
    np.testing.assert_array_equal(prototype(np.array([[1.0, 0.0], [-1.0, 0.0]])), [0, 0])


def test_assignment_by_hand():
    captions = np.eye(2)
    np.testing.assert_array_equal(assignment_hits(np.eye(2), captions), [True, True])
    np.testing.assert_array_equal(assignment_hits(np.eye(2)[::-1], captions), [False, False])
    always_first = np.array([[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(assignment_hits(always_first, captions), [True, False])
    np.testing.assert_array_equal(assignment_hits(captions, np.ones((2, 2))), [False, False])


def test_random_assignment_reaches_one_in_p():
    rng = np.random.default_rng(0)
    hits = [
        assignment_hits(rng.standard_normal((6, 8)), rng.standard_normal((6, 8)))
        for _ in range(1000)
    ]
    assert np.mean(hits) == pytest.approx(1 / 6, abs=0.02)


def test_confusion_has_the_truth_in_rows():
    counts = confusion_matrix(np.array([0, 0, 0, 2]), np.array([0, 1, 1, 2]), 3)
    np.testing.assert_array_equal(counts, [[1, 2, 0], [0, 0, 0], [0, 0, 1]])
