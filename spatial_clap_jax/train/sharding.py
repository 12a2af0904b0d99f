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
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.optim import check_rules, map_by_path, path_text

AXES = ("replica", "data", "fsdp")
# In place of a spec: the largest dimension that divides, over the axis fsdp.
LARGEST = "largest"
Rules = tuple[tuple[str, PartitionSpec | str], ...]
# Smaller arrays are held whole by all: passing them round would cost more than they do.
_WORTH_SPLITTING = 2**14


@dataclass(frozen=True)
class MeshShape:
    """How many devices along each axis; a batch is split over all three.

    Attributes:
      replica: copies that only gradients and blocks of embeddings pass between: slices of a TPU pod
        that are linked by a slower network (DCN), each with a fast one of its own (ICI). On
        several slices 1 stands for their number.
      data: devices that hold the same parameters; None takes all that the others leave.
      fsdp: devices that parameters and the state of the optimiser are split over.
      rules: (regular expression, axes) on '/'-joined paths of parameters; the first one found
        counts. Axes are one word a dimension, split by commas: names of axes joined by '+', or
        '-' for none; 'fsdp' alone splits the largest dimension that it divides, '-' alone
        nothing. What no rule names is split like 'fsdp' where it has 16,384 numbers or more.
    """

    replica: int = 1
    data: int | None = None
    fsdp: int = 1
    rules: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for rule, _ in self.rules:
            try:
                re.compile(rule)
            except re.error as error:
                raise InputError(
                    f"mesh.rules: {rule!r} is no regular expression ({error}); mend it."
                ) from None


def make_mesh(
    devices: Sequence[Any] | None = None,
    shape: MeshShape = MeshShape(),
) -> Mesh:
    """Lays the devices out along `AXES`; one device gives a mesh of 1 x 1 x 1.

    Of GPUs those of a host are neighbours, fsdp before data before replica.

    Args:
      devices: which ones; all of all processes when None.
      shape: how many along each axis.

    Raises:
      InputError: the axes do not multiply to the number of devices, or a copy would lie in two
        slices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    # Hosts of GPUs have numbers of slices too, but any axis may leave them.
    of_tpu = devices[0].platform == "tpu"
    slices = sorted({getattr(device, "slice_index", 0) for device in devices}) if of_tpu else [0]
    replicas = len(slices) if shape.replica == 1 else shape.replica
    data = count // max(replicas * shape.fsdp, 1) if shape.data is None else shape.data
    sizes = (replicas, data, shape.fsdp)
    if math.prod(sizes) != count or min(sizes) < 1:
        raise InputError(
            f"mesh: {shape} does not fit {count} devices; replica x data x fsdp must be "
            f"{count} (data None takes what the others leave)."
        )
    if of_tpu:
        laid_out = _along_wires(devices, slices, sizes)
    else:
        laid_out = np.array(sorted(devices, key=_host_and_number), object).reshape(sizes)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _host_and_number(device: Any) -> tuple[int, int, int]:
    return getattr(device, "slice_index", None) or 0, device.process_index, device.id


def _along_wires(devices: Sequence[Any], slices: list[int], sizes: tuple[int, ...]) -> np.ndarray:
    """Chips of one slice or of several, of which only the first axis leaves one."""
    replicas, data, fsdp = sizes
    if replicas % len(slices):
        raise InputError(
            f"mesh.replica: {replicas} copies on {len(slices)} slices; a copy must lie in one "
            f"slice, give a multiple of {len(slices)}."
        )
    inside = (replicas // len(slices), data, fsdp)
    return np.concatenate(
        [
            mesh_utils.create_device_mesh(
                inside,
                [d for d in devices if getattr(d, "slice_index", 0) == index],
                # An axis of the mesh may take a part of a side of the slice.
                allow_split_physical_axes=True,
            )
            for index in slices
        ]
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: leading axis over every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def parameter_rules(shape: MeshShape) -> Rules:
    """The rules of a mesh, and the default for the rest.

    Raises:
      InputError: a rule's axes are not words of `AXES`, or one is there twice.
    """
    named = [(rule, _spec(rule, axes)) for rule, axes in shape.rules]
    return (*named, ("", LARGEST)) if shape.fsdp > 1 else tuple(named)


def _spec(rule: str, axes: str) -> PartitionSpec | str:
    if axes == "fsdp":
        return LARGEST
    dimensions = [
        tuple(word.split("+")) if word != "-" else None for word in axes.replace(" ", "").split(",")
    ]
    unknown = [axis for names in dimensions for axis in names or () if axis not in AXES]
    if unknown:
        raise InputError(
            f"mesh.rules: {rule!r} asks for the axis {unknown[0]!r}; the axes are "
            f"{', '.join(AXES)}, and '-' for none."
        )
    named = [axis for names in dimensions for axis in names or ()]
    if twice := next((axis for axis in named if named.count(axis) > 1), None):
        raise InputError(
            f"mesh.rules: {rule!r} gives the axis {twice!r} twice; an axis splits one dimension, "
            "leave one out."
        )
    return PartitionSpec() if dimensions == [None] else PartitionSpec(*dimensions)


def shard_like_parameters(tree: Any, parameters: Any, shardings: Any, mesh: Mesh) -> Any:
    """Gives what belongs to a parameter (moments, averages) the sharding of that parameter.

    Args:
      tree: shapes, in which a parameter's path is the end of the path of what belongs to it.
      parameters: shapes of the parameters.
      shardings: of the parameters, a tree of the same structure.
      mesh: where all will live.

    Returns:
      A tree of `NamedSharding` of the structure of `tree`; what belongs to none is replicated.
    """
    known: dict[str, tuple[tuple[int, ...], NamedSharding]] = {}
    places = jax.tree.leaves(shardings)
    for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(parameters), places, strict=True
    ):
        known[path_text(path)] = (leaf.shape, place)

    def sharding(path: str, leaf: Any) -> NamedSharding:
        words = path.split("/")
        ends = ("/".join(words[start:]) for start in range(len(words)))
        shape, place = next((known[end] for end in ends if end in known), (None, None))
        if place is not None and shape == leaf.shape:
            return place
        return NamedSharding(mesh, PartitionSpec())

    return map_by_path(sharding, tree)


def shard_by_rules(abstract_tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """Chooses a sharding for every leaf by its path.

    Args:
      abstract_tree: arrays or `jax.ShapeDtypeStruct`s.
      rules: (regular expression, spec); the first that is found in the '/'-joined path
        wins. A leaf that none matches is replicated. `LARGEST` in place of a spec splits the
        largest dimension that the axis fsdp divides, if any, of leaves that are worth it.
      mesh: where it will live.

    Returns:
      A tree of `NamedSharding` of the same structure.

    Raises:
      InputError: a rule is found in no path, or a spec names an axis that the mesh has not, has
        more axes than the leaf, or does not divide one of its dimensions.

    Example:
      >>> shard_by_rules({"dense": {"kernel": kernel}}, (("kernel$", P(None, "fsdp")),), mesh)
      {'dense': {'kernel': NamedSharding(mesh=..., spec=P(None, 'fsdp'))}}
    """

    check_rules("mesh.rules", [rule for rule, _ in rules], abstract_tree)

    def sharding(path: str, leaf: Any) -> NamedSharding:
        spec = next((spec for rule, spec in rules if re.search(rule, path)), PartitionSpec())
        if isinstance(spec, str):
            spec = _largest_split(leaf.shape, mesh)
        _check_divides(path, leaf.shape, spec, mesh)
        return NamedSharding(mesh, spec)

    return map_by_path(sharding, abstract_tree)


def rows_here(mesh: Mesh, total: int) -> np.ndarray:
    """Which rows of a global batch this process's devices hold, in ascending order.

    They need not be neighbours: a mesh follows the wires between the chips, not the processes.

    Args:
      mesh: the devices of all processes.
      total: rows of the global batch.

    Raises:
      InputError: the global batch does not divide by the devices.
    """
    if total % mesh.size:
        nearest = max(round(total / mesh.size), 1) * mesh.size
        raise InputError(
            f"batch: {total} rows do not divide by {mesh.size} devices; give "
            f"data.captions_per_batch (of SELD data.clips_per_batch) a multiple of them, as "
            f"{nearest}."
        )
    places = batch_sharding(mesh).addressable_devices_indices_map((total,))
    rows = [np.arange(total)[index] for index in places.values() if index is not None]
    return np.unique(np.concatenate(rows))


def put_batch(
    batch: dict[str, np.ndarray], mesh: Mesh, total: int | None = None
) -> dict[str, jax.Array]:
    """Puts this process's share of a batch on its devices, as part of the global batch.

    Args:
      batch: host arrays with the same leading axis: the rows of `rows_here`, in that order.
      mesh: the devices of all processes.
      total: rows of the global batch; where None, this process has all of them.

    Returns:
      Global arrays, their leading axis split over the mesh.

    Raises:
      InputError: the global batch does not divide by the devices.
    """
    sharding = batch_sharding(mesh)
    total = len(next(iter(batch.values()))) if total is None else total
    rows = rows_here(mesh, total)

    def put(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(total)
            # A device's rows are neighbours, here as in the global batch.
            first = int(np.searchsorted(rows, start))
            return array[first : first + stop - start]

        return jax.make_array_from_callback((total, *array.shape[1:]), sharding, part)

    return {name: put(array) for name, array in batch.items()}


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


def _largest_split(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    parts = mesh.shape["fsdp"]
    fitting = [size for size in shape if size % parts == 0]
    if parts == 1 or math.prod(shape) < _WORTH_SPLITTING or not fitting:
        return PartitionSpec()
    return PartitionSpec(*[None] * shape.index(max(fitting)), "fsdp")


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
