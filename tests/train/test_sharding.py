"""Mesh shapes, rules on paths, batches over devices, and what is said of the devices."""

import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import spatial_clap_jax
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.sharding import (
    AXES,
    MeshShape,
    batch_sharding,
    describe_devices,
    make_mesh,
    parameter_rules,
    put_batch,
    shard_by_rules,
    shard_like_parameters,
)

MESH = AbstractMesh((1, 4, 2), AXES)
TREE = {
    "dense": {"kernel": np.zeros((6, 4)), "bias": np.zeros(4)},
    "head": {"kernel": np.zeros((8, 3))},
}


def test_first_rule_that_matches_wins_and_the_default_is_replicated():
    rules = (
        ("head/kernel$", PartitionSpec(("data", "fsdp"))),
        ("kernel$", PartitionSpec("fsdp", None)),
    )
    specs = jax.tree.map(lambda s: s.spec, shard_by_rules(TREE, rules, MESH))
    assert specs == {
        "dense": {"kernel": PartitionSpec("fsdp", None), "bias": PartitionSpec()},
        "head": {"kernel": PartitionSpec(("data", "fsdp"))},
    }


def test_the_largest_dimension_that_divides_is_split():
    shapes = {
        "kernel": np.zeros((96, 512)),
        "table": np.zeros((50265, 8)),
        "odd": np.zeros((131, 131)),
        "small": np.zeros((64, 8)),
        "kept": np.zeros((512, 512)),
    }
    rules = parameter_rules(MeshShape(fsdp=2, rules=(("^kept$", "-"),)))
    specs = jax.tree.map(lambda s: s.spec, shard_by_rules(shapes, rules, MESH))
    assert specs == {
        "kernel": PartitionSpec(None, "fsdp"),
        "table": PartitionSpec(None, "fsdp"),
        "odd": PartitionSpec(),
        "small": PartitionSpec(),
        "kept": PartitionSpec(),
    }
    # Without an axis to split over, all is whole.
    whole = shard_by_rules(shapes, parameter_rules(MeshShape()), MESH)
    specs = jax.tree.map(lambda s: s.spec, whole)
    assert set(jax.tree.leaves(specs)) == {PartitionSpec()}


def test_rules_of_a_command_line():
    shape = MeshShape(fsdp=2, rules=(("^text/", "-, data+fsdp"), ("^audio/", "fsdp")))
    text, audio, rest = parameter_rules(shape)
    assert text == ("^text/", PartitionSpec(None, ("data", "fsdp")))
    assert audio[1] == rest[1] == "largest"
    with pytest.raises(InputError, match=r"rules: '\^text/' asks for the axis 'model'; the"):
        parameter_rules(MeshShape(rules=(("^text/", "model"),)))
    for axes in ("fsdp,fsdp", "data+data,-"):
        with pytest.raises(InputError, match=r"mesh.rules: '\^text/' gives the axis .* twice"):
            parameter_rules(MeshShape(rules=(("^text/", axes),)))
    with pytest.raises(InputError, match=r"mesh.rules: '\(' is no regular expression"):
        MeshShape(rules=(("(", "fsdp"),))


def test_what_belongs_to_a_parameter_is_split_like_it():
    split = shard_by_rules(TREE, (("head/kernel", PartitionSpec("data")),), MESH)
    state = {
        "params": TREE,
        "moments": [{"mu": TREE}],
        # Of another shape, though its path ends alike.
        "rows": {"head": {"kernel": np.zeros(8)}},
        "count": np.zeros(()),
    }
    specs = jax.tree.map(lambda s: s.spec, shard_like_parameters(state, TREE, split, MESH))
    assert specs["params"]["head"]["kernel"] == PartitionSpec("data")
    assert specs["moments"][0]["mu"]["head"]["kernel"] == PartitionSpec("data")
    assert specs["moments"][0]["mu"]["dense"]["kernel"] == PartitionSpec()
    assert specs["rows"]["head"]["kernel"] == PartitionSpec()
    assert specs["count"] == PartitionSpec()


@dataclass(frozen=True)
class Chip:
    """A device of a slice, as `make_mesh` sees it."""

    id: int
    slice_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    platform: str = "tpu"
    device_kind: str = "fake"
    process_index: int = 0
    core_on_chip: int = 0


def slices_of(count: int, rows: int, columns: int) -> list[Chip]:
    """Chips of slices, each a rectangle of them."""
    places = [(x, y, 0) for y in range(rows) for x in range(columns)]
    return [
        Chip(index * len(places) + i, index, place)
        for index in range(count)
        for i, place in enumerate(places)
    ]


def test_only_the_first_axis_leaves_a_slice():
    chips = slices_of(2, 2, 2)
    mesh = make_mesh(chips, MeshShape(replica=2, fsdp=2))
    for replica in (0, 1):
        assert {chip.slice_index for chip in mesh.devices[replica].flat} == {replica}
    mesh = make_mesh(chips, MeshShape(replica=4, fsdp=2))
    assert [len({c.slice_index for c in part.flat}) for part in mesh.devices] == [1] * 4
    three = slices_of(3, 2, 2)
    with pytest.raises(InputError, match=r"mesh.replica: 2 copies on 3 slices; .* multiple of 3"):
        make_mesh(three, MeshShape(replica=2, data=6))


def test_one_copy_stands_for_as_many_as_there_are_slices():
    mesh = make_mesh(slices_of(2, 2, 2), MeshShape(fsdp=2))
    assert mesh.devices.shape == (2, 2, 2)
    assert [{c.slice_index for c in part.flat} for part in mesh.devices] == [{0}, {1}]


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8, 16])
def test_an_axis_may_take_a_part_of_a_side_of_a_slice(fsdp):
    for count in (1, 2):
        mesh = make_mesh(slices_of(count, 4, 4), MeshShape(fsdp=fsdp))
        assert mesh.devices.shape == (count, 16 // fsdp, fsdp)
        assert len(set(mesh.devices.flat)) == 16 * count


def test_hosts_of_gpus_are_no_slices():
    """Each has a number of its own, and any axis may leave it."""
    cards = [
        Chip(8 * host + i, host, platform="gpu", process_index=host)
        for host in (0, 1)
        for i in range(8)
    ]
    mesh = make_mesh(cards[::-1], MeshShape())
    assert mesh.devices.shape == (1, 16, 1)
    assert [card.id for card in mesh.devices.flat] == list(range(16))
    mesh = make_mesh(cards, MeshShape(fsdp=16))
    assert mesh.devices.shape == (1, 1, 16)
    mesh = make_mesh(cards, MeshShape(replica=2, fsdp=4))
    assert [{card.process_index for card in part.flat} for part in mesh.devices] == [{0}, {1}]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PartitionSpec("data"), r"dense/kernel: 6 of shape \(6, 4\) does not divide by 4"),
        (PartitionSpec(("data", "fsdp")), r"dense/kernel: 6 .* does not divide by 8"),
        (PartitionSpec(None, None, "fsdp"), r"dense/kernel: .* more axes than the shape \(6, 4\)"),
        (PartitionSpec("model"), r"dense/kernel: .* names 'model'; the mesh has .*'fsdp'"),
    ],
)
def test_rules_that_do_not_fit(spec, message):
    with pytest.raises(InputError, match=message):
        shard_by_rules(TREE, (("dense/kernel", spec),), MESH)


def test_a_rule_that_splits_nothing_is_refused():
    """A slip of the pen would leave all of a large model on every chip."""
    wrong = "mesh.rules: rule '^haed/' matches no parameter; paths start with dense, head; mend"
    with pytest.raises(InputError, match=re.escape(wrong)):
        shard_by_rules(TREE, (("kernel$", PartitionSpec()), ("^haed/", PartitionSpec())), MESH)


def test_one_device_is_a_mesh_too():
    mesh = make_mesh(jax.devices()[:1])
    assert dict(mesh.shape) == {"replica": 1, "data": 1, "fsdp": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    audio = np.arange(6, dtype=np.float32).reshape(3, 2)
    placed = put_batch({"audio": audio}, mesh)["audio"]
    assert placed.sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(placed, audio)


@pytest.mark.parametrize(
    "shape",
    [MeshShape(fsdp=2), MeshShape(data=3), MeshShape(replica=0), MeshShape(replica=-1, data=-1)],
)
def test_a_shape_that_does_not_fit_the_devices(shape):
    with pytest.raises(
        InputError, match=r"mesh: MeshShape\(.*does not fit 1 devices; .* must be 1"
    ):
        make_mesh(jax.devices()[:1], shape)


EIGHT = """
import jax, numpy as np
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.sharding import *

mesh = make_mesh(shape=MeshShape(replica=2, fsdp=2))
assert dict(mesh.shape) == {"replica": 2, "data": 2, "fsdp": 2}
assert dict(make_mesh().shape) == {"replica": 1, "data": 8, "fsdp": 1}
assert dict(make_mesh(jax.devices()[:4], MeshShape(fsdp=2)).shape)["data"] == 2
batch = {"audio": np.arange(48.0).reshape(16, 3), "group": np.arange(16)}
placed = put_batch(batch, mesh)
# Rows lie in order over the devices in the mesh's order, two each.
for row, device in enumerate(mesh.devices.flat):
    shard = next(s for s in placed["audio"].addressable_shards if s.device == device)
    np.testing.assert_array_equal(shard.data, batch["audio"][2 * row : 2 * row + 2])
assert rows_here(mesh, 16).tolist() == list(range(16))
# A process whose devices hold rows that lie apart has them in ascending order, without gaps.
class Half:
    def addressable_devices_indices_map(self, shape):
        rows = [(slice(2 * i, 2 * i + 2, None),) for i in range(8)]
        return dict(list(zip(mesh.devices.flat, rows))[1::2])
import spatial_clap_jax.train.sharding as module
real, module.batch_sharding = module.batch_sharding, lambda mesh: Half()
assert module.rows_here(mesh, 16).tolist() == [2, 3, 6, 7, 10, 11, 14, 15]
module.batch_sharding = real

# Parameters and what belongs to them are split alike, and a state is made split.
params = {"wide": {"kernel": jax.ShapeDtypeStruct((64, 512), "float32")},
          "bias": jax.ShapeDtypeStruct((512,), "float32")}
split = shard_by_rules(params, parameter_rules(MeshShape(fsdp=2)), mesh)
state = {"variables": {"params": params}, "optimizer": ({"mu": params}, {"count": params["bias"]})}
found = shard_like_parameters(state, params, split, mesh)
assert found["optimizer"][0]["mu"]["wide"]["kernel"].spec == split["wide"]["kernel"].spec
made = jax.jit(lambda: jax.numpy.zeros((64, 512)), out_shardings=split["wide"]["kernel"])()
assert made.addressable_shards[0].data.shape == (64, 256)
try:
    put_batch({"group": np.arange(12)}, mesh)
except InputError as error:
    print(error)
print(describe_devices())
"""


def test_eight_devices():
    root = str(Path(spatial_clap_jax.__file__).parents[1])
    flags = "--xla_force_host_platform_device_count=8"
    env = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": root,
    }
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "batch: 12 rows do not divide by 8 devices; give data.captions_per_batch" in done.stdout
    assert "runs on CPU (8 x cpu)" in done.stdout


@pytest.fixture
def bare_machine(monkeypatch):
    """A CPU without a sign of an accelerator, and JAX free to choose."""
    signs: dict[str, list[str]] = {}
    monkeypatch.setattr(glob, "glob", lambda pattern: signs.get(pattern, []))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    cpu = jax.devices("cpu")[:1]
    errors = {
        "cuda": "Unknown backend cuda. Available backends are ['cpu']",
        "tpu": "Backend 'tpu' failed to initialize: INTERNAL: Failed to open libtpu.so: "
        "libtpu.so: cannot open shared object file: No such file or directory.",
    }

    def devices(platform=None):
        if platform in errors:
            raise RuntimeError(errors[platform])
        return cpu

    monkeypatch.setattr(jax, "devices", devices)
    allowed = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield signs, errors
    jax.config.update("jax_platforms", allowed)


def test_a_plain_cpu_is_named_without_a_complaint(bare_machine):
    assert describe_devices() == "runs on CPU (1 x cpu)"


def test_a_gpu_without_cuda_is_named_with_the_command_that_helps(bare_machine, monkeypatch):
    signs, _ = bare_machine
    signs["/dev/nvidia[0-9]*"] = ["/dev/nvidia1", "/dev/nvidia0"]
    assert describe_devices() == (
        "runs on CPU (1 x cpu); NVIDIA GPU (/dev/nvidia0) is not used: "
        'jax was installed without CUDA: pip install "spatial-clap-jax[cuda]"'
    )
    signs.clear()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "NVIDIA GPU (/usr/bin/nvidia-smi) is not used" in describe_devices()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "jax_cuda13_plugin")
    assert "jax's CUDA plugin did not load, its version must be jaxlib's" in describe_devices()


def test_a_gpu_that_fails_is_named_with_the_backend_s_error(bare_machine):
    signs, errors = bare_machine
    signs["/dev/nvidia[0-9]*"] = ["/dev/nvidia0"]
    errors["cuda"] = "Backend 'cuda' failed to initialize: INTERNAL: cuInit:\n no driver 580"
    assert describe_devices().endswith(
        "is not used: Backend 'cuda' failed to initialize: INTERNAL: cuInit: no driver 580"
    )


def test_platforms_that_the_user_ruled_out(bare_machine):
    signs, errors = bare_machine
    signs["/dev/nvidia[0-9]*"] = ["/dev/nvidia0"]
    jax.config.update("jax_platforms", "cpu")
    assert describe_devices().endswith("is not used: JAX_PLATFORMS is 'cpu'; unset it")
    jax.config.update("jax_platforms", "cpu,cuda")
    del errors["cuda"]
    assert describe_devices().endswith("jax prefers cpu; set JAX_PLATFORMS=cuda")


@pytest.mark.parametrize("sign", ["/dev/accel0", "/dev/vfio/0", "TPU_NAME"])
def test_a_tpu_without_libtpu(bare_machine, monkeypatch, sign):
    signs, _ = bare_machine
    signs["/dev/accel[0-9]*"] = [sign] if "accel" in sign else []
    signs["/dev/vfio/[0-9]*"] = [sign] if "vfio" in sign else []
    if sign == "TPU_NAME":
        monkeypatch.setenv(sign, "pod-1")
    assert describe_devices().endswith(
        f"TPU ({sign}) is not used: jax was installed without libtpu: "
        'pip install "spatial-clap-jax[tpu]"'
    )


def test_a_gpu_in_use_is_not_complained_of(bare_machine, monkeypatch):
    signs, _ = bare_machine
    signs["/dev/nvidia[0-9]*"] = ["/dev/nvidia0"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert describe_devices() == "runs on GPU (1 x cpu)"


def test_a_platform_that_was_asked_for_and_cannot_start(bare_machine):
    _, errors = bare_machine
    errors[None] = "Unable to initialize backend 'tpu': no chip"
    jax.config.update("jax_platforms", "tpu")
    with pytest.raises(InputError, match=r"JAX_PLATFORMS: 'tpu' cannot be started .*no chip"):
        describe_devices()
