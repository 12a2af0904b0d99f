"""bfloat16 computation keeps the directions of embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.models.htsat import Htsat, HtsatConfig
from spatial_clap_jax.models.text import TextConfig, TextEncoder


def cosines(one, other):
    one, other = (np.asarray(x, np.float64) for x in (one, other))
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def drawn(module, *inputs):
    """Variables of a module, and what it pools in float32 and in bfloat16."""
    variables = jax.jit(lambda: module.init(jax.random.key(0), *inputs))()
    both = [
        jax.jit(module.clone(dtype=dtype).apply)(variables, *inputs).pooled
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    assert both[1].dtype == jnp.bfloat16
    return both


@pytest.mark.slow
def test_htsat():
    config = HtsatConfig(spec_size=64, mels=16, embed_dim=32, depths=(1, 1, 2), heads=(2, 4, 4))
    levels = jax.random.normal(jax.random.key(1), (4, 200, 16)) * 20 - 30
    assert cosines(*drawn(Htsat(config), levels)).min() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_text(pooling):
    config = TextConfig(
        vocabulary=100,
        width=64,
        layers=4,
        heads=4,
        mlp_width=256,
        positions="absolute",
        token_types=1,
        pooling=pooling,
    )
    tokens = jax.random.randint(jax.random.key(1), (4, 30), 0, 100)
    mask = jnp.arange(30) < jnp.array([30, 17, 5, 1])[:, None]
    assert cosines(*drawn(TextEncoder(config), tokens, mask)).min() >= 0.999
