"""The training loop, on one screen; it resumes by itself."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.pipeline import TrainBatches
from spatial_clap_jax.train import processes, sharding
from spatial_clap_jax.train.checkpoint import RunCheckpoints
from spatial_clap_jax.train.chips import peak_flops
from spatial_clap_jax.train.description import (
    has_description,
    read_description,
    write_description,
)
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.feeds import abstract_batch, open_feed
from spatial_clap_jax.train.flops import count_flops
from spatial_clap_jax.train.metrics_log import MetricsLog
from spatial_clap_jax.train.optim import make_optimizer
from spatial_clap_jax.train.progress import TrainProgress
from spatial_clap_jax.train.resuming import check_unchanged, resumed_experiment
from spatial_clap_jax.train.step import TrainState, TrainStep, init_state, jit_step


@dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    Attributes:
      workdir: the run's folder, which holds its checkpoints and logs.
      step: steps done.
      metrics: the last logged row.
    """

    workdir: Path
    step: int
    metrics: dict[str, float]


def train(
    experiment: Experiment, data: str | Path, workdir: str | Path, *, progress: bool = True
) -> TrainResult:
    """Trains to `experiment.steps`, from the newest checkpoint of `workdir` if it has one.

    Args:
      experiment: the run.
      data: folder of rendered scenes, or of clips in DCASE form for a SELD network.
      workdir: the run's folder; made when missing.
      progress: show a progress bar (or, where there is no terminal, lines).

    Returns:
      Where the run ended.

    Raises:
      InputError: the data or the folder do not fit the experiment.
    """
    workdir = Path(workdir)
    with ExitStack() as stack:
        feed = open_feed(experiment, data, resumed_experiment(workdir))
        experiment = feed.experiment
        if has_description(workdir):
            found = read_description(workdir)
            check_unchanged(found, to_plain(experiment), feed.fingerprint, workdir)
            feed.adopt(found)
            description = None
        else:
            description = {
                "experiment": to_plain(experiment),
                "data_fingerprint": feed.fingerprint,
                **feed.describe(),
            }
        mesh = sharding.make_mesh(shape=experiment.mesh)
        global_rows = experiment.data.rows
        rows = sharding.rows_here(mesh, global_rows)
        start, step = build_state_and_step(experiment, mesh)
        processes.wait_for_all("checked")
        checkpoints = RunCheckpoints(workdir, experiment.keep, experiment.keep_every)
        stack.callback(checkpoints.close)
        if description is not None:
            write_description(workdir, description)
            processes.wait_for_all("described")
            # What process 0 has written counts, for all.
            feed.adopt(read_description(workdir))
        batches = feed.batches(rows.tolist())
        stack.callback(batches.close)
        state, done = restore_or_init(start, feed.arrays, checkpoints, batches)
        log = MetricsLog(workdir, done if done else None, wandb=experiment.wandb)
        stack.callback(log.close)
        bar = stack.enter_context(
            TrainProgress(
                experiment.steps, global_rows, workers=experiment.data.workers, show=progress
            )
        )
        bar.announce(f"{experiment.name}: {sharding.describe_devices()}; from step {done}")
        for note in feed.notes():
            bar.announce(note)

        row: dict[str, float] = {}
        metrics: dict[str, Any] = {}
        steps = range(done + 1, experiment.steps + 1)
        if steps:
            # Built while the step compiles.
            batches.start_prefetch()
            program = compile_step(step, state, abstract_batch(experiment, mesh), bar)
        for finished, batch in zip(
            steps, _on_devices(batches, mesh, global_rows, bar), strict=False
        ):
            with jax.transfer_guard("disallow"):
                previous, (state, metrics) = metrics, program(state, batch)
            # The step before is waited for, so that the host runs one step ahead, no more.
            jax.block_until_ready(previous)
            last = finished == experiment.steps
            bar.advance(finished)
            if finished % experiment.log_every == 0 or last:
                row = {name: float(value) for name, value in jax.device_get(metrics).items()}
                row |= bar.rates()
                log.write(finished, row)
                bar.show(finished, row)
            if finished % experiment.checkpoint_every == 0 or last:
                checkpoints.save(finished, state._asdict(), batches.get_state(), wait=last)
        return TrainResult(workdir, max(done, experiment.steps), row)


def _on_devices(
    batches: TrainBatches, mesh: Mesh, global_rows: int, bar: TrainProgress
) -> Iterator[dict]:
    """Batches on the devices; the time that the loop waits for them is counted."""
    while True:
        began = time.perf_counter()
        batch = sharding.put_batch(next(batches), mesh, global_rows)
        bar.waited(time.perf_counter() - began)
        yield batch


def compile_step(step: Any, state: TrainState, batch: Any, bar: TrainProgress) -> Any:
    """Compiles the step, and tells the bar what it costs.

    Args:
      step: see `build_state_and_step`.
      state: the state, or its shapes with shardings.
      batch: a batch on the devices, or its shapes with shardings.
      bar: counts time from here on.

    Returns:
      The compiled step.
    """
    began = time.perf_counter()
    traced = step.trace(state, batch)
    flops = count_flops(traced.jaxpr)
    program = traced.lower().compile()
    seconds = time.perf_counter() - began
    bar.announce(f"step compiled in {seconds:.0f} s; {flops / 1e9:,.1f} GFLOPs a step")
    device = jax.devices()[0]
    bar.started(flops, peak_flops(device.device_kind, len(jax.devices())), device.device_kind)
    return program


def build_state_and_step(experiment: Experiment, mesh: Mesh) -> tuple[Any, Any]:
    """The initial state as a jitted function with shardings, and the jitted step.

    Args:
      experiment: the run.
      mesh: the devices.

    Returns:
      `start`, a jitted function of the arrays that are loaded, by path, that draws the rest of
      the sharded `TrainState`, and `step(state, batch) -> (state, metrics)`.
    """
    system = experiment.build_trainable(mesh.devices.flat[0].platform)
    key = jax.random.key(experiment.seed)
    shapes = jax.eval_shape(system.init, key)["params"]
    optimizer = make_optimizer(experiment.optimizer, experiment.steps, shapes)
    averaged = experiment.ema_decay is not None
    fresh = partial(init_state, system, optimizer, key, averaged=averaged)
    of_parameters = sharding.shard_by_rules(shapes, sharding.parameter_rules(experiment.mesh), mesh)
    shardings = sharding.shard_like_parameters(
        jax.eval_shape(fresh, {}), shapes, of_parameters, mesh
    )
    start = jax.jit(fresh, out_shardings=shardings)
    step = TrainStep(
        system=system,
        optimizer=optimizer,
        rng=jax.random.fold_in(key, 1),
        ema_decay=experiment.ema_decay,
        frozen=experiment.optimizer.frozen,
        mesh=mesh,
        execution=experiment.execution,
        steps=experiment.steps,
    )
    return start, jit_step(step, shardings, sharding.batch_sharding(mesh))


def restore_or_init(
    start: Any,
    loaded: Mapping[str, np.ndarray],
    checkpoints: RunCheckpoints,
    batches: TrainBatches,
) -> tuple[TrainState, int]:
    """The newest checkpoint's state with its place in the data, or a fresh state.

    Args:
      start: see `build_state_and_step`.
      loaded: what a fresh state does not draw.
      checkpoints: of the run.
      batches: whose place is set.

    Returns:
      The state, and the number of steps that it has done.
    """
    done = checkpoints.latest()
    if done is None:
        return start(dict(loaded)), 0
    abstract = jax.tree.map(
        lambda shape, like: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=like),
        start.eval_shape({}),
        start.lower({}).compile().output_shardings,
    )
    saved, data_state = checkpoints.restore(abstract._asdict(), done)
    batches.set_state(data_state)
    return TrainState(**saved), done
