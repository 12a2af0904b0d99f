import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.text import (
    TextConfig,
    TextEncoder,
    alibi_bias,
    bert_base,
    roberta_base,
    sided_bias,
)

SMALL = TextConfig(vocabulary=30, width=16, layers=2, heads=2, mlp_width=32, max_tokens=12)
ABSOLUTE = dataclasses.replace(
    SMALL, positions="absolute", position_offset=2, token_types=1, pooling="pooler"
)

encode = jax.jit(lambda encoder, *inputs: encoder.apply(*inputs), static_argnums=0)


def parameter_shapes(encoder):
    ids = jnp.zeros((1, 3), jnp.int32)
    return jax.eval_shape(encoder.init, jax.random.key(0), ids, ids == 0)


def parameters(config):
    """Weights far larger than at the start of training, so that a leak would show."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(TextEncoder(config)))


@pytest.mark.parametrize(
    ("config", "count"), [(roberta_base(), 124_645_632), (bert_base(), 109_482_240)]
)
def test_presets_have_the_published_number_of_parameters(config, count):
    shapes = parameter_shapes(TextEncoder(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("config", [SMALL, ABSOLUTE], ids=lambda config: config.positions)
def test_padding_changes_nothing(config):
    encoder, params = TextEncoder(config), parameters(config)
    plain = encode(encoder, params, jnp.array([[5, 9, 3, 7]]), jnp.ones((1, 4), bool))
    ids = jnp.array([[5, 9, 3, 7, 1, 22, 8], [5, 9, 3, 7, 0, 0, 0]])
    padded = encode(encoder, params, ids, jnp.arange(7) < jnp.array([[4], [4]]))
    for row in range(2):
        np.testing.assert_allclose(padded.pooled[row], plain.pooled[0], atol=1e-6)
        np.testing.assert_allclose(padded.hidden[row, :4], plain.hidden[0], atol=1e-6)


@pytest.mark.parametrize("config", [SMALL, ABSOLUTE], ids=lambda config: config.positions)
def test_order_of_tokens_matters(config):
    ids = jnp.array([[5, 9, 3, 7, 2, 2, 2], [5, 7, 3, 9, 2, 2, 2]])
    pooled = encode(TextEncoder(config), parameters(config), ids, jnp.ones((2, 7), bool)).pooled
    assert jnp.max(jnp.abs(pooled[0] - pooled[1])) > 1e-2


def test_alibi_bias_by_hand():
    distance = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    expected = [-distance / 16, -distance / 256]
    np.testing.assert_array_equal(alibi_bias(heads=2, tokens=3), expected)


def test_sided_bias_by_hand():
    ahead, back = sided_bias(heads=4, tokens=3)[:2], sided_bias(heads=4, tokens=3)[2:]
    distance = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    for head, slope in enumerate((1.0, 0.25)):
        seen = np.triu(np.ones((3, 3), bool))
        np.testing.assert_array_equal(ahead[head][seen], (-slope * distance)[seen])
        assert (ahead[head][~seen] < -1e30).all()
        np.testing.assert_array_equal(back[head], ahead[head].T)


@pytest.mark.parametrize("positions", ["alibi", "sided"])
def test_only_sided_positions_know_what_comes_first(positions):
    """Under a bias that is the same both ways, a text read backwards is the same text."""
    config = dataclasses.replace(SMALL, positions=positions)
    ids = jnp.array([[4, 5, 6, 7], [7, 6, 5, 4]])
    out = encode(TextEncoder(config), parameters(config), ids, ids > 0)
    difference = float(jnp.max(jnp.abs(out.pooled[0] - out.pooled[1])))
    assert difference < 1e-5 if positions == "alibi" else difference > 1e-2


def test_sided_positions_need_an_even_number_of_heads():
    with pytest.raises(InputError, match="heads: 3 is odd, but with 'sided' positions"):
        dataclasses.replace(SMALL, width=24, heads=3)


@pytest.mark.parametrize("pooling", ["mean", "first", "pooler"])
def test_pooled_is_made_of_true_tokens(pooling):
    config = dataclasses.replace(SMALL, layers=0, pooling=pooling)
    params = parameters(config)
    mask = jnp.array([[True, True, False]])
    out = encode(TextEncoder(config), params, jnp.array([[4, 5, 6]]), mask)
    expected = out.hidden[:, :2].mean(axis=1) if pooling == "mean" else out.hidden[:, 0]
    if pooling == "pooler":
        dense = params["params"]["pooler"]
        expected = np.tanh(expected @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(out.pooled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("off", ["dropout", "attention_dropout"])
def test_training_drops_out(off):
    encoder, params = TextEncoder(dataclasses.replace(SMALL, **{off: 0.0})), parameters(SMALL)
    ids = jnp.arange(1, 15).reshape(2, 7)
    train = jax.jit(lambda key: encoder.apply(params, ids, ids > 0, True, rngs={"dropout": key}))
    first, second = (train(jax.random.key(seed)).pooled for seed in (1, 2))
    assert jnp.max(jnp.abs(first - second)) > 1e-3


def test_bfloat16_compute_keeps_float32_parameters():
    encoder = TextEncoder(SMALL, jnp.bfloat16)
    leaves = jax.tree.leaves(parameter_shapes(encoder))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    ids, mask = jnp.array([[4, 5, 6, 7, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7]]), jnp.ones((2, 7), bool)
    params = parameters(SMALL)
    half, full = (encode(which, params, ids, mask) for which in (encoder, TextEncoder(SMALL)))
    assert half.pooled.dtype == half.hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.pooled.astype(jnp.float32), full.pooled, atol=0.03)


def test_too_long_a_text_is_refused():
    ids = jnp.ones((1, 13), jnp.int32)
    with pytest.raises(InputError, match=r"tokens: 13 a text, but the encoder takes at most 12"):
        TextEncoder(SMALL).apply(parameters(SMALL), ids, ids > 0)


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match=r"heads: 3 does not divide the width 16"):
        dataclasses.replace(SMALL, heads=3)
