"""The training loop, on one screen; it resumes by itself."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.pipeline import TrainBatches
from spatial_clap_jax.errors import InputError, RunStopped
from spatial_clap_jax.systems.base import Variables, in_use
from spatial_clap_jax.train import failures, processes, sharding
from spatial_clap_jax.train.checkpoint import RunCheckpoints, SaveError
from spatial_clap_jax.train.chips import chip
from spatial_clap_jax.train.description import (
    has_description,
    read_description,
    write_description,
)
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.feeds import Feed, abstract_batch, open_feed
from spatial_clap_jax.train.flops import count_flops
from spatial_clap_jax.train.health import HealthWatch
from spatial_clap_jax.train.interruption import Interrupted, Interruption, call_abandonably
from spatial_clap_jax.train.metrics_log import MetricsLog
from spatial_clap_jax.train.optim import make_optimizer
from spatial_clap_jax.train.place import check_place
from spatial_clap_jax.train.progress import TrainProgress
from spatial_clap_jax.train.provenance import describe_origin, note_start
from spatial_clap_jax.train.resuming import (
    changed_freely,
    check_never_saved,
    check_unchanged,
    resumed_experiment,
)
from spatial_clap_jax.train.run_lock import held
from spatial_clap_jax.train.step import Execution, TrainState, TrainStep, init_state, jit_step


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


class Scores(Protocol):
    """What a training is scored by as it goes; `validation.Validation` is one."""

    def __call__(self, variables: Variables, step: int) -> dict[str, float]:
        """Scores of variables on the host, by name."""
        ...


def train(
    experiment: Experiment,
    data: str | Path,
    workdir: str | Path,
    *,
    progress: bool = True,
    accept: Sequence[str] = (),
    validation: Callable[[Feed], Scores] | None = None,
) -> TrainResult:
    """Trains to `experiment.steps`, from the newest whole checkpoint of `workdir` if it has one.

    At SIGTERM or SIGINT it finishes or abandons the step, saves and raises `Interrupted`.

    Args:
      experiment: the run.
      data: folder of rendered scenes, or of clips in DCASE form for a SELD network.
      workdir: the run's folder; made when missing.
      progress: show a progress bar (or, where there is no terminal, lines).
      accept: what may differ from the run that `workdir` holds; see `resuming.check_unchanged`.
      validation: makes what scores the run every `experiment.evaluate_every` steps.

    Returns:
      Where the run ended.

    Raises:
      InputError: the data or the folder do not fit the experiment, or a checkpoint could not be
        written.
      RunStopped: the numbers of the run went wrong and stayed so.
      Interrupted: a signal came.
    """
    workdir = Path(workdir)
    with Interruption.current() as interruption, ExitStack() as stack:
        with interruption.abandonable(jax.process_count() == 1):
            run = _opened(experiment, data, workdir, accept, validation, progress, stack)
            run.interruption = interruption
            run.compile()
            # Compilers may take longer here than there.
            processes.wait_for_all("compiled")
        # So far all processes have left at once where one got a signal; now they vote on it.
        interruption.stay()
        return run.train()


def _opened(
    experiment: Experiment,
    data: str | Path,
    workdir: Path,
    accept: Sequence[str],
    validation: Callable[[Feed], Scores] | None,
    progress: bool,
    stack: ExitStack,
) -> "_Run":
    """A run at the step where it goes on; what it has opened is closed with the stack."""
    feed = open_feed(experiment, data, resumed_experiment(workdir))
    experiment = feed.experiment
    if experiment.evaluate_every and validation is None:
        raise InputError(
            f"evaluate_every: {experiment.evaluate_every}, but nothing scores the run; give "
            "validation=spatial_clap_jax.validation.Validation, or None."
        )
    description = {
        "experiment": to_plain(experiment),
        "data_fingerprint": feed.fingerprint,
        "dataset": feed.dataset,
        "origin": describe_origin(),
    }
    accepted: list[str] = []
    idle: list[str] = []
    changed: list[str] = []
    found = read_description(workdir) if has_description(workdir) else None
    if found is not None:
        accepted, idle = check_unchanged(
            found, description["experiment"], feed.fingerprint, workdir, accept, feed.dataset
        )
        changed = changed_freely(found, description["experiment"])
        feed.adopt(found)
        description = {**found, **description, "origin": found.get("origin")}
    elif accept:
        raise InputError(f"--accept {accept[0]}: {workdir} holds no run; leave it out.")
    else:
        description |= feed.describe()
    mesh = sharding.make_mesh(shape=experiment.mesh)
    rows = sharding.rows_here(mesh, experiment.data.rows)
    scores = validation(feed) if validation is not None and experiment.evaluate_every else None
    start, step = build_state_and_step(experiment, mesh)
    processes.wait_for_all("checked")
    bar = stack.enter_context(
        TrainProgress(
            experiment.steps,
            experiment.data.rows,
            workers=experiment.data.workers,
            show=progress,
        )
    )
    same = partial(_check_same, workdir, found)
    stack.enter_context(held(workdir, bar.announce, check=same))
    checkpoints = RunCheckpoints(workdir, experiment.keep, experiment.keep_every)
    stack.push(partial(_close, checkpoints, bar.announce))
    if found is None:
        write_description(workdir, description)
        processes.wait_for_all("described")
        # What process 0 has written counts, for all.
        feed.adopt(read_description(workdir))
    batches = feed.batches(rows.tolist())
    stack.callback(batches.close)
    state, place = restore_or_init(start, feed.arrays, checkpoints, bar.announce)
    done = place["step"] if place else 0
    if place:
        batches.set_state(place)
    else:
        check_never_saved(workdir, experiment.checkpoint_every)
    note_start(workdir, done, accepted, changed)
    log = MetricsLog(
        workdir, done if done else None, waiting=place.get("log", ()), wandb=experiment.wandb
    )
    stack.callback(log.close)
    health = HealthWatch(
        experiment.health, workdir, done, batches.samples, bar.announce, place.get("health")
    )
    if accepted:
        # Only now: a run that cannot go on so stays what it was.
        write_description(workdir, description)
    bar.announce(f"{experiment.name}: {sharding.describe_devices()}; from step {done}")
    for note in (
        *feed.notes(),
        *(f"accepted: {difference}" for difference in accepted),
        *(f"--accept {key}: nothing of that name differs from the run" for key in idle),
    ):
        bar.announce(note)
    return _Run(
        experiment, workdir, mesh, checkpoints, batches, log, bar, health, scores, step, state, done
    )


def _close(
    checkpoints: RunCheckpoints,
    tell: Callable[[str], None],
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Ends the last save; one that fails must not hide why the run ends already."""
    if failures.is_loss(error):
        # A save that is under way waits for that process, too.
        return
    try:
        checkpoints.close()
    except InputError as failed:
        if error is None:
            raise
        tell(str(failed))


def _check_same(workdir: Path, found: Mapping[str, Any] | None) -> None:
    """Refuses to begin where another start has written since this one looked."""
    if (read_description(workdir) if has_description(workdir) else None) != found:
        raise InputError(f"{workdir}: another start has changed it meanwhile; start again.")


@dataclass
class _Run:
    """What a training works with, and where it stands: `state` after `done` steps."""

    experiment: Experiment
    workdir: Path
    mesh: Mesh
    checkpoints: RunCheckpoints
    batches: TrainBatches
    log: MetricsLog
    bar: TrainProgress
    health: HealthWatch
    scores: Scores | None
    step: Any
    state: TrainState
    done: int
    interruption: Interruption = field(default_factory=Interruption)
    program: Any = None
    unseen: tuple[int, dict[str, Any]] | None = None
    # In the batches of the steps that are done; another one may have been taken.
    skipped: Counter[str] = field(default_factory=Counter)

    def compile(self) -> None:
        """Compiles the step, while the first batches are built."""
        if self.done < self.experiment.steps:
            self.batches.start_prefetch()
            batch = abstract_batch(self.experiment, self.mesh)
            self.program = compile_step(
                self.experiment, self.mesh, self.step, self.state, batch, self.bar
            )

    def train(self) -> TrainResult:
        """Takes the steps that are left."""
        begun = self.done
        try:
            row = self._take_steps()
        except Interrupted:
            if self.done > begun:
                self._save(wait=True)
            raise Interrupted(
                f"{self.interruption.name}: {self.workdir} is saved at step {self.done} of "
                f"{self.experiment.steps}; the same command goes on"
            ) from None
        return TrainResult(self.workdir, self.done, row)

    def _take_steps(self) -> dict[str, float]:
        experiment, row = self.experiment, {}
        vote = processes.Vote(self.mesh)
        # Process 0 alone has the log, and an evaluation needs them all.
        if self.done and self._evaluates() and processes.as_first(not self._has_scores()):
            self._evaluate()
        # Nothing moves between host and devices unasked, and so unnoticed.
        with jax.transfer_guard("disallow"):
            for batch in self._batches():
                self.state, metrics = self.program(self.state, batch)
                self.bar.at_work(metrics)
                self.done, self.skipped = self.done + 1, self.batches.skipped
                last = self.done == experiment.steps
                self.bar.advance(self.done)
                logs = self.done % experiment.log_every == 0 or last
                saves = self.done % experiment.checkpoint_every == 0 or last
                # The step before is waited for, so that the host runs one step ahead, no more; and
                # this one where what is known of it is written.
                self._see_step_before()
                self.unseen = (self.done, metrics)
                if logs or saves:
                    self._see_step_before()
                    self._bear(lambda: self.health.see_records(self.done, self.skipped))
                if logs:
                    row = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    row |= {
                        "skipped": self.health.skipped,
                        "skipped_records": self.health.skipped_records,
                        **self._rates(),
                    }
                    self._write(row)
                    self.bar.show(self.done, row)
                    self._bear(self.checkpoints.check)
                if self.health.is_hopeless:
                    with jax.transfer_guard("allow"):
                        raise self._stopped()
                # Orbax and JAX's own means of telling other processes move what they want to.
                with jax.transfer_guard("allow"):
                    if saves:
                        self._save(wait=last)
                    if self._evaluates():
                        self._evaluate()
                if vote.cast(self.interruption.is_asked):
                    raise self.interruption.interrupted()
        return row

    def _rates(self) -> dict[str, float]:
        """Those of the bar, with the waiting of the process that waited most: all wait for it."""
        rates = self.bar.rates()
        with jax.transfer_guard("allow"):
            rates["data_wait_share"] = processes.greatest_of_all(rates["data_wait_share"])
        return rates

    def _has_scores(self) -> bool:
        return self.log.has_scores(self.done)

    def _see_step_before(self) -> None:
        """Looks at the numbers of the last step that nobody has looked at."""
        unseen, self.unseen = self.unseen, None
        if unseen is not None:
            self._bear(lambda: self.health.see(*unseen))

    def _stopped(self) -> RunStopped:
        """The end of a run whose numbers stay wrong; what can be kept of it is."""
        self._see_step_before()
        told = []
        try:
            folder = self.health.bundle(self.state, to_plain(self.experiment))
            told.append(f"{folder} tells the samples and the state")
        except OSError as error:
            told.append(f"samples and state could not be written ({error})")
        try:
            self._save(wait=True)
            told.append(f"the last good weights are saved as step {self.done}")
        except (InputError, OSError) as error:
            told.append(f"the last good weights could not be saved ({error})")
        return self.health.stopped(", and ".join(told))

    def _batches(self) -> Iterator[dict]:
        """Batches on the devices, as many as are left; what waiting for them costs is counted."""
        alone, rows = jax.process_count() == 1, self.experiment.data.rows
        while self.done < self.experiment.steps:
            began = time.perf_counter()
            with self.interruption.abandonable(alone):
                batch = next(self.batches)
            # To the guard of the loop, what JAX makes of each process' part is unasked as well.
            with jax.transfer_guard("allow"):
                placed = sharding.put_batch(batch, self.mesh, rows)
            self.bar.waited(began)
            yield placed

    def _save(self, wait: bool) -> None:
        # A batch may have been taken for a step that was then abandoned.
        self._see_step_before()
        place = {
            **self.batches.get_state(),
            "step": self.done,
            "health": self.health.get_state(self.skipped),
            "log": self.log.waiting,
        }
        self._bear(self.checkpoints.wait)
        if self._bear(
            lambda: self.checkpoints.save(self.done, self.state._asdict(), place, wait=wait)
        ):
            return
        if wait:
            raise InputError(
                f"{self.workdir}: step {self.done} could not be saved; make room and start again."
            )

    def _write(self, row: dict[str, float]) -> None:
        self._bear(lambda: self.log.write(self.done, row))

    def _bear(self, write: Callable[[], None]) -> bool:
        """Whether something was written; where it was not, the run goes on only if it may."""
        try:
            write()
        except (SaveError, OSError) as error:
            if self.experiment.failed_save == "stop":
                raise
            self.bar.announce(f"{error} Going on; tried again later.")
            return False
        return True

    def _evaluates(self) -> bool:
        every = self.experiment.evaluate_every
        return every is not None and (self.done % every == 0 or self.done == self.experiment.steps)

    def _evaluate(self) -> None:
        """Writes scores of the averaged weights, where there are such, as a row of the log."""
        assert self.scores is not None
        self.bar.announce(f"step {self.done}: evaluating")
        began = time.perf_counter()
        averaged = self.state.average if jax.tree.leaves(self.state.average) else None
        variables = processes.on_host(averaged or in_use(self.state.variables))
        row: dict[str, float] = {}
        try:
            if processes.is_first_process():
                with self.interruption.abandonable():
                    row = call_abandonably(partial(self.scores, variables, self.done))
        except InputError as error:
            # Worth a line, and no reason to lose a training.
            self.bar.announce(f"step {self.done}: not evaluated: {error}")
        except Interrupted:
            # The others wait below, and all leave from there.
            pass
        processes.wait_for_all(f"evaluated {self.done}")
        if row:
            # Not where it could be abandoned: a row is written once.
            self._write(row)
            told = "  ".join(f"{name.partition('/')[2]} {value:.3f}" for name, value in row.items())
            seconds = time.perf_counter() - began
            self.bar.announce(f"step {self.done}: validation in {seconds:.0f} s: {told}")
            self.bar.paused()
        if not processes.all_agree(not self.interruption.is_asked):
            raise self.interruption.interrupted()


def model_flops(experiment: Experiment, mesh: Mesh, executed: float) -> float:
    """FLOPs of a step without those that are spent again to save memory, over all devices.

    Args:
      experiment: the run.
      mesh: the devices.
      executed: FLOPs of its step as it is, which are these where it saves no memory so.

    Reference: Chowdhery et al. 2022 (PaLM), appendix B: model FLOPs utilisation leaves
      rematerialisation out.
    """
    plain = Execution(scan_layers=experiment.execution.scan_layers)
    if experiment.execution == plain:
        return executed
    experiment = replace(experiment, execution=plain)
    start, step = build_state_and_step(experiment, mesh)
    return count_flops(step.trace(start.eval_shape({}), abstract_batch(experiment, mesh)).jaxpr)


def compile_step(
    experiment: Experiment,
    mesh: Mesh,
    step: Any,
    state: TrainState,
    batch: Any,
    bar: TrainProgress,
) -> Any:
    """Compiles the step, and tells the bar what it costs.

    Args:
      experiment: the run.
      mesh: the devices.
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
    lowered = traced.lower()
    # Other processes would wait for one that gives up.
    program = call_abandonably(lowered.compile) if jax.process_count() == 1 else lowered.compile()
    seconds = time.perf_counter() - began
    bar.announce(f"step compiled in {seconds:.0f} s; {flops / 1e9:,.1f} GFLOPs a step")
    kind = mesh.devices.flat[0].device_kind
    known = chip(kind)
    peak = None if known is None else mesh.size * known.flops_per_s(experiment.precision)
    bar.started(flops, model_flops(experiment, mesh, flops), peak, kind)
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
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[TrainState, dict[str, Any]]:
    """The newest whole checkpoint's state with its place in the data, or a fresh state.

    Args:
      start: see `build_state_and_step`.
      loaded: what a fresh state does not draw.
      checkpoints: of the run.
      tell: is told of checkpoints that are damaged.

    Returns:
      The state, and what was saved beside it: the `step` that it has done and the place in the
      data; nothing beside a fresh one.

    Raises:
      InputError: there are checkpoints, and none is whole.
    """
    if checkpoints.is_empty():
        return start(dict(loaded)), {}
    abstract = jax.tree.map(
        lambda shape, like: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=like),
        start.eval_shape({}),
        start.lower({}).compile().output_shardings,
    )
    saved, place, done = checkpoints.restore_newest(abstract._asdict(), tell, check_place)
    return TrainState(**saved), {**place, "step": done}
