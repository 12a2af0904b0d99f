"""What a training step costs each device as devices are added, from the compiled program.

    python benchmarks/scaling.py                     # 1, 2, 4 and 8 simulated devices of this CPU

The batch a device stays the same. FLOPs and temporaries of a device should stay what they are;
bytes of collectives grow to twice the parameters (gradients) plus what the ring of embeddings
passes, batch x width, never batch x batch. The peer is the same step with the dense loss, for which
XLA gathers embeddings and holds logits of batch x batch.
"""

import dataclasses
import json as json_module
import os
from typing import Any
from unittest import mock

import tyro


def main(
    devices: tuple[int, ...] = (1, 2, 4, 8),
    captions_per_device: int = 16,
    size: str = "quickstart",
    fsdp: tyro.conf.FlagConversionOff[bool] = False,
    json: bool = False,
) -> None:
    """Compiles the step for each number of devices and prints a table.

    Args:
      devices: numbers of simulated devices.
      captions_per_device: of the batch.
      size: of Spatial-CLAP.
      fsdp: split the parameters too.
      json: print a line of JSON for each number of devices.
    """
    # Before the first look at the devices.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(devices)}"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rich.console import Console
    from rich.table import Table
    from side_by_side import Spread, machine, machine_line

    columns = ("devices", "loss", "GFLOPs each", "temporaries, MB", "collectives, MB", "in a ring")
    table = Table(*columns, title=f"{size}, {captions_per_device} captions a device")
    for count in devices:
        sides = {
            name: cost(count, captions_per_device, size, fsdp, dense=name == "peer")
            for name in ("ours", "peer")
        }
        if json:
            told: dict[str, Any] = {"devices": count, "captions": captions_per_device * count}
            for name, side in sides.items():
                told |= {f"{name}_{key}": value for key, value in side.items()}
            # What a compiler plans has no spread.
            ours, peer = (float(side["temp_bytes"]) for side in sides.values())
            for name, value in (("ours", ours), ("peer", peer), ("ratio", ours / peer)):
                told[name] = dataclasses.asdict(Spread(value, value, value))
            print(json_module.dumps({**told, "unit": "bytes of temporaries", "machine": machine()}))
        for name, side in sides.items():
            exchanged = side["collectives"]
            table.add_row(
                str(count),
                {"ours": "ring", "peer": "dense"}[name],
                f"{side['flops_per_device'] / 1e9:.2f}",
                f"{side['temp_bytes'] / 1e6:.1f}",
                f"{sum(exchanged.values()) / 1e6:.2f}",
                f"{exchanged.get('collective-permute', 0) / 1e6:.2f}",
            )
    if not json:
        console = Console()
        console.print(table)
        console.print(machine_line(), markup=False, highlight=False)


def cost(count: int, captions: int, size: str, fsdp: bool, *, dense: bool) -> dict[str, Any]:
    """What one device does in a step."""
    import jax

    from spatial_clap_jax.losses.contrastive import info_nce
    from spatial_clap_jax.systems import two_towers
    from spatial_clap_jax.train import hlo
    from spatial_clap_jax.train.experiment import load_config
    from spatial_clap_jax.train.feeds import abstract_batch
    from spatial_clap_jax.train.flops import count_flops
    from spatial_clap_jax.train.sharding import MeshShape, make_mesh
    from spatial_clap_jax.train.trainer import build_state_and_step

    experiment = load_config("spatial_clap.py", size)
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, captions_per_batch=captions * count),
        mesh=MeshShape(fsdp=count if fsdp else 1),
    )
    mesh = make_mesh(jax.devices()[:count], experiment.mesh)
    start, step = build_state_and_step(experiment, mesh)

    def gathering(*arguments: Any, mesh: Any, block: int) -> Any:
        return info_nce(*arguments)

    replaced = gathering if dense else two_towers.ring_info_nce
    with mock.patch.object(two_towers, "ring_info_nce", replaced):
        traced = step.trace(start.eval_shape({}), abstract_batch(experiment, mesh))
    program = traced.lower().compile()
    exchanged: dict[str, float] = {}
    for one in hlo.collectives(hlo.parse(program.as_text()), count):
        exchanged[one.kind] = exchanged.get(one.kind, 0) + one.bytes
    return {
        "flops_per_device": count_flops(traced.jaxpr) / count,
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        "collectives": exchanged,
    }


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
