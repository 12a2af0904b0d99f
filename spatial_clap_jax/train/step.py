"""The training step: pure, then jitted over a mesh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.layers import (
    Remat,
    executed,
    held_still,
    rows_over,
    tokens_as_rows,
)
from spatial_clap_jax.systems.base import Batch, Encoded, Following, Trainable, Variables, in_use
from spatial_clap_jax.train.optim import map_by_path, matches


class TrainState(NamedTuple):
    """All that a step reads and writes.

    Attributes:
      step: steps done.
      variables: parameters, running statistics, and what else a system trains with.
      optimizer: state of the optimiser.
      average: exponential moving average of the variables that are in use after the training
        (`systems.base.in_use`); empty without.
    """

    step: Int[Array, ""]
    variables: Variables
    optimizer: Any
    average: Variables


def init_state(
    system: Trainable,
    optimizer: optax.GradientTransformationExtraArgs,
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
        average=jax.tree.map(jnp.copy, in_use(variables)) if averaged else {},
    )


@dataclass(frozen=True)
class Execution:
    """How a step is computed. None of it changes what is computed, but for rounding (and, with
    micro-batches, whose statistics BatchNorm takes and which values dropout draws).

    Attributes:
      micro_batches: parts of the global batch that are encoded one after the other. The loss is
        still that of the whole batch: embeddings first, then every part once more for its
        gradient. Memory is that of a part, for one more forward pass.
      remat: what the backward pass computes again in place of keeping it: 'none' of it, all but
        products with weights ('elementwise'), or all inside a block ('blocks').
      scan_layers: compile equal layers of HTSAT, ViT and the text encoder once, and loop.
    """

    micro_batches: int = 1
    remat: Remat = "none"
    scan_layers: bool = False

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise InputError(
                f"execution.micro_batches: {self.micro_batches} is too small; give at least 1."
            )


@dataclass(frozen=True)
class TrainStep:
    """One step of gradient descent on one global batch, as a pure function.

    Attributes:
      system: what is trained.
      optimizer: turns gradients into updates.
      rng: key of the run; the step's own key is folded from it, so a resumed run
        draws what a straight one would.
      ema_decay: of the moving average, None for none. It rises from zero as
        (1 + step) / (10 + step), so that the average forgets the initial draw.
      frozen: rules on paths; what they match gets no gradient and computes as in evaluation,
        its running statistics stay.
      mesh: the devices that the batch's rows are split over; None for one.
      execution: how it is computed.
      steps: of the whole run, for what a `Following` system moves by a schedule.
    """

    system: Trainable
    optimizer: optax.GradientTransformationExtraArgs
    rng: jax.Array
    ema_decay: float | None = None
    frozen: tuple[str, ...] = ()
    mesh: Mesh | None = None
    execution: Execution = Execution()
    steps: int = 1

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Takes a step; one whose loss or gradients are not finite changes nothing but its number.

        Args:
          state: before the step.
          batch: the global batch.

        Returns:
          The state after the step, and scalars to log; `applied` is 1, or 0 where it was not.
        """
        gradients, loss, metrics, batch_stats = self._gradients(state, batch)
        params = state.variables["params"]
        updates, optimizer_state = self.optimizer.update(
            gradients, state.optimizer, params, value=loss
        )
        params = optax.apply_updates(params, updates)
        variables = {**state.variables, "params": params, "batch_stats": batch_stats}
        if isinstance(self.system, Following):
            progress = state.step / jnp.float32(max(self.steps - 1, 1))
            variables = self.system.after_update(variables, progress)
        average = state.average
        if self.ema_decay is not None:
            decay = jnp.minimum(self.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(
                lambda a, v: decay * a + (1 - decay) * v, average, in_use(variables)
            )
        norm = optax.tree.norm(gradients)
        applied = jnp.isfinite(loss) & jnp.isfinite(norm)
        after = TrainState(state.step, variables, optimizer_state, average)
        kept = jax.tree.map(partial(jnp.where, applied), after, state)
        metrics = {"loss": loss, **metrics, "gradient_norm": norm, "applied": applied * 1.0}
        return kept._replace(step=state.step + 1), metrics

    def _gradients(self, state: TrainState, batch: Batch) -> tuple[Any, Array, dict, Variables]:
        rng = jax.random.fold_in(self.rng, state.step)
        if self.execution.micro_batches > 1:
            return self._gradients_in_parts(state, batch, rng)

        def objective(params):
            encoded = self._encode(params, state, batch, rng)
            loss, metrics = self.system.objective(encoded.rows, encoded.shared, batch, self.mesh)
            return loss, (metrics, encoded.batch_stats)

        (loss, (metrics, batch_stats)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.variables["params"]
        )
        return gradients, loss, metrics, batch_stats

    def _gradients_in_parts(
        self, state: TrainState, batch: Batch, rng: jax.Array
    ) -> tuple[Any, Array, dict, Variables]:
        """The same by gradient caching: no more than one part's activations are ever held.

        Reference: Gao et al., arXiv 2101.06983.
        """
        count = self.execution.micro_batches
        params = state.variables["params"]
        parts = {name: self._split(name, array) for name, array in batch.items()}
        keys = jax.random.split(rng, count)

        def encode(params: Any, entry: tuple) -> Encoded:
            part, key = entry
            return self._encode(params, state, part, key)

        encoded = jax.lax.map(partial(encode, params), (parts, keys))
        rows = jax.tree.map(self._join, encoded.rows)
        # Every part gives the same scalars; running statistics are the mean over the parts.
        shared = jax.tree.map(lambda x: x[0], encoded.shared)
        batch_stats = jax.tree.map(lambda x: x.mean(axis=0), encoded.batch_stats)
        (loss, metrics), (to_rows, to_shared) = jax.value_and_grad(
            lambda rows, shared: self.system.objective(rows, shared, batch, self.mesh),
            argnums=(0, 1),
            has_aux=True,
        )(rows, shared)
        to_rows = {name: self._split(name, array) for name, array in to_rows.items()}
        to_shared = jax.tree.map(lambda x: x / count, to_shared)

        def accumulate(total: Any, entry: tuple) -> tuple[Any, None]:
            part, key, to_part = entry

            def outputs(params: Any) -> tuple:
                encoded = encode(params, (part, key))
                return encoded.rows, encoded.shared

            _, back = jax.vjp(outputs, params)
            (gradients,) = back((to_part, to_shared))
            return jax.tree.map(jnp.add, total, gradients), None

        nothing = jax.tree.map(jnp.zeros_like, params)
        gradients, _ = jax.lax.scan(accumulate, nothing, (parts, keys, to_rows))
        return gradients, loss, metrics, batch_stats

    def _encode(self, params: Any, state: TrainState, batch: Batch, rng: jax.Array) -> Encoded:
        # Without a gradient, the backward pass of a frozen encoder is never computed.
        params = map_by_path(
            lambda path, leaf: jax.lax.stop_gradient(leaf) if matches(self.frozen, path) else leaf,
            params,
        )
        variables = {**state.variables, "params": params}
        how = self.execution
        with (
            held_still(self.frozen),
            rows_over(self.mesh),
            tokens_as_rows(self.mesh),
            executed(how.remat, how.scan_layers),
        ):
            return self.system.encode(variables, batch, rng, train=True)

    def _split(self, name: str, array: Array) -> Array:
        """Into parts [m, b/m, ...] to which every device gives a share of its rows."""
        count, devices = self.execution.micro_batches, 1 if self.mesh is None else self.mesh.size
        batch = len(array)
        if batch % (count * devices):
            raise InputError(
                f"execution.micro_batches: {batch} rows of {name!r} do not divide into {count} "
                f"parts for {devices} devices; take a batch that is a multiple of "
                f"{count * devices}, or other parts."
            )
        cut = array.reshape(devices, count, batch // (count * devices), *array.shape[1:])
        parts = cut.swapaxes(0, 1).reshape(count, batch // count, *array.shape[1:])
        return self._over_devices(parts, axis=1)

    def _join(self, parts: Array) -> Array:
        """The inverse of `_split`."""
        count, devices = self.execution.micro_batches, 1 if self.mesh is None else self.mesh.size
        cut = parts.reshape(count, devices, -1, *parts.shape[2:]).swapaxes(0, 1)
        return self._over_devices(cut.reshape(-1, *parts.shape[2:]), axis=0)

    def _over_devices(self, array: Array, axis: int) -> Array:
        if self.mesh is None:
            return array
        spec = PartitionSpec(*[None] * axis, tuple(self.mesh.axis_names))
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))


def jit_step(
    step: TrainStep, state_shardings: Any, batch_sharding: Any
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A step compiled for a mesh; the old state's memory is given to the new one."""
    return jax.jit(
        step.__call__,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
    )
