"""Mesh over the devices, shardings by rules on paths, and which devices those are."""

import glob
import importlib.util
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.optim import map_by_path

AXES = ("replica", "data", "fsdp")
Rules = tuple[tuple[str, PartitionSpec], ...]


@dataclass(frozen=True)
class MeshShape:
    """How many devices along each axis; a batch is split over all three.

    Attributes:
      replica: copies that only gradients pass between (pods linked by a slower network).
      data: devices that hold the same parameters; None takes all that the others leave.
      fsdp: devices that a parameter is split over where a rule says so.
    """

    replica: int = 1
    data: int | None = None
    fsdp: int = 1


def make_mesh(
    devices: Sequence[Any] | None = None,
    shape: MeshShape = MeshShape(),
) -> Mesh:
    """Lays the devices out along `AXES`; one device gives a mesh of 1 x 1 x 1.

    Args:
      devices: which ones; all of all processes when None.
      shape: how many along each axis.

    Raises:
      InputError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    data = count // max(shape.replica * shape.fsdp, 1) if shape.data is None else shape.data
    sizes = (shape.replica, data, shape.fsdp)
    if math.prod(sizes) != count or min(sizes) < 1:
        raise InputError(
            f"mesh: {shape} does not fit {count} devices; replica x data x fsdp must be "
            f"{count} (data None takes what the others leave)."
        )
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: leading axis over every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def shard_by_rules(abstract_tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """Chooses a sharding for every leaf by its path.

    Args:
      abstract_tree: arrays or `jax.ShapeDtypeStruct`s.
      rules: (regular expression, spec); the first that is found in the '/'-joined path
        wins. A leaf that none matches is replicated.
      mesh: where it will live.

    Returns:
      A tree of `NamedSharding` of the same structure.

    Raises:
      InputError: a spec names an axis that the mesh has not, has more axes than the
        leaf, or does not divide one of its dimensions.

    Example:
      >>> shard_by_rules({"dense": {"kernel": kernel}}, (("kernel$", P(None, "fsdp")),), mesh)
      {'dense': {'kernel': NamedSharding(mesh=..., spec=P(None, 'fsdp'))}}
    """

    def sharding(path: str, leaf: Any) -> NamedSharding:
        spec = next((spec for rule, spec in rules if re.search(rule, path)), PartitionSpec())
        _check_divides(path, leaf.shape, spec, mesh)
        return NamedSharding(mesh, spec)

    return map_by_path(sharding, abstract_tree)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's share of a batch on its devices, as part of the global batch.

    Args:
      batch: host arrays with the same leading axis; every process has as many rows.
      mesh: the devices of all processes.

    Returns:
      Global arrays, their leading axis split over the mesh.

    Raises:
      InputError: the global batch does not divide by the devices.
    """
    sharding = batch_sharding(mesh)
    for name, array in batch.items():
        rows = len(array) * jax.process_count()
        if rows % mesh.size:
            raise InputError(
                f"batch: {name!r} has {rows} rows for {mesh.size} devices; "
                "take a batch size that is a multiple of the devices."
            )
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def describe_devices() -> str:
    """Says on one line what runs, and which accelerator is present and why it does not.

    Raises:
      InputError: JAX_PLATFORMS asks for a platform that cannot be started.

    Example:
      >>> describe_devices()
      'runs on CPU (1 x cpu); NVIDIA GPU (/dev/nvidia0) is not used: jax was installed ...'
    """
    try:
        devices = jax.devices()
    # A platform without its plugin fails an assertion, one without a device a RuntimeError.
    except Exception as error:
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(
            f"JAX_PLATFORMS: {platforms!r} cannot be started ({_one_line(error) or 'no plugin'}); "
            "unset it to run on what is there."
        ) from error
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    runs = f"runs on {jax.default_backend().upper()} ({len(devices)} x {devices[0].device_kind}"
    return "; ".join([f"{runs}{processes})", *unused_accelerators()])


def unused_accelerators() -> list[str]:
    """Names each accelerator that this machine seems to have and JAX does not use, and why."""
    backend = jax.default_backend()
    found = (
        ("NVIDIA GPU", "cuda", "gpu", _sign_of_nvidia()),
        ("TPU", "tpu", "tpu", _sign_of_tpu()),
    )
    return [
        f"{name} ({sign}) is not used: {_reason(platform, kind)}"
        for name, platform, kind, sign in found
        if sign is not None and backend != kind
    ]


def _sign_of_nvidia() -> str | None:
    nodes = sorted(glob.glob("/dev/nvidia[0-9]*"))
    return next(iter(nodes), shutil.which("nvidia-smi"))


def _sign_of_tpu() -> str | None:
    nodes = sorted(glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*"))
    variables = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")
    return next(iter(nodes), next((name for name in variables if os.environ.get(name)), None))


def _reason(platform: str, kind: str) -> str:
    allowed = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if allowed and not {platform, kind} & set(allowed.split(",")):
        return f"JAX_PLATFORMS is {allowed!r}; unset it"
    try:
        jax.devices(platform)
    except RuntimeError as error:
        text = _one_line(error)
    else:
        return f"jax prefers {jax.default_backend()}; set JAX_PLATFORMS={platform}"
    install = f'pip install "spatial-clap-jax[{platform}]"'
    if platform == "cuda" and text.startswith("Unknown backend"):
        plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
        if any(importlib.util.find_spec(plugin) for plugin in plugins):
            return f"jax's CUDA plugin did not load, its version must be jaxlib's: {install}"
        return f"jax was installed without CUDA: {install}"
    if platform == "tpu" and "libtpu.so: cannot open" in text:
        return f"jax was installed without libtpu: {install}"
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _check_divides(path: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    if len(spec) > len(shape):
        raise InputError(f"{path}: {spec} has more axes than the shape {shape}; shorten the rule.")
    for dimension, names in zip(shape, spec, strict=False):
        axes = (names,) if isinstance(names, str) else tuple(names or ())
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise InputError(f"{path}: {spec} names {unknown[0]!r}; the mesh has {AXES}.")
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if dimension % parts:
            raise InputError(
                f"{path}: {dimension} of shape {shape} does not divide by {parts} ({spec}); "
                "change the rule or the mesh."
            )
