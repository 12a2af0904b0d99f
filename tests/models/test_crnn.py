"""CASE's size and its recurrence against a step-by-step NumPy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from spatial_clap_jax.models.crnn import Crnn, CrnnConfig, Gru


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_case_has_the_released_number_of_parameters():
    planes = jax.ShapeDtypeStruct((2, 20, 513, 4), jnp.float32)
    variables = jax.eval_shape(
        lambda x: Crnn(CrnnConfig()).init(jax.random.key(0), x, train=False), planes
    )
    assert count(variables["params"]) == 1_095_616


def test_case_gives_256_numbers():
    shape = jax.eval_shape(
        lambda x: Crnn(CrnnConfig()).init_with_output(jax.random.key(0), x, train=False)[0],
        jax.ShapeDtypeStruct((3, 20, 513, 4), jnp.float32),
    )
    assert shape.shape == (3, 256)


@pytest.mark.parametrize("reverse", [False, True])
def test_gru_equals_its_equations(reverse):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    gru = Gru(4, reverse)
    variables = gru.init(jax.random.key(1), x)
    p = {name: np.asarray(value, np.float64) for name, value in variables["params"].items()}
    state = np.zeros((2, 4))
    expected = np.zeros((2, 5, 4))
    for i in reversed(range(5)) if reverse else range(5):
        r_in, z_in, n_in = np.split(x[:, i] @ p["input_kernel"] + p["input_bias"], 3, axis=-1)
        r_h, z_h, n_h = np.split(state @ p["state_kernel"] + p["state_bias"], 3, axis=-1)
        candidate = np.tanh(n_in + expit(r_in + r_h) * n_h)
        update = expit(z_in + z_h)
        state = (1 - update) * candidate + update * state
        expected[:, i] = state
    np.testing.assert_allclose(gru.apply(variables, x), expected, atol=1e-6)


@pytest.mark.parity
def test_gru_equals_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle (extra `parity`)")
    oracle = torch.nn.GRU(6, 8, batch_first=True)
    x = np.random.default_rng(2).normal(size=(3, 7, 6)).astype(np.float32)
    with torch.no_grad():
        expected = oracle(torch.from_numpy(x))[0].numpy()
    weights = {name: value.detach().numpy() for name, value in oracle.named_parameters()}
    params = {
        "input_kernel": weights["weight_ih_l0"].T,
        "input_bias": weights["bias_ih_l0"],
        "state_kernel": weights["weight_hh_l0"].T,
        "state_bias": weights["bias_hh_l0"],
    }
    np.testing.assert_allclose(Gru(8).apply({"params": params}, x), expected, atol=1e-6)


def test_heads_weigh_frames_by_hand():
    """By the encoder's own states; a bin that fills no patch is not heard."""
    config = CrnnConfig(
        patch=(1, 2),
        channels=(4,),
        pools=((1, 2),),
        frame_width=6,
        gru_width=3,
        gru_layers=1,
        pooling="attention",
        heads=2,
        width=8,
    )
    crnn = Crnn(config)
    planes = np.random.default_rng(1).normal(size=(3, 5, 9, 4)).astype(np.float32)
    variables = jax.jit(crnn.init, static_argnames="train")(jax.random.key(2), planes, train=False)
    apply = jax.jit(lambda p: crnn.apply(variables, p, False, capture_intermediates=True))
    found, kept = apply(planes)
    states = [
        np.asarray(kept["intermediates"][name]["__call__"][0], np.float64)
        for name in ("gru0", "gru0_reverse")
    ]
    x = np.concatenate(states, axis=-1)
    pool = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"]["pool"])
    scores = np.exp(x @ pool["score"]["kernel"] + pool["score"]["bias"])
    weights = scores / scores.sum(axis=1, keepdims=True)
    heads = [
        np.einsum("bn,bnd->bd", weights[..., h], x) @ pool["value"]["kernel"][h]
        + pool["value"]["bias"][h]
        for h in range(config.heads)
    ]
    np.testing.assert_allclose(found, np.concatenate(heads, axis=-1), atol=1e-5)
    planes[:, :, 8] = 7.0
    np.testing.assert_array_equal(apply(planes)[0], found)
