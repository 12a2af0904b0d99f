"""Folding and pooling of the small content encoder, by hand and by law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.models.cnn import AttentionPool, Cnn, CnnConfig, ConvBlock, fold_patches


def test_fold_patches_by_hand():
    x = jnp.arange(3 * 4).reshape(1, 3, 4, 1)
    folded = fold_patches(x, (2, 2))
    # Frames 0 and 1 make the first row; frame 2 and a zero frame the second.
    assert folded.shape == (1, 2, 2, 4)
    assert folded[0, 0, 0].tolist() == [0, 1, 4, 5]
    assert folded[0, 0, 1].tolist() == [2, 3, 6, 7]
    assert folded[0, 1, 1].tolist() == [10, 11, 0, 0]


def test_equal_scores_pool_to_the_mean_of_the_values():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    pool = AttentionPool(heads=2, width=4)
    params = pool.init(jax.random.key(1), x)["params"]
    params["score"] = jax.tree.map(jnp.zeros_like, params["score"])
    value = params["value"]
    values = jnp.einsum("bnd,hde->bnhe", x, value["kernel"]) + value["bias"]
    values = values.reshape(*x.shape[:2], -1)
    np.testing.assert_allclose(pool.apply({"params": params}, x), values.mean(1), atol=1e-6)


def test_a_head_can_pick_one_position():
    x = jnp.zeros((1, 4, 2)).at[0, 2].set(jnp.array([1.0, 3.0]))
    params = {
        "score": {"kernel": jnp.array([[100.0], [0.0]]), "bias": jnp.zeros(1)},
        "value": {"kernel": jnp.eye(2)[None], "bias": jnp.zeros((1, 2))},
    }
    picked = AttentionPool(heads=1, width=2).apply({"params": params}, x)
    np.testing.assert_allclose(picked, [[1.0, 3.0]], atol=1e-6)


def test_orders_of_a_block_differ_as_said():
    x = jnp.full((1, 2, 2, 1), -1.0)
    block = ConvBlock(1, (1, 1), "activation_first")
    variables = block.init(jax.random.key(0), x, False)
    variables["params"]["conv"]["kernel"] = jnp.ones((3, 3, 1, 1))
    # ReLU comes before the norm, so a negative sum gives exactly the norm's bias.
    np.testing.assert_allclose(block.apply(variables, x, False), 0.0)
    norm_first = ConvBlock(1, (1, 1), "norm_first")
    variables = norm_first.init(jax.random.key(0), x, False)
    assert "bias" not in variables["params"]["conv"]


@pytest.mark.slow
def test_batch_of_one_equals_a_batch_of_many():
    config = CnnConfig(channels=(8, 8), pools=((1, 2), (2, 2)), width=16, heads=2)
    x = jax.random.normal(jax.random.key(0), (4, 21, 16))
    variables = Cnn(config).init(jax.random.key(1), x, False)
    run = jax.jit(lambda x: Cnn(config).apply(variables, x, False))
    many = run(x)
    for row, pooled, frames in zip(x, *many, strict=True):
        alone = run(row[None])
        np.testing.assert_allclose(alone.pooled[0], pooled, atol=1e-6)
        np.testing.assert_allclose(alone.frames[0], frames, atol=1e-6)
    # 21 frames in patches of 4, and two of these pooled: the last one fills no pair.
    assert config.frame_stride == 8
    assert many.frames.shape == (4, 3, 16)
