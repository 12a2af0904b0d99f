"""Clips a second, MFU and memory of a training step of Spatial-CLAP, batch by batch to the largest.

    python benchmarks/throughput.py --size base                         # on an accelerator
    python benchmarks/throughput.py --size quickstart --batches 8 16    # anywhere

There is no peer: `step.py` sets a model that PyTorch has too beside it. Batches are noise with as
many captions as are asked for; the first that does not fit into memory ends the row. MFU is of the
model's FLOPs and the device's published peak, where that is known. `--trace DIR` profiles three
steps of the fastest batch, for XProf or Perfetto.
"""

import dataclasses
import json as json_module
import os
import time
from pathlib import Path
from typing import Any, Literal

# Memory is what a step needs, and not what was set aside.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from side_by_side import Spread, machine, machine_line

from spatial_clap_jax.train.chips import chip
from spatial_clap_jax.train.experiment import Experiment, load_config
from spatial_clap_jax.train.feeds import abstract_batch
from spatial_clap_jax.train.flops import count_flops
from spatial_clap_jax.train.sharding import make_mesh
from spatial_clap_jax.train.step import Execution
from spatial_clap_jax.train.trainer import build_state_and_step, model_flops


def main(
    config: str = "spatial_clap",
    size: str = "base",
    batches: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048),
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    remat: Literal["none", "elementwise", "blocks"] = "none",
    scan_layers: tyro.conf.FlagConversionOff[bool] = True,
    repeats: int = 10,
    trace: Path | None = None,
    json: bool = False,
) -> None:
    """Takes steps of every batch on all devices of this machine and prints a table.

    Args:
      config: an experiment of a contrastive system.
      size: of it.
      batches: captions a step, ascending.
      precision: of the computation; auto is bfloat16 on accelerators.
      remat: what the backward pass computes again.
      scan_layers: compile equal layers once.
      repeats: timed steps of each batch.
      trace: folder for a profile.
      json: print a line of JSON for each batch.
    """
    experiment = load_config(config, size)
    execution = Execution(remat=remat, scan_layers=scan_layers)
    experiment = dataclasses.replace(experiment, precision=precision, execution=execution)
    device = jax.devices()[0]
    title = f"{experiment.name}, {size}, {jax.device_count()} x {device.device_kind}"
    table = Table("captions", "clips/s", "MFU", "memory, GB", "GFLOPs a step", title=title)
    fastest: tuple[float, int] | None = None
    for batch in batches:
        try:
            found = measured(experiment, batch, repeats)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{batch:,} captions do not fit into memory", flush=True)
            break
        speed = found["clips_per_s"]
        if json:
            told = {**found, "clips_per_s": dataclasses.asdict(speed), "machine": machine()}
            print(json_module.dumps({"config": config, "size": size, "batch": batch, **told}))
        table.add_row(
            f"{batch:,}",
            f"{speed.min:.1f} / {speed.median:.1f} / {speed.max:.1f}",
            "unknown peak" if found["mfu"] is None else f"{found['mfu']:.1%}",
            f"{found['bytes'] / 1e9:.2f}",
            f"{found['flops_per_step'] / 1e9:,.0f}",
        )
        fastest = max(filter(None, (fastest, (speed.median, batch))))
    if not json:
        console = Console()
        console.print(table)
        console.print(machine_line(), markup=False, highlight=False)
    if trace is not None and fastest is not None:
        call = step_of(experiment, fastest[1])[0]
        call()
        with jax.profiler.trace(str(trace)):
            for _ in range(3):
                call()
        print(f"{trace}: profile of three steps of {fastest[1]:,} captions")


def measured(experiment: Experiment, batch: int, repeats: int) -> dict[str, Any]:
    """Speed, share of the peak, FLOPs and memory a device of steps of one batch."""
    call, flops, of_model, size = step_of(experiment, batch)
    taken = []
    for _ in range(2):
        call()
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    known = chip(jax.devices()[0].device_kind)
    middle = Spread.of(taken).median
    peak = known.flops_per_s(experiment.precision) * jax.device_count() if known else None
    return {
        "clips_per_s": Spread.of([batch / seconds for seconds in taken]),
        "mfu": of_model / middle / peak if peak else None,
        "flops_per_step": flops,
        "model_flops_per_step": of_model,
        "bytes": size,
    }


def step_of(experiment: Experiment, batch: int) -> tuple[Any, float, float, int]:
    """A call that takes a step of noise, its FLOPs and the model's, and bytes that it needs."""
    experiment = dataclasses.replace(experiment, data=experiment.data.with_rows(batch))
    mesh = make_mesh(jax.devices(), experiment.mesh)
    start, step = build_state_and_step(experiment, mesh)
    shapes = abstract_batch(experiment, mesh)
    traced = step.trace(start.eval_shape({}), shapes)
    flops = count_flops(traced.jaxpr)
    program = traced.lower().compile()
    memory = program.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    arrays = {
        name: jax.device_put(noise(name, like), like.sharding) for name, like in shapes.items()
    }
    held = [start({})]

    def call() -> None:
        held[0], metrics = program(held[0], arrays)
        jax.block_until_ready((held[0], metrics))

    return call, flops, model_flops(experiment, mesh, flops), size


def noise(name: str, like: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of a batch: quiet noise, words, everything unmasked, two captions a scene group."""
    rng = np.random.default_rng(0)
    if like.dtype == bool:
        return np.ones(like.shape, bool)
    if name == "tokens":
        return rng.integers(4, 100, like.shape).astype(like.dtype)
    if np.issubdtype(like.dtype, np.integer):
        pairs = np.arange(like.shape[0]) // (2 if name == "group" else 1)
        return np.broadcast_to(pairs.astype(like.dtype), like.shape)
    return 0.1 * rng.normal(size=like.shape).astype(like.dtype)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
