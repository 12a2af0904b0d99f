"""Losses of categories by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.losses.labels import label_loss, top_label_accuracy

LOGITS = jnp.array([[0.0, 0.0], [3.0, -1.0], [2.0, 5.0]])
CATEGORIES = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])


def test_cross_entropy_by_hand():
    log = lambda x: np.log1p(np.exp(-x))  # noqa: E731
    # The last clip has no category: it says nothing of any class.
    expected = np.mean([[np.log(2), np.log(2)], [log(3.0), log(-1.0)]])
    assert float(label_loss(LOGITS, CATEGORIES)) == pytest.approx(expected, rel=1e-6)
    gradient = jax.grad(label_loss)(LOGITS, CATEGORIES)
    np.testing.assert_allclose(gradient[0], [-0.125, 0.125], rtol=1e-5)
    assert (gradient[2] == 0).all()


def test_shares_pull_as_much_as_they_are():
    """The best logit of a class that a quarter of a clip is of tells so."""
    share = jnp.array([[0.25]])
    gradient = jax.grad(label_loss)(jnp.log(share / (1 - share)), share)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_the_best_class_is_right_where_it_is_one_of_the_clips():
    # The first is a draw that the first class wins.
    assert float(top_label_accuracy(LOGITS, CATEGORIES)) == 1.0
    mixed = jnp.array([[0.7, 0.3], [0.2, 0.8], [0.0, 0.0]])
    assert float(top_label_accuracy(LOGITS, mixed)) == 0.5
