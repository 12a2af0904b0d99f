"""Mesh shapes, rules on paths, batches over devices, and what is said of the devices."""

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
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
    put_batch,
    shard_by_rules,
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
try:
    put_batch({"group": np.arange(12)}, mesh)
except InputError as error:
    print(error)
print(describe_devices())
"""


def test_eight_devices():
    root = str(Path(spatial_clap_jax.__file__).parents[1])
    flags = "--xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "batch: 'group' has 12 rows for 8 devices; take a batch size" in done.stdout
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
