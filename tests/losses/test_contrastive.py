"""InfoNCE against hand-made and float64 values, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import (
    ContrastiveConfig,
    clamped_scale,
    in_batch_accuracy,
    info_nce,
    siglip,
)


def unit_rows(seed: int, rows: int = 6, width: int = 5) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=(rows, width))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


def test_two_orthogonal_pairs_by_hand():
    eye = jnp.eye(2)
    # Logits are [[s, 0], [0, s]]: each row costs log(1 + e^-s).
    for scale in (0.0, 1.0, 3.0):
        expected = np.log1p(np.exp(-scale))
        assert info_nce(eye, eye, jnp.float32(scale)) == pytest.approx(expected, rel=1e-6)


def test_against_float64():
    audio, text, scale = unit_rows(0), unit_rows(1), 7.0
    logits = scale * np.asarray(audio, np.float64) @ np.asarray(text, np.float64).T
    rows = -np.diagonal(log_softmax(logits, axis=1)).mean()
    columns = -np.diagonal(log_softmax(logits, axis=0)).mean()
    assert info_nce(audio, text, jnp.float32(scale)) == pytest.approx(
        0.5 * (rows + columns), rel=1e-5
    )


def test_equal_meanings_are_positives_by_hand():
    # Three scenes, the first two mean the same and have the same embeddings.
    x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scale = 2.0
    e = np.exp(scale)
    # Rows 0 and 1 see logits (s, s, 0), target (1/2, 1/2, 0); row 2 sees (0, 0, s).
    expected = (2 * -np.log(e / (2 * e + 1)) - np.log(e / (2 + e))) / 3
    got = info_nce(x, x, jnp.float32(scale), jnp.array([4, 4, 9]))
    assert got == pytest.approx(expected, rel=1e-6)


def test_same_meaning_is_never_pushed_apart():
    x = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    text = jnp.array([[0.6, 0.8], [0.6, 0.8]])
    gradient = jax.grad(lambda a: info_nce(a, text, jnp.float32(5.0), jnp.array([1, 1])))(x)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_order_of_the_batch_and_of_the_sides_is_nothing():
    audio, text, meaning = unit_rows(2), unit_rows(3), jnp.array([0, 0, 1, 2, 2, 3])
    scale = jnp.float32(9.0)
    loss = info_nce(audio, text, scale, meaning)
    order = jnp.array([3, 1, 5, 0, 4, 2])
    shuffled = info_nce(audio[order], text[order], scale, meaning[order])
    assert shuffled == pytest.approx(float(loss), rel=1e-6)
    assert info_nce(text, audio, scale, meaning) == pytest.approx(float(loss), rel=1e-6)


def test_scale_is_clamped_at_both_ends():
    config = ContrastiveConfig()
    assert clamped_scale(jnp.log(20.0), config) == pytest.approx(20.0)
    assert clamped_scale(jnp.float32(50.0), config) == 100.0
    assert clamped_scale(jnp.float32(-50.0), config) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("logit", "upwards", "downwards"),
    [(2.0, True, True), (4.7, False, True), (89.0, False, True), (-5.0, True, False)],
)
def test_a_scale_beyond_its_bounds_comes_back(logit, upwards, downwards):
    """Descent on a loss that falls with the scale, and on one that rises."""
    config = ContrastiveConfig()

    def moved(sign):
        loss = lambda x: sign * clamped_scale(x, config)  # noqa: E731
        return -float(jax.grad(loss)(jnp.float32(logit)))

    assert (moved(-1.0) > 0) == upwards
    assert (moved(1.0) < 0) == downwards
    assert np.isfinite([moved(1.0), moved(-1.0)]).all()


def test_the_gradient_of_a_scale_within_its_bounds_is_its_own():
    config = ContrastiveConfig()
    gradient = jax.grad(lambda x: clamped_scale(x, config) ** 2)(jnp.log(20.0))
    assert gradient == pytest.approx(2 * 20.0**2, rel=1e-5)


def test_assignment_compares_within_groups_only():
    # Rows 0 and 1 are one group with its captions swapped; rows 2 and 3 are right.
    audio = jnp.eye(4)
    text = jnp.eye(4)[jnp.array([1, 0, 2, 3])]
    group, meaning = jnp.array([7, 7, 8, 8]), jnp.arange(4)
    accuracy = in_batch_accuracy(audio, text, group, meaning)
    assert accuracy["assignment"] == 0.5
    assert accuracy["retrieval"] == 0.5


def test_assignment_without_groups_is_not_a_number():
    accuracy = in_batch_accuracy(jnp.eye(3), jnp.eye(3), jnp.arange(3), jnp.arange(3))
    assert np.isnan(accuracy["assignment"])
    assert accuracy["retrieval"] == 1.0


def test_each_direction_has_its_own_scale():
    rng = np.random.default_rng(3)
    audio, text = (rng.normal(size=(5, 4)) for _ in range(2))
    audio, text = (
        jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
        for x in (audio, text)
    )
    low, high = jnp.float32(2.0), jnp.float32(9.0)
    mixed = info_nce(audio, text, low, None, high)
    # The audio-to-text half of the one and the text-to-audio half of the other.
    cosines = np.asarray(audio @ text.T, np.float64)

    def half(logits):
        return -np.mean(np.diag(logits) - np.log(np.exp(logits).sum(axis=1)))

    assert float(mixed) == pytest.approx((half(2 * cosines) + half(9 * cosines.T)) / 2, rel=1e-5)
    same = info_nce(audio, text, low, None, low)
    assert float(same) == pytest.approx(float(info_nce(audio, text, low)), rel=1e-6)


def test_siglip_by_hand():
    eye = jnp.eye(2)
    # Two true pairs with logit s + b, two wrong ones with logit b.
    for scale, bias in ((0.0, 0.0), (3.0, -1.0), (10.0, -10.0)):
        expected = np.log1p(np.exp(-(scale + bias))) + np.log1p(np.exp(bias))
        got = siglip(eye, eye, jnp.float32(scale), jnp.float32(bias))
        assert got == pytest.approx(expected, rel=1e-6)


def test_siglip_takes_equal_meanings_for_true_pairs():
    audio, text = unit_rows(0), unit_rows(1)
    meaning = jnp.array([0, 0, 1, 2, 2, 2])
    logits = 5.0 * np.asarray(audio, np.float64) @ np.asarray(text, np.float64).T - 2.0
    sign = np.where(np.equal.outer(np.asarray(meaning), np.asarray(meaning)), 1, -1)
    expected = np.log1p(np.exp(-sign * logits)).sum() / 6
    assert siglip(audio, text, jnp.float32(5.0), jnp.float32(-2.0), meaning) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_negative_weight_of_rivals_is_refused():
    with pytest.raises(InputError, match=r"loss\.rival_weight: -0\.5 is negative"):
        ContrastiveConfig(rival_weight=-0.5)
