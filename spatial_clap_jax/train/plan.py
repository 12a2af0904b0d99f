"""What a training step needs of accelerators that are not here: the very step, compiled for them.

Nothing runs: XLA's compilers for TPUs need no TPU. What it says of memory is the compiler's own
account; what it says of time is a roofline, below which no step can get.
"""

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.table import Table

from spatial_clap_jax import shown
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import hlo, sharding, warm_start
from spatial_clap_jax.train.chips import Chip, chip
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.feeds import abstract_batch
from spatial_clap_jax.train.flops import count_flops
from spatial_clap_jax.train.topology import devices_of
from spatial_clap_jax.train.trainer import build_state_and_step, model_flops


@dataclass(frozen=True)
class Plan:
    """What one training step needs: bytes, FLOPs and seconds are of one chip and one step.

    A chip is what JAX calls a device (on TPU7x, half a chip). What cannot be known is None: the
    peaks of a chip that `chips.chip` does not know, and all but memory and FLOPs where the
    compiler refuses the program for want of memory.

    Attributes:
      name: of the experiment.
      topology: as it was asked for.
      device_kind: JAX's name of the chip.
      devices: chips in all.
      global_batch: captions in a batch, over all chips.
      hbm_peak_bytes: main memory that the step needs.
      hbm_capacity_bytes: main memory that a program can have.
      fits: whether the one is no more than the other.
      parameter_bytes: parameters and running statistics, as they are split over chips.
      average_bytes: their moving average.
      optimizer_bytes: state of the optimiser.
      batch_bytes: this chip's share of the batch.
      temporary_bytes: the rest: activations, gradients, buffers, the program.
      flops_per_step: of matrix products, convolutions and FFTs, those that are computed again
        to save memory too.
      model_flops_per_step: without these.
      bytes_per_step: read from and written to main memory; what stays on the chip costs none. None,
        as all that follows but the time of compilation, where the program was refused, or is
        written in a form that `hlo` cannot read.
      collectives: bytes of results of each kind of exchange; those that begin with 'dcn-' pass
        between slices.
      seconds: the least time of each part by itself: compute, hbm, interconnect.
      step_seconds_bound: the largest of `seconds`: the parts at their best, side by side.
      bound_by: which part that is.
      mfu_bound: share of the chip's peak that the model's FLOPs then are.
      largest_batch: the largest global batch that fits, on a line through the two batches of
        `largest_batch_from`; an estimate.
      largest_batch_from: global batches that were compiled.
      compile_seconds: of all compilations.
    """

    name: str
    topology: str
    device_kind: str
    devices: int
    global_batch: int
    hbm_peak_bytes: int
    hbm_capacity_bytes: int | None
    fits: bool | None
    parameter_bytes: int
    average_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    temporary_bytes: int
    flops_per_step: float
    model_flops_per_step: float
    bytes_per_step: float | None
    collectives: dict[str, float] | None
    seconds: dict[str, float] | None
    step_seconds_bound: float | None
    bound_by: str | None
    mfu_bound: float | None
    largest_batch: int | None
    largest_batch_from: list[int]
    compile_seconds: float


def plan(
    experiment: Experiment,
    topology: str,
    global_batch: int | None = None,
    *,
    largest: bool = True,
    fast: bool = False,
    progress: bool = True,
) -> Plan:
    """Compiles the training step of an experiment for other machines, and says what it needs.

    Args:
      experiment: the run.
      topology: a TPU slice ('v5e:16x16', 'v5p:4x4x4'), several ('v5e:16x16*2', which become
        `mesh.replica` where that is 1), or 'cpu' or 'gpu' for the devices of this machine.
      global_batch: captions over all chips; the experiment's where None.
      largest: compile a second time, for the largest batch that fits.
      fast: compile a TPU's program with little effort: much sooner, but XLA then leaves more in
        main memory, so bytes and peak come out higher than in training.
      progress: say on stderr what is being compiled.

    Raises:
      InputError: no such topology, no compiler or device for it, or a batch that does not
        divide by the chips; a source of `init` that cannot be read.
    """
    devices, _ = devices_of(topology)
    # An encoder brings its shape.
    experiment, _ = warm_start.adopt(experiment)
    mesh = sharding.make_mesh(devices, experiment.mesh)
    batch = experiment.data.rows if global_batch is None else global_batch
    if batch < 1 or batch % mesh.size:
        nearest = max(round(batch / mesh.size), 1) * mesh.size
        raise InputError(
            f"--global-batch {batch}: is no multiple of the {mesh.size} chips of {topology}; "
            f"give {nearest}."
        )
    step = _compile(experiment, mesh, batch, fast=fast, progress=progress)
    capacity = step.capacity or _capacity(mesh)
    compiled = [step]
    # Pairs of a scene group stand in one batch, and every micro-batch is spread over all chips.
    unit = 2 * mesh.size * experiment.execution.micro_batches
    if largest and capacity is not None:
        # Half as many; of a batch that is far too large, about as many as fit.
        other = max(int(batch * min(0.5, capacity / step.peak)) // unit, 1) * unit
        other = other if other < batch else batch + unit
        compiled.append(_compile(experiment, mesh, other, fast=fast, progress=progress))
    return Plan(
        name=experiment.name,
        topology=topology,
        device_kind=devices[0].device_kind,
        devices=mesh.size,
        global_batch=batch,
        hbm_peak_bytes=step.peak,
        hbm_capacity_bytes=capacity,
        fits=None if capacity is None else step.capacity is None and step.peak <= capacity,
        **step.parts,
        temporary_bytes=max(step.peak - sum(step.parts.values()), 0),
        flops_per_step=step.flops / mesh.size,
        model_flops_per_step=step.model_flops / mesh.size,
        **_roofline(step, mesh, experiment),
        largest_batch=_largest(compiled, unit, capacity),
        largest_batch_from=[one.batch for one in compiled] if len(compiled) > 1 else [],
        compile_seconds=sum(one.seconds for one in compiled),
    )


def print_plan(found: Plan) -> None:
    """Prints a plan as a table on standard output."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("one chip, one step")
    table.add_column("amount", justify="right")
    table.add_column("time at best", justify="right")
    for name, size in (
        ("parameters", found.parameter_bytes),
        ("their moving average", found.average_bytes),
        ("optimiser", found.optimizer_bytes),
        ("batch", found.batch_bytes),
        ("activations and all else", found.temporary_bytes),
    ):
        table.add_row(name, _size(size))
    peak, capacity = _size(found.hbm_peak_bytes), found.hbm_capacity_bytes
    peak = peak if capacity is None else f"{peak} of {_size(capacity)}"
    table.add_row("memory at its peak", peak, end_section=True)
    times = {part: _duration(value) for part, value in (found.seconds or {}).items()}
    table.add_row("FLOPs", f"{found.flops_per_step / 1e9:,.3f} G", times.get("compute"))
    if found.model_flops_per_step != found.flops_per_step:
        table.add_row("of them the model's", f"{found.model_flops_per_step / 1e9:,.3f} G")
    if found.bytes_per_step is not None:
        table.add_row("memory traffic", _size(found.bytes_per_step), times.get("hbm"))
    for kind, size in sorted((found.collectives or {}).items()):
        table.add_row(kind, _size(size))
    if found.collectives:
        table.add_row("all exchanges", "", times.get("interconnect"))
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        shown.cell(
            f"{found.name} on {found.topology}: {found.devices} x {found.device_kind}, "
            f"{found.global_batch:,} captions a batch"
        )
    )
    console.print(table)
    for line in _verdicts(found):
        console.print(line)


def _verdicts(found: Plan) -> Iterator[str]:
    if found.fits is None:
        yield f"{found.device_kind}: peaks unknown; memory and counts only."
    else:
        yield "It fits." if found.fits else "It does not fit."
    if found.fits and found.collectives is None:
        yield "Its program cannot be read: no traffic, exchanges and bound."
    if found.step_seconds_bound is not None and found.mfu_bound is not None:
        yield (
            f"A step takes at least {_duration(found.step_seconds_bound)}, bound by "
            f"{found.bound_by}; model FLOPs utilisation is at most {found.mfu_bound:.1%}."
        )
    if found.largest_batch is not None:
        batches = " and ".join(f"{batch:,}" for batch in found.largest_batch_from)
        yield (
            f"The largest batch that fits is about {found.largest_batch:,}: an estimate from two "
            f"compilations, at {batches}."
        )


def _size(size: float) -> str:
    power = max(i for i in range(4) if size >= 1024**i or i == 0)
    return f"{size / 1024**power:,.2f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:,.2f} us"


_FAST = {
    "tpu": {"exec_time_optimization_effort": -1.0},
    # Nothing runs: machine code of any quality will do, and memory is the same.
    "cpu": {"xla_backend_optimization_level": 0},
}


@dataclass(frozen=True)
class _Compiled:
    """A step of one batch: what its arguments take on a chip, its FLOPs on all chips, all of them
    and the model's, the text of its program, its memory.

    `capacity` is what it may have, where the compiler refused it.
    """

    batch: int
    parts: dict[str, int]
    flops: float
    model_flops: float
    program: str | None
    peak: int
    capacity: int | None
    seconds: float


def _compile(
    experiment: Experiment, mesh: Mesh, batch: int, *, fast: bool, progress: bool
) -> _Compiled:
    began = time.perf_counter()
    platform = mesh.devices.flat[0].platform
    options = _FAST.get(platform) if fast or platform == "cpu" else None
    title = f"compiling {experiment.name}, {batch:,} captions a batch"
    with _status(title, show=progress), tempfile.TemporaryDirectory() as folder:
        traced, parts = _trace(experiment, mesh, batch)
        if platform == "tpu":
            options = {**(options or {}), "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            executable = traced.lower().compile(compiler_options=options)
            program, capacity = _program_text(executable, Path(folder)), None
            memory = executable.memory_analysis()
            peak = (
                memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                - memory.alias_size_in_bytes
                + memory.temp_size_in_bytes
                + memory.generated_code_size_in_bytes
            )
        except jax.errors.JaxRuntimeError as error:
            program, (peak, capacity) = None, refusal(error)
    seconds = time.perf_counter() - began
    flops = count_flops(traced.jaxpr)
    of_model = model_flops(_with_batch(experiment, batch), mesh, flops)
    return _Compiled(batch, parts, flops, of_model, program, peak, capacity, seconds)


def _program_text(executable: jax.stages.Compiled, folder: Path) -> str | None:
    """A compiled program as its compiler has written it into a folder, else as JAX tells it.

    libtpu may use instructions of which this JAX makes no text.
    """
    written = list(folder.glob("*.after_optimizations.txt"))
    if written:
        return max(written, key=lambda path: path.stat().st_size).read_text(encoding="utf-8")
    try:
        return executable.as_text()
    except jax.errors.JaxRuntimeError:
        return None


def _trace(experiment: Experiment, mesh: Mesh, batch: int) -> tuple[Any, dict[str, int]]:
    """The training step of a batch, traced, and the bytes of its arguments on one chip."""
    experiment = _with_batch(experiment, batch)
    start, step = build_state_and_step(experiment, mesh)
    arrays = abstract_batch(experiment, mesh)
    state = start.eval_shape({})
    parts = {
        "parameter_bytes": _bytes_of(state.variables),
        "average_bytes": _bytes_of(state.average),
        "optimizer_bytes": _bytes_of(state.optimizer),
        "batch_bytes": _bytes_of(arrays),
    }
    return step.trace(state, arrays), parts


def _with_batch(experiment: Experiment, batch: int) -> Experiment:
    return replace(experiment, data=experiment.data.with_rows(batch))


def _bytes_of(tree: Any) -> int:
    """Bytes of a chip's share of a tree."""
    return sum(
        leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(tree)
    )


_REFUSALS = (
    r"\((?P<needed>[\d.]+)(?P<n>[KMGT]?)\) exceeds available HBM "
    r"\((?P<given>[\d.]+)(?P<g>[KMGT]?)\)",
    r"Used (?P<needed>[\d.]+)(?P<n>[KMGT]?) of (?P<given>[\d.]+)(?P<g>[KMGT]?) hbm",
)


def refusal(error: Exception) -> tuple[int, int]:
    """What a program needs, of a compiler that refused it for want of memory.

    Args:
      error: the compiler's.

    Returns:
      Bytes that it needs, and bytes that it may have.

    Raises:
      Exception: the error, where it is another one.
    """
    for form in _REFUSALS:
        if found := re.search(form, str(error)):
            needed, given = (
                float(found[size]) * 1024 ** " KMGT".index(found[unit] or " ")
                for size, unit in (("needed", "n"), ("given", "g"))
            )
            return int(needed), int(given)
    raise error


def _capacity(mesh: Mesh) -> int | None:
    device = mesh.devices.flat[0]
    if device.platform == "gpu":
        # What JAX takes of a card that is here.
        return (device.memory_stats() or {}).get("bytes_limit")
    known = chip(device.device_kind)
    return known.hbm_bytes if known else None


def _roofline(step: _Compiled, mesh: Mesh, experiment: Experiment) -> dict[str, Any]:
    """The fields of a plan that need the compiled program."""
    bounds: dict[str, Any] = dict.fromkeys(
        ("seconds", "step_seconds_bound", "bound_by", "mfu_bound")
    )
    unknown = {"bytes_per_step": None, "collectives": None, **bounds}
    if step.program is None:
        return unknown
    try:
        program = hlo.parse(step.program)
        exchanges = hlo.collectives(program, mesh.size)
        moved = hlo.memory_bytes(program)
    except (LookupError, ValueError, RuntimeError):
        # Forms that a newer compiler writes; sizes are known all the same.
        return unknown
    results: dict[str, float] = defaultdict(float)
    for exchange in exchanges:
        results[("dcn-" if exchange.between_slices else "") + exchange.kind] += exchange.bytes
    known = chip(mesh.devices.flat[0].device_kind)
    exchanging = None if known is None else _exchange_seconds(exchanges, known)
    if known is not None and exchanging is not None:
        peak = known.flops_per_s(experiment.precision)
        seconds = {
            "compute": step.flops / mesh.size / peak,
            "hbm": moved / known.hbm_bytes_per_s,
            "interconnect": exchanging,
        }
        bound_by = max(seconds, key=lambda part: seconds[part])
        bounds = {
            "seconds": seconds,
            "step_seconds_bound": seconds[bound_by],
            "bound_by": bound_by,
            "mfu_bound": step.model_flops / mesh.size / peak / seconds[bound_by],
        }
    return {"bytes_per_step": moved, "collectives": dict(results), **bounds}


def _exchange_seconds(exchanges: list[hlo.Collective], known: Chip) -> float | None:
    """The time of all exchanges, those within slices beside those between them.

    None where something is sent between slices and how fast is not known.
    """
    inside = sum(e.sent_bytes for e in exchanges if not e.between_slices)
    between = sum(e.sent_bytes for e in exchanges if e.between_slices)
    if between and known.network_bytes_per_s is None:
        return None
    network = between / known.network_bytes_per_s if known.network_bytes_per_s else 0.0
    # What is sent fills one direction of the links.
    return max(inside / (known.interconnect_bytes_per_s / 2), network)


def _largest(compiled: list[_Compiled], unit: int, capacity: int | None) -> int | None:
    """The largest multiple of `unit` that fits, on the line through two batches."""
    if len(compiled) < 2 or capacity is None:
        return None
    small, large = sorted(compiled, key=lambda one: one.batch)
    slope = (large.peak - small.peak) / (large.batch - small.batch)
    if slope <= 0:
        return None
    return max(int((capacity - small.peak) / slope + small.batch) // unit * unit, 0)


@contextmanager
def _status(text: str, *, show: bool) -> Iterator[None]:
    console = Console(stderr=True, quiet=not show)
    line = shown.cell(text)
    if console.is_terminal:
        with console.status(line):
            yield
    else:
        console.print(line, highlight=False)
        yield
