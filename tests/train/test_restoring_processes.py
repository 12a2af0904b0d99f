"""Two processes and broken checkpoints: what one of them finds, both act on, and none waits."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint import start

PAIR = """
import json, resource, sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from orbax.checkpoint.experimental.v1._src.synchronization import multihost
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import checkpoint, processes
from spatial_clap_jax.train.checkpoint import RunCheckpoints, SaveError

folder, port, index = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
mesh = jax.make_mesh((2,), ("d",), (jax.sharding.AxisType.Auto,))
noise = np.random.default_rng(0).random(200_000, np.float32)

def put(array, *axes):
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.make_array_from_callback(array.shape, place, lambda i: array[i])

state = {"split": put(noise, "d"), "whole": put(np.arange(3))}
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
same = jax.jit(lambda a, b: jnp.all(a["split"] == b["split"]) & jnp.all(a["whole"] == b["whole"]))

def say(**what):
    print("SAID", json.dumps(what), flush=True)

def restore(run, like=like):
    checkpoints, told = RunCheckpoints(run), []
    began = time.monotonic()
    try:
        restored, place, step = checkpoints.restore_newest(like, told.append)
        # A step of a training is one for both.
        say(step=step, same=bool(same(restored, state)), place=place, told=told)
    except InputError as error:
        say(error=str(error), told=told, seconds=time.monotonic() - began)
    checkpoints.close()
"""

SAVE = """
checkpoints = RunCheckpoints(folder / "run")
for step in (10, 20):
    checkpoints.save(step, state, {"position": step})
checkpoints.close()
"""

RESTORE = """
for run in sys.argv[4:]:
    restore(run)
"""

OTHERS = """
run = folder / "run"
longer = put(np.arange(4))
restore(run, {**like, "whole": jax.ShapeDtypeStruct((4,), longer.dtype, sharding=longer.sharding)})

def fails(*_):
    raise OSError(24, "Too many open files")

check = checkpoint.check_arrays
if index == 1:
    checkpoint.check_arrays = fails
restore(run)
# A file that is cut between the look at it and the load.
checkpoint.check_arrays = lambda *_: None
usual, multihost._DEFAULT_BARRIER_TIMEOUT = multihost._DEFAULT_BARRIER_TIMEOUT, 5
restore(folder / "halved")
multihost._DEFAULT_BARRIER_TIMEOUT = usual
checkpoint.check_arrays = check
restore(run)
"""

SAVES = """
checkpoints = RunCheckpoints(folder / "run", save_timeout_s=20)
limit = resource.RLIM_INFINITY
for step, small in ((10, None), (20, 1), (30, 0), (40, None)):
    if index == small:
        # No file may be longer: for what this process writes, the disk is full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit))
    try:
        checkpoints.save(step, state, {}, wait=True)
        say(saved=step)
    except SaveError as error:
        say(error=str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    processes.wait_for_all(f"tried {step}")
checkpoints.close()
"""


def both(script: str, folder: Path, *arguments: Any) -> list[list[dict]]:
    """What two processes said, each in its order; ended where one of them hangs."""

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    running = [start(PAIR + script, folder, port, index, *arguments) for index in range(2)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            # JAX takes SIGTERM for a notice.
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output
    return [
        [json.loads(line[5:]) for line in output.splitlines() if line.startswith("SAID ")]
        for output in outputs
    ]


def file_of_process(run: Path, index: int) -> Path:
    folder = run / "checkpoints" / "20" / "state" / f"ocdbt.process_{index}" / "d"
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


def halve(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with a run that two processes saved at steps 10 and 20."""
    folder = tmp_path_factory.mktemp("pair")
    both(SAVE, folder)
    return folder


HARMS = {
    "halved-0": lambda run: halve(file_of_process(run, 0)),
    "halved-1": lambda run: halve(file_of_process(run, 1)),
    "gone": lambda run: file_of_process(run, 1).unlink(),
    "emptied": lambda run: shutil.rmtree(run / "checkpoints" / "20" / "state"),
    "unmarked": lambda run: (run / "checkpoints" / "20" / "commit_success.txt").unlink(),
    # Where the first chunk's compression begins, and in the midst of noise.
    "flipped-start": lambda run: flip(file_of_process(run, 1), 0),
    "flipped": lambda run: flip(file_of_process(run, 1), 150_000),
}


@pytest.mark.slow
def test_a_damaged_newest_is_set_aside_by_both(saved, tmp_path):
    runs = [tmp_path / name for name in HARMS]
    for run in runs:
        shutil.copytree(saved / "run", run)
        HARMS[run.name](run)
    first, second = both(RESTORE, tmp_path, *runs)
    assert first == second
    for run, said in zip(runs, first, strict=True):
        assert (said["step"], said["place"]) == (10, {"position": 10}), run.name
        assert said["same"]
        assert (
            f"{run}/checkpoints/20: cannot be read, a checkpoint must be whole" in said["told"][0]
        )
        assert f"set aside as {run}/set_aside/20" in said["told"][0]
        assert said["told"][1:] == ["goes on from step 10"]
        assert [path.name for path in (run / "set_aside").iterdir()] == ["20"]


@pytest.mark.slow
def test_without_a_whole_one_both_end(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved / "run", run)
    halve(file_of_process(run, 1))
    (run / "checkpoints" / "10" / "_CHECKPOINT_METADATA").unlink()
    first, second = both(RESTORE, tmp_path, run)
    assert first[0]["error"] == second[0]["error"]
    assert "20: cannot be read" in first[0]["error"]
    assert "No checkpoint of" in first[0]["error"]
    assert not (run / "set_aside").exists()


@pytest.mark.slow
def test_what_one_process_meets_both_tell(saved, tmp_path):
    for name in ("run", "halved"):
        shutil.copytree(saved / "run", tmp_path / name)
    halve(file_of_process(tmp_path / "halved", 1))
    first, second = both(OTHERS, tmp_path)
    for other_model, open_files, late, last in (first, second):
        assert "whole is int32[3] in the checkpoint and int32[4]" in other_model["error"]
        assert "20: could not be read now ([Errno 24] Too many open files)" in open_files["error"]
        assert not other_model["told"] + open_files["told"]
        assert late["step"] == 10
        assert "set aside" in late["told"][0]
        assert (last["step"], last["told"]) == (20, [])


@pytest.mark.slow
def test_where_one_process_cannot_write_none_has_saved_and_both_go_on(tmp_path):
    first, second = both(SAVES, tmp_path)
    for index, said in enumerate((first, second)):
        assert [what.get("saved") for what in said] == [10, None, None, 40]
        for what, failed, step in ((said[1], 1, 20), (said[2], 0, 30)):
            assert f"step {step} could not be saved" in what["error"]
            assert "step 10 is the last whole one" in what["error"]
            reason = "File too large" if index == failed else "another process did not end its part"
            assert reason in what["error"]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["10", "40"]
