"""One step by hand: gradient descent on a system of one parameter, and the moving average."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatial_clap_jax.systems.base import Loss
from spatial_clap_jax.train.step import init_state, jit_step, train_step


@dataclass(frozen=True)
class Slope:
    """Loss w * x plus a running count of its calls; its key's first word is logged."""

    def init(self, rng):
        return {"params": {"w": jnp.float32(2.0)}, "batch_stats": {"calls": jnp.float32(0.0)}}

    def loss(self, variables, batch, rng, train):
        assert train
        calls = variables["batch_stats"]["calls"] + 1
        value = variables["params"]["w"] * batch["x"].mean()
        drawn = jax.random.uniform(rng)
        return Loss(value, {"drawn": drawn}, {"calls": calls})


BATCH = {"x": jnp.array([1.0, 3.0])}


def fresh(averaged: bool = True):
    optimizer = optax.sgd(0.5)
    return optimizer, init_state(Slope(), optimizer, jax.random.key(0), {}, averaged=averaged)


def test_one_step_by_hand():
    optimizer, state = fresh()
    after, metrics = train_step(Slope(), optimizer, 0.9, (), jax.random.key(1), state, BATCH)
    # The gradient is the mean of x, 2; the rate is a half.
    assert after.variables["params"]["w"] == 1.0
    assert after.variables["batch_stats"]["calls"] == 1.0
    assert after.step == 1
    assert metrics["loss"] == 4.0
    assert metrics["gradient_norm"] == 2.0
    # The average's decay starts at 1 / 10 and holds running statistics too.
    assert after.average["params"]["w"] == pytest.approx(0.1 * 2.0 + 0.9 * 1.0)
    assert after.average["batch_stats"]["calls"] == pytest.approx(0.9)


def test_the_averages_decay_is_bounded():
    optimizer, state = fresh()
    state = state._replace(step=jnp.int32(10**6))
    after, _ = train_step(Slope(), optimizer, 0.9, (), jax.random.key(1), state, BATCH)
    assert after.average["params"]["w"] == pytest.approx(0.9 * 2.0 + 0.1 * 1.0)


def test_without_an_average_nothing_is_kept():
    optimizer, state = fresh(averaged=False)
    after, _ = train_step(Slope(), optimizer, None, (), jax.random.key(1), state, BATCH)
    assert after.average == {}


def test_draws_follow_from_run_and_step():
    optimizer, state = fresh()
    drawn = [
        float(train_step(Slope(), optimizer, None, (), jax.random.key(k), at, BATCH)[1]["drawn"])
        for k, at in ((1, state), (1, state), (2, state), (1, state._replace(step=jnp.int32(5))))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_the_old_state_is_given_away():
    optimizer, state = fresh()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: one, state)
    step = jit_step(Slope(), optimizer, 0.9, (), jax.random.key(1), shardings, one)
    state = jax.device_put(state, shardings)
    after, _ = step(state, BATCH)
    assert state.variables["params"]["w"].is_deleted()
    np.testing.assert_allclose(after.variables["params"]["w"], 1.0)
