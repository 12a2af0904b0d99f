"""ELSA's branch: its published size, pooling by hand, coordinates, and the static statistics."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.intensity import Intensity
from spatial_clap_jax.models.spatial_attributes import (
    IntensityCnn,
    SpatialAttributes,
    SpatialAttributesConfig,
    max_pool,
    static_statistics,
    with_coordinates,
)

statistics = jax.jit(static_statistics, static_argnums=1)

TINY = SpatialAttributesConfig(
    patch=(2, 4),
    channels=(4, 6),
    pools=((1, 2), (2, 1)),
    hears_level=True,
    pooling="attention",
    heads=2,
    width=8,
    hidden=(10,),
)


def intensity(b=3, frames=9, bands=16, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    active = draw(b, frames, bands, 3)
    active /= np.linalg.norm(active, axis=-1, keepdims=True)
    return Intensity(active, draw(b, frames, bands, 3), 10 * draw(b, frames, bands))


def test_the_branch_has_its_published_size():
    ten_seconds = jax.ShapeDtypeStruct((2, 1601, 201, 3), jnp.float32)
    level = jax.ShapeDtypeStruct((2, 1601, 201), jnp.float32)
    branch = SpatialAttributes(SpatialAttributesConfig())
    planes = Intensity(ten_seconds, ten_seconds, level)
    shapes = jax.eval_shape(lambda x: branch.init(jax.random.key(0), x, None, False), planes)
    params = shapes["params"]
    # Two CNNs of 12,528, and 2400-128-32-44.
    assert params["hidden0"]["kernel"].shape == (2400, 128)
    assert params["hidden1"]["kernel"].shape == (128, 32)
    assert params["active"]["block0"]["conv"]["kernel"].shape == (3, 3, 5, 16)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 337_964


def test_max_pool_is_flaxs_and_has_its_gradient():
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def pooled(function, pool, x):
        value, back = jax.vjp(lambda x: function(x, pool), x)
        return value, *back(value)

    for pool in ((2, 2), (3, 1)):
        theirs = pooled(lambda x, pool: nn.max_pool(x, pool, pool), pool, x)
        for mine, other in zip(pooled(max_pool, pool, x), theirs, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_coordinates_by_hand():
    found = with_coordinates(jnp.zeros((2, 3, 5, 1)))
    assert found.shape == (2, 3, 5, 3)
    np.testing.assert_allclose(found[1, :, 4, 1], [-1, 0, 1])
    np.testing.assert_allclose(found[0, 2, :, 2], [-1, -0.5, 0, 0.5, 1])


@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY, pooling="flatten", patch=None)])
def test_each_recording_is_heard_by_itself(config):
    x = intensity()
    branch = SpatialAttributes(config)
    variables = jax.jit(branch.init, static_argnums=3)(jax.random.key(0), x, x.level_db, False)
    apply = jax.jit(lambda v, x: branch.apply(v, x, x.level_db, False))
    many = apply(variables, x)
    assert many.shape == (3, 44)
    turned = apply(variables, jax.tree.map(lambda leaf: leaf[::-1], x))
    np.testing.assert_allclose(turned[::-1], many, atol=1e-5)
    # Each of the three planes is heard.
    for changed in (
        x._replace(active=x.active[:, ::-1]),
        x._replace(reactive=-x.reactive),
        x._replace(level_db=x.level_db[:, ::-1]),
    ):
        assert np.abs(apply(variables, changed) - many).max() > 1e-4


def test_training_drops_and_updates_statistics():
    x, cnn = intensity().active, IntensityCnn(TINY)
    variables = jax.jit(cnn.init, static_argnums=2)(jax.random.key(0), x, False)
    train = jax.jit(lambda v, x: cnn.apply(v, x, True, mutable=["batch_stats"]))
    _, updated = train(variables, x)
    before = variables["batch_stats"]["block0"]["norm"]["mean"]
    assert np.abs(updated["batch_stats"]["block0"]["norm"]["mean"] - before).max() > 1e-4


def test_static_statistics_by_hand():
    # Two frames, two bands, each a band of its own; the second frame is 10 dB louder in band 0.
    ahead, left = [1, 0, 0], [0, 1, 0]
    active = np.array([[[ahead, ahead], [left, ahead]]], np.float32)
    reactive = np.zeros((1, 2, 2, 3), np.float32)
    reactive[0, 0, 1] = [0, 0, 7]
    level = np.array([[[0, 0], [10, 0]]], np.float32)
    found = statistics(Intensity(active, reactive, level), 2).reshape(2, 6)
    np.testing.assert_allclose(found[0], [1 / 11, 10 / 11, 0, 0, 0, 0], atol=1e-6)
    # The long reactive vector counts as one of length 1.
    np.testing.assert_allclose(found[1], [1, 0, 0, 0, 0, 0.5], atol=1e-6)


def test_statistics_know_neither_gain_nor_order_in_time():
    x = intensity()
    expected = statistics(x, 5)
    assert expected.shape == (3, 30)
    louder = x._replace(level_db=x.level_db + 20)
    backwards = jax.tree.map(lambda leaf: leaf[:, ::-1], x)
    for other in (louder, backwards):
        np.testing.assert_allclose(statistics(other, 5), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pools": ((2, 2),)}, r"attributes\.pools: 1 for 2 blocks of channels; give one to each"),
        ({"heads": 3}, r"attributes\.heads: 3 does not divide the width 8"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TINY, **changes)
