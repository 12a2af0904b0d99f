"""Blocks that are computed again, and layers that are looped over, are the same function."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh

from spatial_clap_jax.models.htsat import Htsat, HtsatConfig
from spatial_clap_jax.models.layers import StochasticDepth, executed, tokens_as_rows
from spatial_clap_jax.models.text import TextConfig, TextEncoder

HTSAT = Htsat(
    HtsatConfig(
        spec_size=32,
        mels=16,
        patch=4,
        embed_dim=8,
        depths=(2, 6),
        heads=(2, 2),
        window=4,
        drop_path=0.0,
    )
)
TEXT = TextEncoder(TextConfig(20, 8, 3, 2, 16, 6, dropout=0.0, attention_dropout=0.0))
RNG = np.random.default_rng(0)
CASES = {
    "htsat": (HTSAT, (RNG.normal(size=(2, 64, 16)).astype(np.float32),)),
    "text": (TEXT, (RNG.integers(0, 20, (2, 6)), np.arange(6) < np.array([[3], [6]]))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_looping_and_computing_again_change_nothing(name):
    module, inputs = CASES[name]
    variables = jax.device_get(jax.jit(lambda: module.init(jax.random.key(0), *inputs))())

    def gradients(remat, scan_layers):
        def loss(params, *inputs):
            with executed(remat, scan_layers):
                out, _ = module.apply(
                    {**variables, "params": params},
                    *inputs,
                    True,
                    rngs={"dropout": jax.random.key(1)},
                    mutable=["batch_stats"],
                )
            return (out.pooled**2).sum()

        return loss, jax.device_get(jax.jit(jax.grad(loss))(variables["params"], *inputs))

    plain, expected = gradients("none", False)
    scanned, got = gradients("blocks", True)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)
    # The loop is there, and its program is shorter.
    texts = [str(jax.make_jaxpr(f)(variables["params"], *inputs)) for f in (plain, scanned)]
    assert "scan" in texts[1]
    assert "scan" not in texts[0]
    assert texts[1].count("dot_general") < 0.7 * texts[0].count("dot_general")


def test_looped_blocks_drop_at_their_own_rates():
    """With every branch of the later blocks dropped, they pass on what they are given."""
    layer = StochasticDepth(jnp.float32(0.999999))
    x = np.ones((4, 3), np.float32)
    rngs = {"dropout": jax.random.key(0)}
    assert not layer.apply({}, x, True, rngs=rngs).any()
    np.testing.assert_array_equal(layer.apply({}, x, False), x)
    half = StochasticDepth(0.5).apply({}, np.ones((1000, 2), np.float32), True, rngs=rngs)
    rows = np.asarray(half)
    # Whole rows go, and what stays is scaled up.
    assert set(np.unique(rows)) == {0.0, 2.0}
    assert (rows[:, 0] == rows[:, 1]).all()
    assert 400 < (rows[:, 0] > 0).sum() < 600


def test_weights_on_cpus_get_their_gradients_without_turning_tokens_round():
    layers = nn.Sequential([nn.Dense(48), nn.gelu, nn.Dense(16)])
    x = RNG.normal(size=(4, 8, 32, 16)).astype(np.float32)
    params = layers.init(jax.random.key(0), x)
    mesh = Mesh(np.array(jax.devices("cpu")[:1]), ("data",))

    def gradients_within(mesh):
        def loss(params, x):
            with tokens_as_rows(mesh):
                return (layers.apply(params, x) ** 2).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
        turned = re.findall(r"= f32\S* (?:copy|transpose)\(", compiled.as_text())
        return compiled(params, x), len(turned)

    plain, turned = gradients_within(None)
    rows, turned_within = gradients_within(mesh)
    assert turned > turned_within == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), rows, plain)
