"""Checkpoints: bit for bit, on any devices, whole or refused."""

import asyncio
import errno
import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import spatial_clap_jax
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import checkpoint, checkpoint_files
from spatial_clap_jax.train.checkpoint import RunCheckpoints, load_params
from spatial_clap_jax.train.checkpoint_files import DamagedCheckpoint

# Long and without pattern, so that it fills a data file of its own.
NOISE = np.random.default_rng(0).random(20_000, np.float32)


class State(NamedTuple):
    step: Any
    variables: Any
    optimizer: Any
    average: Any
    key: Any
    epoch: int


def make_state(step: int) -> State:
    # Bit patterns that arithmetic or a text format would change.
    edge = np.array([1e-45, -0.0, 3.4028235e38, np.nan, 1 / 3, np.inf, -1e-40, 7], np.float32)
    params = {
        "dense": {"kernel": jnp.asarray(np.tile(edge, (8, 1)).T), "bias": jnp.asarray(edge)},
        "scale": jnp.asarray(2.5, jnp.bfloat16),
    }
    optimizer = optax.masked(optax.adamw(1e-3), {"dense": True, "scale": False})
    return State(
        step=jnp.asarray(step, jnp.int32),
        variables={"params": params, "batch_stats": {"mean": NOISE}},
        optimizer=optimizer.init(params),
        average={},
        key=jax.random.key_data(jax.random.key(7)),
        epoch=3,
    )


def abstract(state: Any, of_leaf: bool = False) -> Any:
    """What to restore: on one device, or where the leaves of `state` are."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf(x: Any) -> Any:
        sharding = x.sharding if of_leaf and hasattr(x, "sharding") else device
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(lambda x: x if isinstance(x, int) else leaf(x), state)


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run with whole checkpoints of steps 10 and 20; tests copy it before they harm it."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    checkpoints = RunCheckpoints(workdir)
    for step in (10, 20):
        checkpoints.save(step, make_state(step), {"position": step})
    checkpoints.close()
    return workdir


def test_round_trip_bit_for_bit(saved):
    checkpoints = RunCheckpoints(saved)
    assert checkpoints.latest() == 20
    for step, expected in ((None, 20), (10, 10)):
        state, data_state = checkpoints.restore(abstract(make_state(0)), step)
        assert_same_bits(state, make_state(expected))
        assert data_state == {"position": expected}
    checkpoints.close()


def test_keeps_the_newest_and_every_kth(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(step, {"a": jnp.ones(2)}, {})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6", "7"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux")
def test_saves_leave_no_open_file_and_no_thread(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=1)

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    for step in range(1, 3):
        checkpoints.save(step, {"a": jnp.ones(2)}, {}, wait=True)
    before = held()
    for step in range(3, 13):
        checkpoints.save(step, {"a": jnp.ones(2)}, {}, wait=step % 2 == 0)
    checkpoints.wait()
    # Each of ten left three files and a thread.
    assert all(now <= then + 3 for now, then in zip(held(), before, strict=True))
    checkpoints.close()


def test_a_step_donated_right_after_the_save_does_not_change_it(tmp_path):
    state = {"a": jnp.zeros(500_000)}
    add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = add(state)
    data_state = {"position": [1]}
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(1, state, data_state)
    data_state["position"].append(2)
    for _ in range(20):
        state = add(state)
    restored, restored_data = checkpoints.restore({"a": abstract(state["a"])})
    np.testing.assert_array_equal(restored["a"], 1.0)
    assert restored_data == {"position": [1]}
    checkpoints.close()


def test_a_saved_step_is_left_and_an_earlier_one_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    checkpoints = RunCheckpoints(tmp_path / "run")
    checkpoints.save(20, make_state(1), {"position": 1}, wait=True)
    assert checkpoints.restore(abstract(make_state(0)))[1] == {"position": 20}
    with pytest.raises(InputError, match="holds step 20, later than step 15"):
        checkpoints.save(15, make_state(15), {})
    checkpoints.close()


KILLED = """
import os, sys
import jax.numpy as jnp
from spatial_clap_jax.train import checkpoint

checkpoints = checkpoint.RunCheckpoints(sys.argv[1])
checkpoints.save(1, {"a": jnp.ones(3)}, {}, wait=True)
checkpoint.processes.is_first_process = lambda: os._exit(9)
checkpoints.save(2, {"a": jnp.ones(3)}, {}, wait=True)
"""


def test_a_killed_save_leaves_no_checkpoint(tmp_path):
    with start(KILLED, tmp_path) as process:
        assert process.wait(120) == 9, process.communicate()
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert len(left) == 2, "killed before it began to write"
    assert load_params(tmp_path, subtrees=("a",))[1] == 1
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.latest() == 1
    checkpoints.save(3, {"a": jnp.ones(3)}, {})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[int(place * (len(content) - 1))] ^= 16
    file.write_bytes(bytes(content))


HARMS = {
    "gone": Path.unlink,
    "halved": lambda file: os.truncate(file, file.stat().st_size // 2),
    "flipped": lambda file: flip(file, 0.5),
}


def damaged_runs(whole: Path, folder: Path) -> Iterator[Path]:
    """Copies of a run's only step, each with one file gone, cut or with a flipped bit."""
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        for name, harm in HARMS.items():
            run = folder / f"{path.name}-{name}"
            shutil.copytree(whole, run / "checkpoints" / "20")
            harm(run / "checkpoints" / "20" / path.relative_to(whole))
            yield run
            shutil.rmtree(run)


@pytest.mark.slow
def test_any_damaged_file_gives_the_same_bits_or_an_input_error(saved, tmp_path, capfd):
    refusals, loads = [], 0
    for run in damaged_runs(saved / "checkpoints" / "20", tmp_path):
        checkpoints = RunCheckpoints(run)
        try:
            state, data_state = checkpoints.restore(abstract(make_state(0)))
        except InputError as error:
            refusals.append(str(error))
        else:
            assert_same_bits(state, make_state(20))
            assert data_state == {"position": 20}
        checkpoints.close()
        try:
            loaded, _ = load_params(run)
        except InputError as error:
            refusals.append(str(error))
        else:
            loads += 1
            assert_same_bits(loaded["variables"], make_state(20).variables)
    assert len(refusals) >= 30
    assert loads
    assert capfd.readouterr().err == ""
    for refusal in refusals:
        assert str(tmp_path) in refusal
        assert "20: cannot be read, a checkpoint must be whole" in refusal or "in this model" in (
            refusal
        )
        assert "\n" not in refusal


def test_a_flipped_bit_in_an_array_is_told_by_its_digest(saved, tmp_path):
    """The data file's noise does not compress: no reader but ours would notice."""
    shutil.copytree(saved, tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / "20" / "state").rglob("*")
    flip(max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size), 0.6)
    checkpoints = RunCheckpoints(tmp_path / "run")
    message = r"20: cannot be read.*variables/batch_stats/mean is not what was saved"
    with pytest.raises(InputError, match=message):
        checkpoints.restore(abstract(make_state(0)))
    with pytest.raises(InputError, match=message):
        load_params(tmp_path / "run")
    checkpoints.close()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA"])
def test_a_pipe_in_a_checkpoint_is_refused_and_not_read(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path / "run")
    place = tmp_path / "run" / "checkpoints" / "20" / name
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(InputError, match=r"20: cannot be read.*(is missing|_METADATA is no file)"):
        load_params(tmp_path / "run")


def damage_newest(run: Path, how: str) -> None:
    newest = run / "checkpoints" / "20"
    if how == "no marker":
        (newest / "commit_success.txt").unlink()
    elif how == "emptied":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        files = [f for f in (newest / "state").rglob("*") if f.is_file()]
        HARMS[how](max(files, key=lambda f: f.stat().st_size))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["halved", "emptied", "no marker", "flipped"])
def test_a_damaged_newest_is_set_aside_and_the_one_before_is_used(saved, tmp_path, how):
    run, told = tmp_path / "run", []
    shutil.copytree(saved, run)
    damage_newest(run, how)
    checkpoints = RunCheckpoints(run)
    state, data_state, step = checkpoints.restore_newest(abstract(make_state(0)), told.append)
    assert (step, data_state) == (10, {"position": 10})
    assert_same_bits(state, make_state(10))
    assert f"{run}/checkpoints/20: cannot be read" in told[0]
    assert f"set aside as {run}/set_aside/20" in told[0]
    assert told[1] == "goes on from step 10"
    assert [path.name for path in (run / "set_aside").iterdir()] == ["20"]
    # What comes next has its place, and may be damaged too.
    checkpoints.save(20, make_state(20), {"position": 20}, wait=True)
    assert checkpoints.latest() == 20
    checkpoints.close()
    damage_newest(run, how)
    checkpoints = RunCheckpoints(run)
    assert checkpoints.restore_newest(abstract(make_state(0)), told.append)[2] == 10
    assert sorted(path.name for path in (run / "set_aside").iterdir()) == ["20", "20-2"]
    checkpoints.close()


def test_without_a_whole_checkpoint_nothing_starts_anew(saved, tmp_path):
    run, told = tmp_path / "run", []
    shutil.copytree(saved, run)
    for step in ("10", "20"):
        (run / "checkpoints" / step / "_CHECKPOINT_METADATA").unlink()
    checkpoints = RunCheckpoints(run)
    assert not checkpoints.is_empty()
    with pytest.raises(InputError, match=r"20: cannot be read.*No checkpoint of .* is whole"):
        checkpoints.restore_newest(abstract(make_state(0)), told.append)
    assert not told
    assert not (run / "set_aside").exists()
    # Nor where all have been set aside by hand.
    (run / "set_aside").mkdir()
    for step in ("10", "20"):
        (run / "checkpoints" / step).rename(run / "set_aside" / step)
    assert not checkpoints.is_empty()
    with pytest.raises(InputError, match=r"holds no checkpoint, but .*set_aside holds damaged"):
        checkpoints.restore_newest(abstract(make_state(0)), told.append)
    checkpoints.close()


def test_another_model_sets_nothing_aside(tmp_path):
    """Though a checkpoint before it would fit."""
    checkpoints, told = RunCheckpoints(tmp_path), []
    for step, length in ((10, 2), (20, 3)):
        checkpoints.save(step, {"a": jnp.ones(length)}, {}, wait=True)
    with pytest.raises(InputError) as caught:
        checkpoints.restore_newest(abstract({"a": jnp.ones(2)}), told.append)
    checkpoints.close()
    assert not isinstance(caught.value, DamagedCheckpoint)
    assert str(caught.value) == (
        f"{tmp_path}/checkpoints/20: a is float32[3] in the checkpoint and float32[2] in this "
        "model; use the configuration it was trained with, or take another --workdir for this one."
    )
    assert not told
    assert not (tmp_path / "set_aside").exists()


def test_a_changed_list_of_arrays_is_damage_and_no_other_model(saved, tmp_path):
    run, told = tmp_path / "run", []
    shutil.copytree(saved, run)
    listed = run / "checkpoints" / "20" / "state" / "_METADATA"
    # 'n' and 'o' differ in one bit.
    listed.write_bytes(listed.read_bytes().replace(b"mean", b"meao"))
    checkpoints = RunCheckpoints(run)
    assert checkpoints.restore_newest(abstract(make_state(0)), told.append)[2] == 10
    checkpoints.close()
    assert "set aside" in told[0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (ValueError("RESOURCE_EXHAUSTED: no memory on the device"), "no memory on the device"),
        (
            ValueError("UNKNOWN: Error reading: Input/output error [os_error_code='5']"),
            "Input/output error",
        ),
    ],
)
def test_what_passes_sets_nothing_aside(saved, tmp_path, monkeypatch, error, reason):
    run, told = tmp_path / "run", []
    shutil.copytree(saved, run)

    def fails(*_):
        raise error

    checkpoints = RunCheckpoints(run)
    monkeypatch.setattr(checkpoint, "check_digests", fails)
    with pytest.raises(InputError, match=rf"20: could not be read now \(.*{reason}") as caught:
        checkpoints.restore_newest(abstract(make_state(0)), told.append)
    assert "move this folder away to go on from step 10" in str(caught.value)
    monkeypatch.undo()
    assert checkpoints.restore_newest(abstract(make_state(0)), told.append)[2] == 20
    checkpoints.close()
    assert not told


READ_ONLY = """
import os, sys
import jax.numpy as jnp
from spatial_clap_jax.train.checkpoint import RunCheckpoints, SaveError

checkpoints = RunCheckpoints(sys.argv[1])
save = lambda step: checkpoints.save(step, {"a": jnp.ones(3)}, {}, wait=True)
save(1)
folder = sys.argv[1] + "/checkpoints"
os.chmod(folder, 0o555)
root = os.geteuid() == 0
# Nothing is read-only for root.
if root:
    os.seteuid(65534)
for step in (2, 3):
    try:
        save(step)
    except SaveError as error:
        print(error)
print(checkpoints.latest())
if root:
    os.seteuid(0)
os.chmod(folder, 0o755)
save(4)
print(checkpoints.latest())
checkpoints.close()
"""


def test_a_read_only_folder_is_said_and_the_last_whole_checkpoint_kept():
    # Where another user may come, as pytest's own folder is not.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with start(READ_ONLY, folder) as process:
            output, _ = process.communicate(timeout=120)
        lines = output.splitlines()
        assert process.returncode == 0, output
        for line, step in zip(lines[:2], (2, 3), strict=True):
            assert f"step {step} could not be saved" in line
            assert "Permission denied" in line
            assert "step 1 is the last whole one" in line
            assert "give the right to write there" in line
        assert lines[2:] == ["1", "4"]


FULL = """
import resource, sys
import numpy as np
import jax.numpy as jnp
from spatial_clap_jax.train.checkpoint import RunCheckpoints, SaveError

noise = np.random.default_rng(0).random(500_000, np.float32)
checkpoints = RunCheckpoints(sys.argv[1])
checkpoints.save(1, {"a": jnp.asarray(noise)}, {}, wait=True)
limit = resource.RLIM_INFINITY
# No file may be longer: for what is written, the disk is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit))
checkpoints.save(2, {"a": jnp.asarray(noise)}, {})
again = lambda: checkpoints.save(3, {"a": jnp.asarray(noise)}, {}, wait=True)
for attempt in (checkpoints.wait, again):
    try:
        attempt()
    except SaveError as error:
        print(error)
print(checkpoints.latest())
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
checkpoints.save(4, {"a": jnp.asarray(noise)}, {}, wait=True)
print(checkpoints.latest())
checkpoints.close()
"""


def test_a_full_disk_is_said_and_the_last_whole_checkpoint_kept(tmp_path):
    with start(FULL, tmp_path) as process:
        output, _ = process.communicate(timeout=120)
    lines = output.splitlines()
    assert process.returncode == 0, output
    for line, step in zip(lines[:2], (2, 3), strict=True):
        assert f"step {step} could not be saved" in line
        assert "File too large" in line
        assert "step 1 is the last whole one. Make room" in line
    assert lines[2:] == ["1", "4"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "4"]


def test_an_emptied_step_names_the_step_to_go_on_from(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    (tmp_path / "run" / "checkpoints" / "20").mkdir()
    checkpoints = RunCheckpoints(tmp_path / "run")
    message = r"20: cannot be read.*remove this folder to go on from step 10"
    with pytest.raises(InputError, match=message):
        checkpoints.restore(abstract(make_state(0)))
    with pytest.raises(InputError, match=message):
        load_params(tmp_path / "run")
    checkpoints.close()


@pytest.mark.parametrize("name", ["\u00b2", "\u0665", "05", "9 file", "notes"])
def test_what_is_no_checkpoint_is_passed_over(saved, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    if name == "9 file":
        # Later than all, and no folder.
        (run / "checkpoints" / "90").write_text("a note of a person")
    else:
        (run / "checkpoints" / name).mkdir()
    assert load_params(run)[1] == 20
    checkpoints = RunCheckpoints(run)
    assert checkpoints.latest() == 20
    assert checkpoints.restore_newest(abstract(make_state(0)), pytest.fail)[2] == 20
    checkpoints.save(30, make_state(30), {}, wait=True)
    checkpoints.close()
    assert load_params(run)[1] == 30


def test_a_step_that_no_run_comes_to_is_damage(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    (run / "checkpoints" / "99999999999").mkdir()
    told: list[str] = []
    checkpoints = RunCheckpoints(run)
    assert checkpoints.restore_newest(abstract(make_state(0)), told.append)[2] == 20
    checkpoints.close()
    assert (run / "set_aside" / "99999999999").is_dir()


def test_load_params_needs_no_model(saved):
    loaded, step = load_params(saved)
    assert step == 20
    assert_same_bits(loaded, {"variables": make_state(20).variables, "average": {}})
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    assert load_params(saved, 10, ("epoch", "nothing"))[0] == {"epoch": 3}


def test_missing_checkpoints_and_subtrees(saved, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint; give the workdir"):
        load_params(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(InputError, match="has no step 15; take one of 10, 20"):
        load_params(saved, 15)
    with pytest.raises(InputError, match=r"no 'weights' .it has average, epoch"):
        load_params(saved, subtrees=("weights",))
    with pytest.raises(InputError, match=r"gs://bucket/run is no path.*gcsfuse"):
        RunCheckpoints("gs://bucket/run")
    with pytest.raises(InputError, match="keep: 0 is below 1"):
        RunCheckpoints(tmp_path, keep=0)
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.latest() is None
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.restore({})
    checkpoints.close()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step": np.zeros((), np.float32)}, r"step is int32\[\] .* and float32\[\] in this"),
        ({"key": np.zeros(3, np.uint32)}, r"key is uint32\[2\] .* and uint32\[3\] in this"),
        (
            {"average": {"w": np.zeros(2, np.float32)}},
            r"average/w is absent .* and float32\[2\] in this",
        ),
        ({"optimizer": {}}, r"optimizer/.* in the checkpoint and absent in this model"),
    ],
)
def test_another_model_is_refused_by_path(saved, changed, message):
    checkpoints = RunCheckpoints(saved)
    with pytest.raises(InputError, match=message):
        checkpoints.restore(abstract(make_state(0)._replace(**changed)))
    checkpoints.close()


SHARDED = """
import sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint import *

port, index, devices = map(int, sys.argv[3:])
if port:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, index)
mesh = jax.make_mesh((devices,), ("d",), (jax.sharding.AxisType.Auto,))

def put(x):
    if isinstance(x, int):
        return x
    spec = jax.sharding.PartitionSpec(*(("d",) if x.shape[:1] == (8,) else ()))
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: np.asarray(x)[i])

state = jax.tree.map(put, make_state(5))
checkpoints = RunCheckpoints(sys.argv[1])
checkpoints.save(5, state, {"step": 5})
restored, data_state = checkpoints.restore(abstract(state, of_leaf=True))
assert data_state == {"step": 5}
assert len(restored.variables["params"]["dense"]["kernel"].sharding.device_set) == devices
for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
    if not isinstance(a, int):
        assert a.sharding == b.sharding
        for mine, theirs in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert_same_bits(mine.data, theirs.data)
checkpoints.close()
"""


def start(script: str, *arguments: Any, devices: int = 1) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    root = str(Path(spatial_clap_jax.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": root,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def save_sharded(workdir: Path, processes: int, devices: int) -> None:
    """Fresh processes save `make_state(5)` split over simulated devices, and restore it."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1] if processes > 1 else 0
    here = Path(__file__).parent
    running = [
        start(SHARDED, workdir, here, port, index, devices, devices=devices // processes)
        for index in range(processes)
    ]
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output


def test_eight_devices_to_eight_and_to_one(tmp_path):
    save_sharded(tmp_path, processes=1, devices=8)
    checkpoints = RunCheckpoints(tmp_path)
    state, data_state = checkpoints.restore(abstract(make_state(0)))
    checkpoints.close()
    assert_same_bits(state, make_state(5))
    assert data_state == {"step": 5}
    assert_same_bits(load_params(tmp_path)[0]["variables"], make_state(5).variables)


@pytest.mark.slow
def test_what_two_processes_saved_one_restores(tmp_path):
    save_sharded(tmp_path, processes=2, devices=2)
    assert_same_bits(load_params(tmp_path)[0]["variables"], make_state(5).variables)
    checkpoints = RunCheckpoints(tmp_path)
    state, data_state = checkpoints.restore(abstract(make_state(0)))
    assert_same_bits(state, make_state(5))
    assert data_state == {"step": 5}
    checkpoints.close()


def test_reads_that_orbax_abandons_are_not_told_when_they_are_collected(caplog):
    checkpoint_files._ignore_abandoned_reads()

    async def fails(error: Exception) -> None:
        raise error

    def abandon(error: Exception) -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(fails(error))
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()
        del task
        gc.collect()

    damage = 'DATA_LOSS: Error opening "zarr3" driver: CRC-32C [tensorstore_spec=\'{"driver":1}\']'
    abandon(ValueError(damage))
    assert not caplog.records
    abandon(ValueError("of another kind"))
    assert ["never retrieved" in record.getMessage() for record in caplog.records] == [True]
