"""Devices that a program can be compiled for: this machine's, and TPU slices that are elsewhere."""

import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from spatial_clap_jax.errors import InputError

# An example of a slice, and what libtpu must be told of a generation.
_TPUS: dict[str, tuple[str, dict[str, Any]]] = {
    # Else libtpu gives both cores of a chip as devices, which JAX does not on a v4.
    "v4": ("v4:4x4x4", {"chip_config_name": "megacore"}),
    "v5e": ("v5e:16x16", {}),
    "v5p": ("v5p:4x4x4", {}),
    "v6e": ("v6e:16x16", {}),
    "tpu7x": ("tpu7x:4x4x4", {}),
}
_LONGEST_SIDE = 16  # of slices that are squares of chips
# Lets libtpu load where no TPU is, and beside a program that holds one.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def devices_of(topology: str) -> tuple[list[Any], int]:
    """Devices to compile for, by the name of what they form.

    Args:
      topology: a TPU slice ('v5e:16x16', 'v5p:4x4x4'), several ('v5e:16x16*2'), or 'cpu' or 'gpu'
        for the devices of this machine.

    Returns:
      The devices, and how many slices they form.

    Raises:
      InputError: there is no such topology, or no compiler or device for it here.
    """
    if topology in ("cpu", "gpu"):
        try:
            return jax.devices(topology), 1
        except RuntimeError as error:
            raise InputError(
                f"--topology {topology}: JAX has no such device here ({_one_line(error)}); run "
                "this on a machine with one, or give a TPU slice like v5e:16x16."
            ) from None
    parsed = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", topology)
    name, shape, count = parsed.groups() if parsed else (topology, "", None)
    if name not in _TPUS or not shape:
        raise InputError(
            f"--topology {topology}: unknown; give GENERATION:SHAPE with one of "
            f"{', '.join(_TPUS)}, like v5e:16x16 (v5e:16x16*2 for two slices), or cpu or gpu."
        )
    example, options = _TPUS[name]
    sides = tuple(int(side) for side in shape.split("x"))
    _check_sides(topology, sides, example)
    slices = int(count or 1)
    if slices < 1:
        raise InputError(
            f"--topology {topology}: {slices} slices are too few; give 1 or more, like {example}*2."
        )
    if slices > 1:
        options = {**options, "num_slices": slices}
    if max(sides) == 1:
        # A chip by itself; hosts have four.
        options = {**options, "chips_per_host_bounds": (1, 1, 1)}
    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    try:
        found = topologies.get_topology_desc(f"{name}:{shape}", platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"--topology {topology}: libtpu refuses it ({_one_line(error)}); give a slice like "
            f"{example}."
        ) from None
    except RuntimeError as error:
        raise InputError(
            f"--topology {topology}: needs XLA's compiler for TPUs ({_one_line(error)}); "
            'pip install "spatial-clap-jax[tpu]".'
        ) from None
    return found.devices, slices


def _check_sides(topology: str, sides: tuple[int, ...], example: str) -> None:
    wanted = example.count("x", example.index(":")) + 1
    if len(sides) != wanted:
        raise InputError(
            f"--topology {topology}: has {len(sides)} sides, these slices have {wanted}; give "
            f"one like {example}."
        )
    # Hosts hold 2 x 2 chips.
    if min(sides) < 1 or (max(sides) > 1 and any(side % 2 for side in sides[:2])):
        raise InputError(
            f"--topology {topology}: the first two sides must be even; give one like {example}."
        )
    if wanted == 2 and max(sides) > _LONGEST_SIDE:
        raise InputError(
            f"--topology {topology}: a slice has at most {_LONGEST_SIDE} x {_LONGEST_SIDE} chips; "
            f"give {example}, or several of them ({example}*2)."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
