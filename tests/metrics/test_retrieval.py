import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from spatial_clap_jax.metrics.captions import caption_outcomes
from spatial_clap_jax.metrics.retrieval import (
    average_precision,
    chance_average_precision,
    chance_recall,
    relevant_ranks,
    similarity,
)


def test_ranks_by_hand():
    scores = np.array(
        [
            [0.9, 0.1, 0.5, 0.3],  # its own item is first
            [0.9, 0.1, 0.5, 0.3],  # the better of two relevant ones is third
            [0.9, 0.1, 0.5, 0.3],  # the only relevant one is last
        ]
    )
    relevant = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]], bool)
    np.testing.assert_array_equal(relevant_ranks(scores, relevant), [1, 3, 4])


def test_ties_go_against_the_query_wherever_the_relevant_item_stands():
    scores = np.full((2, 3), 0.5)
    relevant = np.array([[1, 0, 0], [0, 0, 1]], bool)
    np.testing.assert_array_equal(relevant_ranks(scores, relevant), [3, 3])
    rounded = np.array([[0.5 + 1e-9, 0.5, 0.4]])
    np.testing.assert_array_equal(relevant_ranks(rounded, relevant[:1]), [2])


def test_equal_relevant_items_do_not_harm_each_other():
    relevant = np.array([[1, 1, 0]], bool)
    np.testing.assert_array_equal(relevant_ranks(np.array([[0.5, 0.5, 0.4]]), relevant), [1])


def test_order_of_the_gallery_changes_nothing():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (20, 30)) / 4  # many ties
    relevant = rng.integers(0, 6, (20, 1)) == np.arange(30) % 6
    order = rng.permutation(30)
    np.testing.assert_array_equal(
        relevant_ranks(scores, relevant), relevant_ranks(scores[:, order], relevant[:, order])
    )


def test_perfect_embeddings_are_always_first():
    meaning = np.arange(12) % 5
    vectors = np.eye(5)[meaning]
    relevant = meaning[:, None] == meaning
    assert (relevant_ranks(similarity(vectors, vectors), relevant) == 1).all()


@pytest.mark.parametrize("k", [1, 5, 10])
def test_random_embeddings_reach_chance(k):
    rng = np.random.default_rng(k)
    meaning = rng.integers(0, 30, 60)
    relevant = meaning[:, None] == meaning
    hits = [relevant_ranks(rng.random((60, 60)), relevant) <= k for _ in range(400)]
    assert np.mean(hits) == pytest.approx(chance_recall(relevant, k), abs=0.02)


def test_chance_against_every_order_of_a_small_gallery():
    relevant = np.array([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]], bool)
    for k in (1, 2, 3, 5, 9):
        seen = [
            relevant[:, list(order[:k])].any(axis=1) for order in itertools.permutations(range(5))
        ]
        assert chance_recall(relevant, k) == pytest.approx(np.mean(seen))


def test_similarity_is_the_cosine_of_unit_vectors():
    scores = similarity(np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0], [0.6, 0.8]]))
    np.testing.assert_allclose(scores, [[0.0, 0.6], [0.8, 1.0]])


def test_unusable_scores_are_refused():
    relevant = np.eye(2, dtype=bool)
    with pytest.raises(ValueError, match="scores hold NaN"):
        relevant_ranks(np.array([[0.1, np.nan], [0, 0]]), relevant)
    with pytest.raises(ValueError, match="a query has no relevant item"):
        relevant_ranks(np.zeros((2, 2)), np.array([[1, 0], [0, 0]], bool))


def test_average_precision_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]] * 3)
    relevant = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]], bool)
    np.testing.assert_allclose(average_precision(scores, relevant, 10), [(1 + 2 / 3) / 2, 1 / 4, 1])
    # Cut at two: what comes later counts for nothing, and at most two could have been found.
    np.testing.assert_allclose(average_precision(scores, relevant, 2), [1 / 2, 0, 1])


def test_average_precision_where_nothing_is_cut_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, relevant = rng.random((20, 12)), rng.random((20, 12)) < 0.3
    relevant[:, 0] = True
    expected = [average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(average_precision(scores, relevant, 12), expected)


def test_ties_cost_average_precision():
    relevant = np.array([[1, 0, 1]], bool)
    equal = average_precision(np.full((1, 3), 0.5), relevant, 10)
    np.testing.assert_allclose(equal, [(1 / 2 + 2 / 3) / 2])
    rounded = average_precision(np.array([[0.5 + 1e-9, 0.5, 0.4]]), relevant, 10)
    np.testing.assert_allclose(rounded, equal)
    with pytest.raises(ValueError, match="scores hold NaN"):
        average_precision(np.array([[np.nan, 0.1, 0]]), relevant, 10)
    with pytest.raises(ValueError, match="a query has no relevant item"):
        average_precision(np.zeros((1, 3)), np.zeros((1, 3), bool), 10)


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_chance_of_average_precision_against_every_order(k):
    relevant = np.array([[1, 0, 0, 1], [0, 1, 0, 0]], bool)
    ranks = [list(order) for order in itertools.permutations([0.1, 0.2, 0.3, 0.4])]
    seen = [average_precision(np.array([order, order]), relevant, k) for order in ranks]
    assert chance_average_precision(relevant, k) == pytest.approx(np.mean(seen))


def test_all_captions_of_clips_by_hand():
    # Two captions of clip 0, two of clip 1, one of clip 2 that clip 1 has too.
    told = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]], bool)
    scores = np.array([[0.1, 0.8, 0.2], [0.7, 0.6, 0.1], [0.2, 0.9, 0.3], [0.6, 0.4, 0.5]])
    found = caption_outcomes(scores, told, (1, 2))
    # Queries in the order of captions, and of the clips of each.
    np.testing.assert_array_equal(found["t2a_all_r1"].hits, [False, True, True, False, False])
    np.testing.assert_array_equal(found["t2a_all_r2"].hits, [False, True, True, True, True])
    np.testing.assert_array_equal(found["t2a_all_r1"].cluster, [0, 0, 1, 1, 2])
    # Clip 0 hears its second caption first, clip 1 its first, clip 2 the one that it shares.
    np.testing.assert_array_equal(found["a2t_all_r1"].hits, [True, True, True])
    assert found["a2t_all_r1"].chance == pytest.approx((2 + 2 + 1) / 3 / 4)
    assert found["t2a_all_r1"].chance == pytest.approx((1 + 1 + 1 + 2 + 2) / 5 / 3)
    lower = caption_outcomes(scores - 0.5 * told, told, (1, 2))
    assert not lower["a2t_all_r1"].hits.any()
