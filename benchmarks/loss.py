"""The contrastive loss without all pairs in memory: time and memory beside the dense loss.

    python benchmarks/loss.py                                                   # this machine
    python benchmarks/loss.py --topology v5e:16x16 --pairs 262144 --width 512   # extra `tpu`

Both sides compute the loss and its gradients for audio, text and scale. On this machine each batch
is measured in time, and in temporaries as the compiler plans them. Where dense would take more
memory than it is worth, ours runs by itself, in a process of its own that tells the most that it
held. With `--topology` nothing is run: both are compiled for those chips, the batch split over all
of them, and the temporaries of one chip are told; those that the compiler asked for, where it
refused the dense loss for want of memory.
"""

import dataclasses
import json as json_module
import multiprocessing
import re
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from side_by_side import Spread, compare, machine, machine_line, report, use_threads

from spatial_clap_jax.losses import contrastive
from spatial_clap_jax.train.plan import refusal
from spatial_clap_jax.train.sharding import batch_sharding, make_mesh
from spatial_clap_jax.train.topology import devices_of

# Above this, dense logits (and as much again for each of its temporaries) are not tried here.
_DENSE_LIMIT_BYTES = 2**30


def main(
    pairs: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768),
    width: int = 512,
    kind: Literal["info_nce", "siglip"] = "info_nce",
    block: int = contrastive.BLOCK,
    topology: str | None = None,
    with_dense: bool = True,
    threads: int = 2,
    repeats: int = 3,
    json: bool = False,
) -> None:
    """Measures the losses at several batch sizes.

    Args:
      pairs: batch sizes.
      width: of the embeddings.
      kind: which loss.
      block: rows and columns of a block of pairs.
      topology: compile for these chips in place of running, such as v5e:16x16.
      with_dense: compile the dense loss for the topology too.
      threads: cores for each side.
      repeats: timed calls of each side.
      json: print a line of JSON for each batch size.
    """
    settings = {"width": width, "kind": kind, "block": block}
    if topology is not None:
        mesh = make_mesh(devices_of(topology)[0])
        for batch in pairs:
            sizes = {"ours": temporaries(kind, batch, width, mesh, block)}
            if with_dense:
                sizes["dense"] = temporaries(kind, batch, width, mesh, None)
            told = {"pairs": batch, "topology": topology, "devices": mesh.size, **settings}
            if json:
                print(json_module.dumps({**told, **planned(**sizes), "machine": machine()}))
            else:
                text = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in sizes.items())
                print(f"{topology}, {batch:,} pairs: temporaries a chip: {text}", flush=True)
        if not json:
            print(machine_line())
        return
    use_threads(threads)
    mesh = make_mesh(jax.devices()[:1])
    for batch in pairs:
        temporary = {"temp_bytes": temporaries(kind, batch, width, mesh, block)}
        temporary["peer_temp_bytes"] = temporaries(kind, batch, width, mesh, None)
        if 4 * batch**2 > _DENSE_LIMIT_BYTES:
            seconds, resident = alone(kind, batch, width, block, threads, repeats)
            if json:
                told = {"name": f"{kind}, {batch:,} pairs", "pairs": batch, **settings, **temporary}
                told |= {"ours": dataclasses.asdict(seconds), "peer": None, "ratio": None}
                told |= {"unit": "s", "resident_bytes": resident, "machine": machine()}
                print(json_module.dumps(told))
            else:
                print(
                    f"{batch:,} pairs: ours {seconds.min:.3g} / {seconds.median:.3g} / "
                    f"{seconds.max:.3g} s, {temporary['temp_bytes'] / 1e6:,.0f} MB of temporaries, "
                    f"{resident / 1e6:,.0f} MB resident in all; dense would take "
                    f"{temporary['peer_temp_bytes'] / 1e9:.1f} GB and is not run",
                    flush=True,
                )
                print(machine_line(), flush=True)
            continue
        ours = call_of(kind, batch, width, block)
        dense = call_of(kind, batch, width, None)
        name = f"{kind}, {batch:,} pairs"
        found = compare(ours, dense, repeats, name=name, peer_name="dense")
        report([found], {"pairs": batch, **settings, **temporary, "repeats": repeats}, json)


def gradients_of(kind: str, mesh: Mesh | None, block: int | None):
    """Loss and gradients as a function of audio, text and scale; dense where `block` is None."""
    layout = {} if block is None else {"mesh": mesh, "block": block}
    loss = getattr(contrastive, kind if block is None else f"ring_{kind}")
    bias = () if kind == "info_nce" else (jnp.float32(-10.0),)

    def value(audio, text, scale):
        return partial(loss, **layout)(audio, text, scale, *bias)

    return jax.value_and_grad(value, (0, 1, 2))


def temporaries(kind: str, batch: int, width: int, mesh: Mesh, block: int | None) -> int:
    """Bytes of temporaries of one device, from the compiler."""
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    embeddings = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    function = jax.jit(gradients_of(kind, mesh, block), out_shardings=(whole, (rows, rows, whole)))
    try:
        program = function.lower(embeddings, embeddings, scale).compile()
    except jax.errors.JaxRuntimeError as error:
        return refusal(error)[0]
    return program.memory_analysis().temp_size_in_bytes


def planned(ours: int, dense: int | None = None) -> dict[str, Any]:
    """Bytes of temporaries as a benchmark tells them; what a compiler plans has no spread."""
    sides = {"ours": ours, "peer": dense, "ratio": ours / dense if dense else None}
    spreads = {
        name: None if value is None else dataclasses.asdict(Spread.of([value]))
        for name, value in sides.items()
    }
    sizes = {"temp_bytes": ours, "peer_temp_bytes": dense}
    return {**spreads, "unit": "bytes of temporaries", **sizes}


def call_of(kind: str, batch: int, width: int, block: int | None):
    """A call of the loss and its gradients on this machine."""
    rng = np.random.default_rng(0)
    both = rng.normal(size=(2, batch, width)).astype(np.float32)
    audio, text = jax.device_put(both / np.linalg.norm(both, axis=2, keepdims=True))
    function, scale = jax.jit(gradients_of(kind, None, block)), jnp.float32(14.0)
    return lambda: jax.block_until_ready(function(audio, text, scale))


def alone(
    kind: str, batch: int, width: int, block: int, threads: int, repeats: int
) -> tuple[Spread, int]:
    """Seconds of our calls in a new process, and the most bytes that it held in memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_alone, (kind, batch, width, block, threads, repeats))


def _alone(
    kind: str, batch: int, width: int, block: int, threads: int, repeats: int
) -> tuple[Spread, int]:
    use_threads(threads)
    call, taken = call_of(kind, batch, width, block), []
    call()
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    # Of this program: what the system reports of a process counts its parent's memory too.
    held = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert held is not None
    return Spread.of(taken), 1024 * int(held[1])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
