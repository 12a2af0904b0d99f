"""The Conformer layer against a plain NumPy one in float64; convolution, positions, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.conformer import (
    Conformer,
    ConformerConfig,
    DepthwiseConv,
    _at_once,
    _by_fourier,
    sinusoidal_positions,
)
from spatial_clap_jax.models.layers import executed

SMALL = ConformerConfig(width=8, layers=2, heads=2, feed_forward=12, kernel=5, dropout=0.3)


@functools.cache
def variables_of(config, frames=7):
    """Variables of which none is zero or one; variances above zero."""
    x = jnp.zeros((1, frames, config.width))
    shapes = jax.eval_shape(lambda: Conformer(config).init(jax.random.key(0), x, False))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: 0.4 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    if "batch_stats" in drawn:
        drawn["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + 0.2, drawn["batch_stats"])
    return drawn


@functools.cache
def applied(config):
    return jax.jit(lambda x: Conformer(config).apply(variables_of(config), x, False))


def frames_of(examples=3, frames=7, width=8):
    rng = np.random.default_rng(frames)
    return rng.normal(size=(examples, frames, width)).astype(np.float32)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def feed_forward(x, p):
    up = dense(norm(x, p["norm"]), p["up"])
    return dense(up * expit(up), p["down"])


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def attention(query, key, value, heads):
    """Of [n, d] to [m, d], head by head."""
    split = [np.split(x, heads, axis=-1) for x in (query, key, value)]
    return np.concatenate(
        [softmax(q @ k.T / np.sqrt(q.shape[-1])) @ v for q, k, v in zip(*split, strict=True)], -1
    )


def convolution(x, p, stats):
    into = dense(norm(x, p["norm"]), p["into"])
    x = into[:, : x.shape[1]] * expit(into[:, x.shape[1] :])
    kernel, half = p["depthwise"]["kernel"], len(p["depthwise"]["kernel"]) // 2
    y = np.zeros_like(x)
    for frame in range(len(x)):
        for tap, weights in enumerate(kernel):
            if 0 <= frame + tap - half < len(x):
                y[frame] += weights * x[frame + tap - half]
    y, inner = y + p["depthwise"]["bias"], p["inner_norm"]
    if stats:
        mean, var = stats["inner_norm"]["mean"], stats["inner_norm"]["var"]
        y = (y - mean) / np.sqrt(var + 1e-5) * inner["scale"] + inner["bias"]
    else:
        y = norm(y, inner)
    return dense(y * expit(y), p["out"])


def reference(x, config):
    """Of one example, layer by layer."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables_of(config))
    place = np.arange(len(x))[:, None] / 10000.0 ** (np.arange(4) / 4)
    x = x + np.concatenate([np.sin(place), np.cos(place)], axis=1)
    for index in range(config.layers):
        p = variables["params"][f"layer_{index}"]
        stats = variables.get("batch_stats", {}).get(f"layer_{index}", {}).get("convolution")
        x = x + 0.5 * feed_forward(x, p["before"])
        qkv = dense(norm(x, p["attention_norm"]), p["attention"]["qkv"])
        mixed = attention(*np.split(qkv, 3, axis=-1), config.heads)
        x = x + dense(mixed, p["attention"]["out"])
        x = x + convolution(x, p["convolution"], stats)
        x = norm(x + 0.5 * feed_forward(x, p["after"]), p["norm"])
    return x


LAYER_NORM = dataclasses.replace(SMALL, norm="layer")


@pytest.mark.parametrize("config", [SMALL, LAYER_NORM], ids=["batch", "layer"])
def test_layers_equal_their_equations(config):
    x = frames_of()
    expected = np.stack([reference(row, config) for row in x.astype(np.float64)])
    np.testing.assert_allclose(applied(config)(x), expected, atol=2e-5)


def test_an_example_is_the_same_alone():
    x = frames_of()
    np.testing.assert_allclose(applied(SMALL)(x[1:2])[0], applied(SMALL)(x)[1], atol=1e-6)


def test_training_drops_and_moves_the_statistics():
    x, module = frames_of(), Conformer(SMALL)
    train = jax.jit(
        lambda key: module.apply(
            variables_of(SMALL), x, True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
    )
    one, moved = train(jax.random.key(0))
    again, other = train(jax.random.key(0))[0], train(jax.random.key(1))[0]
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    old = variables_of(SMALL)["batch_stats"]
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), old, moved["batch_stats"])
    assert min(jax.tree.leaves(changes)) > 0


def test_blocks_computed_again_have_the_same_gradient():
    x, config = frames_of(), dataclasses.replace(LAYER_NORM, layers=1)

    def gradient(remat):
        with executed(remat, scan_layers=False):
            loss = lambda p: jnp.sum(Conformer(config).apply(p, x, False) * x)  # noqa: E731
            return jax.jit(jax.grad(loss))(variables_of(config))

    plain, again = gradient("none"), gradient("blocks")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, again)


@pytest.mark.parametrize(("frames", "taps"), [(6, 3), (4, 9), (5, 1)])
def test_convolution_by_fourier_equals_the_plain_one(frames, taps):
    rng = np.random.default_rng(taps)
    x = rng.normal(size=(2, frames, 3)).astype(np.float32)
    kernel = rng.normal(size=(taps, 3)).astype(np.float32)
    for way in (_by_fourier, _at_once):
        found, pull = jax.jit(lambda x, k, way=way: jax.vjp(way, x, k))(x, kernel)
        expected = np.zeros_like(x)
        for frame in range(frames):
            for tap in range(taps):
                if 0 <= frame + tap - taps // 2 < frames:
                    expected[:, frame] += kernel[tap] * x[:, frame + tap - taps // 2]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        to_x, to_kernel = pull(jnp.asarray(x))
        # Both are linear, so that each gradient is told by a product.
        assert float((to_x * x).sum()) == pytest.approx(float((found * x).sum()), rel=1e-4)
        assert float((to_kernel * kernel).sum()) == pytest.approx(
            float((found * x).sum()), rel=1e-4
        )


def test_a_fresh_convolution_keeps_the_scale():
    x = np.random.default_rng(0).normal(size=(1, 400, 40)).astype(np.float32)
    found, _ = jax.jit(DepthwiseConv(25).init_with_output)(jax.random.key(0), x)
    assert float(jnp.std(found)) == pytest.approx(1, abs=0.15)


def test_positions_of_the_same_time_agree():
    coarse, fine = sinusoidal_positions(4, 8, 12), sinusoidal_positions(12, 8)
    # The middle of a third of the frames is that of its middle frame.
    np.testing.assert_allclose(coarse, fine[1::3], atol=1e-6)
    assert len(np.unique(fine.round(4), axis=0)) == 12


def test_published_size():
    x = jax.ShapeDtypeStruct((1, 50, 512), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: Conformer(ConformerConfig()).init(jax.random.key(0), x, False), x
    )
    d, hidden, taps = 512, 1024, 51
    half = 2 * d + d * hidden + hidden + hidden * d + d
    attention_size = 2 * d + 4 * (d * d + d)
    convolution_size = 2 * d + d * 2 * d + 2 * d + taps * d + d + 2 * d + d * d + d
    expected = 4 * (2 * half + attention_size + convolution_size + 2 * d)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 9),
        ("heads", 3),
        ("heads", 0),
        ("layers", 0),
        ("feed_forward", 0),
        ("kernel", 4),
        ("kernel", -1),
        ("dropout", 1.0),
    ],
)
def test_sizes_that_cannot_be_are_refused(name, value):
    named = "width" if name == "heads" else name
    with pytest.raises(InputError, match=rf"ConformerConfig.{named}: "):
        ConformerConfig(**{"width": 8, "heads": 2, **{name: value}})


def test_other_frames_are_refused():
    with pytest.raises(InputError, match="frames: 6 wide, but the Conformer takes 8"):
        applied(SMALL)(frames_of(width=6))
