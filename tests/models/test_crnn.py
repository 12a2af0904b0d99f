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
