import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

from spatial_clap_jax.models.layers import (
    Conv,
    LayerNorm,
    Mlp,
    SelfAttention,
    StochasticDepth,
    conv_same,
    gelu,
    held_still,
)


def attention_weights(width):
    draw = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "qkv": {"kernel": draw(width, 3 * width), "bias": draw(3 * width)},
        "out": {"kernel": draw(width, width), "bias": draw(width)},
    }


def test_attention_equals_flax_multi_head_attention():
    x = jax.random.normal(jax.random.key(1), (2, 5, 12))
    bias = jax.random.normal(jax.random.key(2), (3, 5, 5))
    ours, params = SelfAttention(heads=3), attention_weights(12)
    kernel, offset = params["qkv"]["kernel"], params["qkv"]["bias"]
    parts = {
        name: {
            "kernel": kernel[:, 12 * i : 12 * (i + 1)].reshape(12, 3, 4),
            "bias": offset[12 * i : 12 * (i + 1)].reshape(3, 4),
        }
        for i, name in enumerate(("query", "key", "value"))
    }
    parts["out"] = {
        "kernel": params["out"]["kernel"].reshape(3, 4, 12),
        "bias": params["out"]["bias"],
    }
    biased = lambda q, k, v, **_: nn.dot_product_attention(q, k, v, bias=bias)  # noqa: E731
    theirs = nn.MultiHeadDotProductAttention(num_heads=3, attention_fn=biased)
    np.testing.assert_allclose(
        jax.jit(ours.apply)({"params": params}, x, bias),
        jax.jit(theirs.apply)({"params": parts}, x),
        atol=1e-4,
    )


def test_attention_takes_any_leading_axes():
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
    bias = jax.random.normal(jax.random.key(2), (3, 1, 4, 4))
    apply = jax.jit(SelfAttention(heads=2).apply)
    variables = {"params": attention_weights(8)}
    whole = apply(variables, x, bias)
    for window in range(3):
        single = apply(variables, x[:, window], bias[window])
        np.testing.assert_allclose(whole[:, window], single, atol=1e-5)


def test_mlp_uses_the_exact_gelu():
    x = jnp.array([[-2.0], [0.5]])
    one = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    y = Mlp(hidden=1).apply({"params": {"up": one, "down": one}}, x)
    # x * Phi(x); the tanh approximation gives -0.04540 and 0.34571.
    np.testing.assert_allclose(y, [[-0.04550026], [0.34573123]], atol=1e-6)


def test_layer_norm_survives_a_large_mean():
    x = 1e4 + jnp.array([[-1.0, 0.0, 1.0]])
    norm = LayerNorm()
    y = norm.apply({"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}, x)
    np.testing.assert_allclose(y, [[-1.2247449, 0, 1.2247449]], atol=1e-3)


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    layer = StochasticDepth(0.25)
    x = jnp.ones((4000, 2, 3))
    y = layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    rows = np.asarray(y).reshape(4000, -1)
    assert (rows == rows[:, :1]).all()
    np.testing.assert_allclose(np.unique(rows), [0.0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(np.mean(rows), 1.0, atol=0.03)
    np.testing.assert_array_equal(layer.apply({}, x), x)


class Noisy(nn.Module):
    """A norm and a dropout under one name, as an encoder has them."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(name="norm")(x, use_running_average=not train)
        return nn.Dropout(0.5)(x, deterministic=not train)


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return Noisy(name="text")(x, train), Noisy(name="text_projection")(x, train)


def test_what_is_held_still_computes_as_in_evaluation():
    x = jnp.arange(6.0).reshape(3, 2)
    variables = Pair().init(jax.random.key(0), x, False)

    def trained(rules):
        with held_still(rules):
            return Pair().apply(
                variables, x, True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"]
            )

    evaluated = Pair().apply(variables, x, False)
    (still, moving), updated = trained((r"^text/",))
    np.testing.assert_array_equal(still, evaluated[0])
    assert not np.allclose(moving, evaluated[1])
    old, new = variables["batch_stats"], updated["batch_stats"]
    np.testing.assert_array_equal(new["text"]["norm"]["mean"], old["text"]["norm"]["mean"])
    assert not np.allclose(new["text_projection"]["norm"]["mean"], 0)
    # Without a rule, and after it, both are trained.
    for rules in ((), (r"^spatial/",)):
        (one, other), _ = trained(rules)
        assert not np.allclose(one, evaluated[0])
        assert not np.allclose(other, evaluated[1])


def test_a_part_can_be_held_still_by_its_path():
    x = jnp.arange(6.0).reshape(3, 2)
    variables = Pair().init(jax.random.key(0), x, False)
    with held_still((r"/norm/$",)):
        _, updated = Pair().apply(
            variables, x, True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"]
        )
    for name in ("text", "text_projection"):
        np.testing.assert_array_equal(updated["batch_stats"][name]["norm"]["mean"], [0, 0])


def test_gelu_is_x_times_the_normal_distribution_function():
    x = np.linspace(-8, 8, 4001)
    expected = x * scipy.stats.norm.cdf(x)
    slope = scipy.stats.norm.cdf(x) + x * scipy.stats.norm.pdf(x)
    np.testing.assert_allclose(gelu(jnp.float32(x)), expected, atol=2e-6)
    slopes = jax.jit(jax.vmap(jax.grad(gelu)))(jnp.float32(x))
    np.testing.assert_allclose(slopes, slope, atol=1e-6)
    assert gelu(jnp.bfloat16(x)).dtype == jnp.bfloat16


def plain_conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("grid", "size"), [((5, 7), (3, 3)), ((4, 1), (3, 3)), ((1, 6), (5, 1)), ((3, 2), (1, 3))]
)
def test_the_convolution_and_its_gradients_are_xlas(grid, size):
    x, kernel, gradient = drawn((2, *grid, 3), (*size, 3, 4), (2, *grid, 4))

    def all_of(conv):
        value, back = jax.vjp(conv, x, kernel)
        return value, *back(gradient)

    ours, theirs = (jax.jit(all_of, static_argnums=0)(conv) for conv in (conv_same, plain_conv))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_convolution_of_an_impulse_by_hand():
    # Weights 1 to 9, read around the middle: the kernel is not flipped.
    kernel = np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3, 1, 1)
    x = np.zeros((1, 3, 3, 1), np.float32)
    x[0, 1, 1] = 1.0
    found = jax.jit(conv_same)(x, kernel)[0, :, :, 0]
    np.testing.assert_array_equal(found, [[9, 8, 7], [6, 5, 4], [3, 2, 1]])


@pytest.mark.parametrize("use_bias", [True, False])
def test_conv_is_the_one_of_flax(use_bias):
    (x,) = drawn((2, 5, 3, 2))
    ours, theirs = Conv(4, use_bias), nn.Conv(4, (3, 3), padding=1, use_bias=use_bias)
    both = [jax.jit(conv.init)(jax.random.key(3), x)["params"] for conv in (ours, theirs)]
    # The same names, and the same draws of the same key.
    jax.tree.map(np.testing.assert_array_equal, *both)
    assert set(both[0]) == ({"kernel", "bias"} if use_bias else {"kernel"})
    bias = {"bias": np.float32([1, -2, 3, -4])} if use_bias else {}
    variables = {"params": {**both[0], **bias}}
    np.testing.assert_allclose(
        jax.jit(ours.apply)(variables, x), jax.jit(theirs.apply)(variables, x), rtol=1e-4, atol=1e-5
    )


def test_conv_computes_in_its_type_and_keeps_its_parameters_in_float32():
    x = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32)
    conv = Conv(3, dtype=jnp.bfloat16)
    out, variables = jax.eval_shape(lambda x: conv.init_with_output(jax.random.key(0), x), x)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
