"""The Cross-Modal Conformer: one layer in NumPy, and laws of its two streams."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_conformer import attention, convolution, dense, feed_forward, norm

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.cross_modal import CrossModalConfig, CrossModalConformer

SMALL = CrossModalConfig(
    width=8,
    layers=1,
    heads=2,
    feed_forward=12,
    kernel=5,
    other_kernel=3,
    dropout=0.3,
    has_positions=False,
)
UNORDERED = dataclasses.replace(SMALL, other_kernel=0, has_positions=True)
PLACED = dataclasses.replace(SMALL, has_positions=True)


@functools.cache
def variables_of(config):
    """Variables of which none is zero or one; variances above zero."""
    audio, other = jnp.zeros((1, 6, 8)), jnp.zeros((1, 4, 8))
    shapes = jax.eval_shape(
        lambda: CrossModalConformer(config).init(jax.random.key(0), audio, other, False)
    )
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: 0.4 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    drawn["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + 0.2, drawn["batch_stats"])
    return drawn


@functools.cache
def applied(config):
    return jax.jit(
        lambda audio, other: CrossModalConformer(config).apply(
            variables_of(config), audio, other, False
        )
    )


def streams(examples=3, audio=6, other=4):
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(examples, n, 8)).astype(np.float32) for n in (audio, other))


def updated(x, sources, p, stats):
    """One stream of one example."""
    x = x + 0.5 * feed_forward(x, p["before"])
    asked, heard = norm(x, p["attention_norm"]), norm(sources, p["sources_norm"])
    qkv = dense(asked, p["self_attention"]["qkv"])
    own = dense(attention(*np.split(qkv, 3, axis=-1), 2), p["self_attention"]["out"])
    cross, keys = p["cross_attention"], dense(heard, p["cross_attention"]["kv"])
    mixed = attention(dense(asked, cross["q"]), *np.split(keys, 2, axis=-1), 2)
    x = x + own + dense(mixed, cross["out"])
    x = x + convolution(x, p["convolution"], stats["convolution"])
    return norm(x + 0.5 * feed_forward(x, p["after"]), p["norm"])


def test_a_layer_equals_its_equations():
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables_of(SMALL))
    p, stats = (variables[kind]["layer_0"] for kind in ("params", "batch_stats"))
    audio, other = streams()
    found = applied(SMALL)(audio, other)
    for row in range(3):
        heard = updated(audio[row], other[row], p["audio"], stats["audio"])
        # The other stream listens to the audio as it is by now.
        seen = updated(other[row], heard, p["other"], stats["other"])
        np.testing.assert_allclose(found[0][row], heard, atol=2e-5)
        np.testing.assert_allclose(found[1][row], seen, atol=2e-5)


def test_an_example_is_the_same_alone():
    audio, other = streams()
    whole, single = applied(PLACED)(audio, other), applied(PLACED)(audio[1:2], other[1:2])
    for a, b in zip(whole, single, strict=True):
        np.testing.assert_allclose(b[0], a[1], atol=1e-6)


def test_tokens_without_order_may_come_in_any():
    audio, other = streams()
    order = np.array([2, 0, 3, 1])
    found, moved = applied(UNORDERED)(audio, other), applied(UNORDERED)(audio, other[:, order])
    np.testing.assert_allclose(moved[0], found[0], atol=1e-5)
    np.testing.assert_allclose(moved[1], found[1][:, order], atol=1e-5)
    # With positions and convolution their order is heard.
    ordered, reordered = applied(PLACED)(audio, other), applied(PLACED)(audio, other[:, order])
    assert np.abs(ordered[0] - reordered[0]).max() > 1e-3
    # That of the audio always is, by its convolution.
    turned = applied(UNORDERED)(audio[:, ::-1], other)[0][:, ::-1]
    assert np.abs(turned - found[0]).max() > 1e-3


def test_a_token_twice_weighs_as_one_where_all_are_doubled():
    audio, other = streams()
    found = applied(UNORDERED)(audio, other)
    doubled = applied(UNORDERED)(audio, np.repeat(other, 2, axis=1))
    np.testing.assert_allclose(doubled[0], found[0], atol=1e-5)
    np.testing.assert_allclose(doubled[1], np.repeat(found[1], 2, axis=1), atol=1e-5)


@pytest.mark.slow
def test_gradients_reach_both_streams_and_all_parameters():
    audio, other = streams()

    @jax.jit
    def gradients(weigh_audio, weigh_other):
        def encode(params, audio, other):
            variables = {**variables_of(PLACED), "params": params}
            return CrossModalConformer(PLACED).apply(variables, audio, other, False)

        pull = jax.vjp(encode, variables_of(PLACED)["params"], audio, other)[1]
        # Unlike weights, as a plain sum after LN has hardly a gradient.
        return pull((weigh_audio * audio[::-1], weigh_other * other[::-1]))

    by_audio, by_other = gradients(1.0, 0.0), gradients(0.0, 1.0)
    for _, to_audio, to_other in (by_audio, by_other):
        assert np.abs(to_audio).max() > 1e-4
        assert np.abs(to_other).max() > 1e-4
    # The last update of the other stream is no audio's affair.
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_audio[0]["layer_0"]["other"]))
    largest = {
        jax.tree_util.keystr(path): np.abs(leaf).max()
        for path, leaf in jax.tree_util.tree_leaves_with_path(by_other[0])
    }
    # A softmax is blind to what is added to all of its logits: the bias of the keys counts for
    # nothing, but it shares an array with that of the values.
    assert min(largest.values()) > 1e-6, min(largest, key=lambda name: largest[name])


def test_dropout_is_for_training_alone():
    audio, other = streams()
    train = jax.jit(
        lambda key: CrossModalConformer(PLACED).apply(
            variables_of(PLACED), audio, other, True, rngs={"dropout": key}, mutable="batch_stats"
        )[0]
    )
    one, again, unlike = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    for a, b, c in zip(one, again, unlike, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 0.01
    # Without the stream evaluation would fail if it dropped anything.
    applied(PLACED)(audio, other)


@pytest.mark.parametrize(
    ("name", "value"), [("width", 9), ("layers", 0), ("kernel", 0), ("other_kernel", 2)]
)
def test_sizes_that_cannot_be_are_refused(name, value):
    with pytest.raises(InputError, match=rf"CrossModalConfig.{name}: {value}"):
        dataclasses.replace(SMALL, **{name: value})


def test_other_widths_are_refused():
    audio, other = streams()
    with pytest.raises(InputError, match="other: 5 wide, but the Cross-Modal Conformer takes 8"):
        applied(SMALL)(audio, other[..., :5])
