"""The loss of masked prediction against float64 NumPy, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from spatial_clap_jax.losses.masked import masked_prediction_loss


def _reference(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """As the paper writes it, in float64."""
    predicted, target = predicted.astype(np.float64), target.astype(np.float64)
    mean = target.mean(axis=-1, keepdims=True)
    variance = target.var(axis=-1, ddof=1, keepdims=True)
    target = (target - mean) / np.sqrt(variance + 1e-6)
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    predicted = predicted / np.linalg.norm(predicted, axis=-1, keepdims=True)
    return ((predicted - target) ** 2).sum(axis=-1).mean(axis=-1)


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    # Tokens far from zero, and one that hardly varies, where the epsilon counts.
    return predicted, np.concatenate([target[:, :4] * 3 + 7, target[:, 4:] * 1e-3], axis=1)


def test_it_is_the_papers():
    predicted, target = _arrays()
    ours = masked_prediction_loss(jnp.asarray(predicted), jnp.asarray(target))
    np.testing.assert_allclose(ours, _reference(predicted, target), rtol=2e-6)


def test_by_hand():
    target = jnp.array([[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]])
    for predicted, loss in (([-2.0, 0, 2], 0.0), ([0, 5.0, 0], 2.0), ([1.0, 0, -1], 4.0)):
        tokens = jnp.array([[predicted, predicted]])
        np.testing.assert_allclose(masked_prediction_loss(tokens, target), [loss], atol=1e-5)


def test_the_length_of_neither_counts():
    predicted, target = map(jnp.asarray, _arrays())
    loss = masked_prediction_loss(predicted, target[:, :4].repeat(2, 1)[:, :5])
    scaled = masked_prediction_loss(9 * predicted, 5 * target[:, :4].repeat(2, 1)[:, :5] - 2)
    np.testing.assert_allclose(scaled, loss, rtol=1e-4)


def test_only_the_prediction_has_a_gradient():
    predicted, target = map(jnp.asarray, _arrays())
    loss = lambda *arrays: masked_prediction_loss(*arrays).sum()  # noqa: E731
    to_predicted, to_target = jax.grad(loss, argnums=(0, 1))(predicted, target)
    assert (to_target == 0).all()
    assert (jnp.abs(to_predicted).sum(axis=-1) > 0).all()
    # Of a direction, along which nothing is won.
    np.testing.assert_allclose((to_predicted * predicted).sum(axis=-1), 0, atol=1e-5)


def test_predictions_of_nothing_have_no_nan():
    nothing = jnp.zeros((1, 2, 4))
    value, gradient = jax.value_and_grad(lambda x: masked_prediction_loss(x, x).sum())(nothing)
    assert value == 2
    assert jnp.isfinite(gradient).all()
