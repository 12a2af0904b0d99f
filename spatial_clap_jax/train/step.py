"""The training step: pure, then jitted over a mesh."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from spatial_clap_jax.models.layers import held_still
from spatial_clap_jax.systems.base import Batch, System, Variables
from spatial_clap_jax.train.optim import map_by_path, matches


class TrainState(NamedTuple):
    """All that a step reads and writes.

    Attributes:
      step: steps done.
      variables: parameters and running statistics.
      optimizer: state of the optimiser.
      average: exponential moving average of `variables`; empty without.
    """

    step: Int[Array, ""]
    variables: Variables
    optimizer: Any
    average: Variables


def init_state(
    system: System,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    loaded: Mapping[str, Array],
    *,
    averaged: bool,
) -> TrainState:
    """A fresh state; run it under jit with output shardings.

    Args:
      system: whose variables are drawn.
      optimizer: whose state is made.
      rng: key.
      loaded: variables that are not drawn, by '/'-joined path.
      averaged: keep a moving average of the variables.

    Returns:
      The state before the first step.
    """
    variables = map_by_path(lambda path, leaf: loaded.get(path, leaf), system.init(rng))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        optimizer=optimizer.init(variables["params"]),
        # Copied: a donated state must not hold one buffer twice.
        average=jax.tree.map(jnp.copy, variables) if averaged else {},
    )


def train_step(
    system: System,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None,
    frozen: tuple[str, ...],
    rng: jax.Array,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, dict[str, Array]]:
    """One step of gradient descent on one global batch.

    Args:
      system: what is trained.
      optimizer: turns gradients into updates.
      ema_decay: of the moving average, None for none. It rises from zero as
        (1 + step) / (10 + step), so that the average forgets the initial draw.
      frozen: rules on paths; what they match gets no gradient and computes as in evaluation,
        its running statistics stay.
      rng: key of the run; the step's own key is folded from it, so a resumed run
        draws what a straight one would.
      state: before the step.
      batch: the global batch.

    Returns:
      The state after the step, and scalars to log.
    """

    def objective(params):
        # Without a gradient, the backward pass of a frozen encoder is never computed.
        params = map_by_path(
            lambda path, leaf: jax.lax.stop_gradient(leaf) if matches(frozen, path) else leaf,
            params,
        )
        with held_still(frozen):
            loss = system.loss(
                {**state.variables, "params": params},
                batch,
                jax.random.fold_in(rng, state.step),
                train=True,
            )
        return loss.value, loss

    gradients, loss = jax.grad(objective, has_aux=True)(state.variables["params"])
    updates, optimizer_state = optimizer.update(
        gradients, state.optimizer, state.variables["params"]
    )
    variables = {
        "params": optax.apply_updates(state.variables["params"], updates),
        "batch_stats": loss.batch_stats,
    }
    average = state.average
    if ema_decay is not None:
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, v: decay * a + (1 - decay) * v, average, variables)
    metrics = {
        "loss": loss.value,
        **loss.metrics,
        "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, variables, optimizer_state, average), metrics


def jit_step(
    system: System,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None,
    frozen: tuple[str, ...],
    rng: jax.Array,
    state_shardings: Any,
    batch_sharding: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`train_step` compiled for a mesh; the old state's memory is given to the new one."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        return train_step(system, optimizer, ema_decay, frozen, rng, state, batch)

    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
    )
