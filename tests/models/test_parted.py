"""What is shared between parts, and what each part hears."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.parted import PartedCnn, PartedCnnConfig, in_context

CONFIG = PartedCnnConfig(
    patch=(2, 4),
    channels=(6,),
    pools=((1, 2),),
    parts=3,
    frame_width=8,
    context=3,
    heads=2,
    width=4,
)
PLANES = np.random.default_rng(0).normal(size=(2, 7, 17, 3)).astype(np.float32)

encode = jax.jit(
    lambda config, variables, x: PartedCnn(config).apply(variables, x, False), static_argnums=0
)


@pytest.fixture(scope="module")
def variables():
    """Weights far from their first values, running statistics too."""
    drawn = PartedCnn(CONFIG).init(jax.random.key(0), PLANES, train=False)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(leaf) + 0.5 * rng.random(leaf.shape), jnp.float32), drawn
    )


def with_share(variables, kernel, bias):
    params = {**variables["params"], "share": {"kernel": kernel, "bias": bias}}
    return {**variables, "params": params}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": 0}, "parts: 0; give at least 1"),
        ({"context": 4}, "context: 4 must be odd"),
        ({"heads": 5}, "heads: 5 does not divide the width 4"),
    ],
)
def test_shapes_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_one_vector_a_part_side_by_side(variables):
    assert encode(CONFIG, variables, PLANES).shape == (2, 3 * 4)


def test_parts_have_no_order(variables):
    """Exchanging the columns of the shares exchanges the vectors of the parts."""
    share, order = variables["params"]["share"], np.array([2, 0, 1])
    moved = with_share(variables, share["kernel"][:, order], share["bias"][order])
    expected = encode(CONFIG, variables, PLANES).reshape(2, 3, 4)[:, order]
    assert np.ptp(expected, axis=1).max() > 1e-3
    found = encode(CONFIG, moved, PLANES).reshape(2, 3, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_part_that_has_everything_is_heard_as_if_there_were_no_others(variables):
    share = variables["params"]["share"]
    all_to_one = jnp.array([0.0, 100.0, 0.0])
    taken = with_share(variables, jnp.zeros_like(share["kernel"]), all_to_one)
    alone = with_share(variables, share["kernel"][:, :1], share["bias"][:1])
    whole = encode(dataclasses.replace(CONFIG, parts=1), alone, PLANES)
    parts = encode(CONFIG, taken, PLANES).reshape(2, 3, 4)
    np.testing.assert_allclose(parts[:, 1], whole, atol=1e-5)
    # The others hear nothing, the same of every recording.
    np.testing.assert_allclose(parts[0, 0], parts[1, 2], atol=1e-5)


def test_the_highest_bin_that_fills_no_patch_is_left_out(variables):
    changed = PLANES.copy()
    changed[:, :, -1] += 100.0
    np.testing.assert_array_equal(
        encode(CONFIG, variables, PLANES), encode(CONFIG, variables, changed)
    )
    changed[:, :, -2] += 1.0
    assert np.abs(encode(CONFIG, variables, changed) - encode(CONFIG, variables, PLANES)).max() > 0


def test_a_frame_is_heard_with_its_neighbours():
    kernel = jnp.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    heard = in_context(jnp.array([[[1.0], [2.0], [3.0]]]), kernel)
    np.testing.assert_array_equal(heard[0, :, 0], [210.0, 321.0, 32.0])
