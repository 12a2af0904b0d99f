"""Whole small runs: they learn, resume to the same bits, compile once, refuse what does not fit."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import FakeScenes
from tiny import RATE_HZ, WINDOW, tiny_experiment

from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.data.pipeline import TrainBatches, train_batches
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError, RunStopped
from spatial_clap_jax.train import feeds, run_lock, sharding, trainer
from spatial_clap_jax.train.checkpoint import RunCheckpoints, SaveError, load_params
from spatial_clap_jax.train.checkpoint_files import JsonFile, _with_checksum
from spatial_clap_jax.train.description import read_description
from spatial_clap_jax.train.health import HealthConfig, read_incidents
from spatial_clap_jax.train.interruption import Interrupted
from spatial_clap_jax.train.metrics_log import read_metrics

STEPS = 4


def experiment(**changes):
    return dataclasses.replace(
        tiny_experiment(), steps=STEPS, log_every=1, checkpoint_every=2, ema_decay=0.9, **changes
    )


def arrays_of(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    tree, _ = load_params(workdir, step, ("variables", "average", "optimizer", "step"))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def straight(tiny_scenes, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    trainer.train(experiment(), tiny_scenes, workdir, progress=False)
    return workdir


@pytest.mark.slow
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(straight, tiny_scenes, tmp_path):
    put_batch = sharding.put_batch
    calls = []

    def stops_after_three(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(None)
        return put_batch(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "put_batch", stops_after_three)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(experiment(), tiny_scenes, tmp_path / "run", progress=False)
    # Step 3 was done but not saved: the resumed run does it again from step 2.
    result = trainer.train(experiment(), tiny_scenes, tmp_path / "run", progress=False)
    assert result.step == STEPS
    ours, theirs = arrays_of(tmp_path / "run"), arrays_of(straight)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    timing = {"clips_per_s", "data_wait_share", "flops_per_s"}
    rows = [
        [{k: v for k, v in row.items() if k not in timing} for row in read_metrics(run)]
        for run in (tmp_path / "run", straight)
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(straight, tiny_scenes):
    before = arrays_of(straight)
    result = trainer.train(experiment(), tiny_scenes, straight, progress=False)
    assert result.step == STEPS
    for name, value in arrays_of(straight).items():
        np.testing.assert_array_equal(before[name], value, err_msg=name)


def test_every_parameter_moves_and_the_average_lags_behind(straight):
    first, last = arrays_of(straight, 2), arrays_of(straight, 4)
    params = [name for name in last if name.startswith("['variables']['params']")]
    # Softmax over positions does not change when all scores move together.
    still = [n for n in params if np.array_equal(first[n], last[n]) and "score" not in n]
    assert not still
    for name in params:
        averaged = last[name.replace("['variables']", "['average']")]
        assert averaged.shape == last[name].shape
    assert any(
        not np.array_equal(last[n], last[n.replace("['variables']", "['average']")]) for n in params
    )


def test_the_run_describes_itself(straight):
    found = read_description(straight)
    assert found["experiment"]["steps"] == STEPS
    assert found["preprocessing"]["channels"] == 2
    assert json.loads(found["tokenizer"])["version"]


def test_the_step_compiles_once(tiny_scenes):
    ours = experiment()
    mesh = sharding.make_mesh(shape=ours.mesh)
    start, step = trainer.build_state_and_step(ours, mesh)
    tokenizer = Tokenizer.train(["a b"], 300, 24)
    state = start({})
    with train_iterator(tiny_scenes, ours, tokenizer) as batches:
        for _ in range(3):
            state, _ = step(state, sharding.put_batch(next(batches), mesh))
    assert step._cache_size() == 1


class train_iterator:
    """Batches as a context."""

    def __init__(self, scenes, ours, tokenizer):
        self.batches = train_batches(open_scenes(scenes), ours.data, tokenizer, scl=True, seed=0)

    def __enter__(self):
        return self.batches

    def __exit__(self, *_):
        self.batches.close()


@pytest.mark.slow
@pytest.mark.parametrize("scl", [True, False])
def test_a_step_logs_the_loss_of_rivals(scl):
    """With SCL the rivals are in the batch; without, `data.rivals` brings captions along."""
    ours = experiment()
    ours = dataclasses.replace(
        ours,
        loss=dataclasses.replace(ours.loss, scl=scl, rival_weight=0.5),
        data=dataclasses.replace(ours.data, rivals=not scl),
    )
    scenes = FakeScenes(groups=4, samples=WINDOW, sample_rate_hz=RATE_HZ)
    tokenizer = Tokenizer.train(["a b"], 300, 24)
    batches = train_batches(scenes, ours.data, tokenizer, scl=scl, seed=0)
    batch = next(batches)
    batches.close()
    assert ("has_rival" in batch) == (not scl)
    mesh = sharding.make_mesh(shape=ours.mesh)
    planned = feeds.abstract_batch(ours, mesh)
    assert {name: (x.shape, x.dtype) for name, x in planned.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }
    start, step = trainer.build_state_and_step(ours, mesh)
    state, metrics = step(start({}), sharding.put_batch(batch, mesh))
    # Without SCL no two members of a group are in the batch, which then has no assignment.
    assert [name for name, x in metrics.items() if not np.isfinite(float(x))] == (
        [] if scl else ["assignment"]
    )
    # An untrained model knows the own text from the rival about half of the time.
    assert 0.1 < float(metrics["rival_loss"]) < 3.0
    assert float(metrics["loss"]) > 0.5 * float(metrics["rival_loss"])
    assert int(state.step) == 1


@pytest.mark.slow
@pytest.mark.parametrize("scl", [True, False])
def test_frozen_sub_trees_stay(tiny_scenes, tmp_path, scl):
    ours = experiment()
    ours = dataclasses.replace(
        ours,
        steps=2,
        optimizer=dataclasses.replace(ours.optimizer, frozen=(r"^text/", r"^content/")),
        loss=dataclasses.replace(ours.loss, scl=scl),
    )
    trainer.train(ours, tiny_scenes, tmp_path / "run", progress=False)
    mesh = sharding.make_mesh(shape=ours.mesh)
    fresh = trainer.build_state_and_step(ours, mesh)[0]({}).variables
    tree, _ = load_params(tmp_path / "run", 2, ("variables",))
    same = partial(jax.tree.map, np.testing.assert_array_equal)
    same(fresh["params"]["text"], tree["variables"]["params"]["text"])
    same(fresh["params"]["content"], tree["variables"]["params"]["content"])
    # Running statistics are frozen with their layer.
    same(fresh["batch_stats"]["content"], tree["variables"]["batch_stats"]["content"])
    fresh, params = fresh["params"], tree["variables"]["params"]
    assert not np.array_equal(fresh["fusion"]["out"]["kernel"], params["fusion"]["out"]["kernel"])


def test_another_experiment_is_refused_and_the_differences_named(straight, tiny_scenes):
    other = dataclasses.replace(experiment(), seed=5)
    with pytest.raises(InputError, match=r"holds a run that differs: seed 0 there, 5 here"):
        trainer.train(other, tiny_scenes, straight, progress=False)


@pytest.mark.slow
def test_what_is_accepted_may_differ_and_is_noted(tiny_scenes, tmp_path, capfd):
    run = tmp_path / "run"
    trainer.train(experiment(), tiny_scenes, run, progress=False)
    ours = experiment()
    other = dataclasses.replace(
        ours, steps=6, optimizer=dataclasses.replace(ours.optimizer, learning_rate=2e-3)
    )
    with pytest.raises(
        InputError, match=r"optimizer.learning_rate 0.001 there, 0.002 here; take another"
    ):
        trainer.train(other, tiny_scenes, run, progress=False, accept=["steps"])
    before = (run / "description.json").read_bytes()
    accept = ["steps", "optimizer"]
    assert trainer.train(other, tiny_scenes, run, progress=False, accept=accept).step == 6
    assert read_description(run)["experiment"]["optimizer"]["learning_rate"] == 2e-3
    assert (run / "description_before.json").read_bytes() == before
    capfd.readouterr()
    # The same command goes on, and from now on the run is that one.
    assert trainer.train(other, tiny_scenes, run, accept=accept).step == 6
    said = capfd.readouterr().err
    assert "--accept steps: nothing of that name differs" in said
    assert "--accept optimizer: nothing of that name differs" in said
    assert trainer.train(other, tiny_scenes, run, progress=False).step == 6
    assert (run / "description_before.json").read_bytes() == before
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    accepted = [(row["from_step"], len(row["accepted"])) for row in starts]
    assert accepted == [(0, 0), (4, 2), (6, 0), (6, 0)]
    with pytest.raises(InputError, match=r"--accept steps: .*new holds no run"):
        trainer.train(other, tiny_scenes, tmp_path / "new", progress=False, accept=["steps"])


@pytest.mark.slow
def test_what_cannot_be_restored_leaves_the_run_as_it_is(straight, tiny_scenes, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    before = {name: (run / name).read_bytes() for name in ("description.json", "starts.jsonl")}
    ours = experiment()
    other = dataclasses.replace(ours, model=dataclasses.replace(ours.model, joint_width=16))
    with pytest.raises(InputError, match=r"in the checkpoint and .* in this model; use"):
        trainer.train(other, tiny_scenes, run, progress=False, accept=["model"])
    assert {name: (run / name).read_bytes() for name in before} == before
    assert trainer.train(ours, tiny_scenes, run, progress=False).step == STEPS


def test_a_run_that_is_at_work_is_not_started_again(straight, tiny_scenes, monkeypatch):
    monkeypatch.setattr(run_lock, "_PATIENCE_S", 0.0)
    told = f"{straight}: a training is at work here .process {os.getpid()} on "
    with run_lock.held(straight, pytest.fail), pytest.raises(InputError, match=told):
        trainer.train(experiment(), tiny_scenes, straight, progress=False)
    # It was begun and ended while this start looked at the folder.
    with pytest.raises(InputError, match="another start has changed it meanwhile; start again"):
        trainer._check_same(straight, None)


def test_a_run_whose_checkpoints_are_gone_does_not_start_anew(straight, tiny_scenes, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    ours = dataclasses.replace(experiment(), checkpoint_every=1)
    with pytest.raises(InputError, match="had come to step 4, but its checkpoints are gone"):
        trainer.train(ours, tiny_scenes, tmp_path / "run", progress=False)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_its_steps_alone(straight, tiny_scenes, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for file in (run / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    assert trainer.train(experiment(), tiny_scenes, run, progress=False).step == STEPS
    ours, theirs = arrays_of(run), arrays_of(straight)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]
    assert (run / "set_aside" / "4").is_dir()


@pytest.mark.slow
def test_a_place_of_other_types_costs_its_steps_alone(straight, tiny_scenes, tmp_path):
    """Its checksum is right."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    place = run / "checkpoints" / "4" / "data_state" / "value.json"
    place.write_text(_with_checksum({"step": 4, "health": [1], "log": []}), "utf-8")
    assert trainer.train(experiment(), tiny_scenes, run, progress=False).step == STEPS
    ours, theirs = arrays_of(run), arrays_of(straight)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]
    assert (run / "set_aside" / "4").is_dir()


@pytest.fixture
def poisoned(monkeypatch):
    """From some step on, for some steps, batches hold a sample that is not a number."""

    def poison(steps: set[int]) -> None:
        put_batch, count = sharding.put_batch, [0]

        def put(batch, *rest):
            count[0] += 1
            if count[0] in steps:
                batch = {**batch, "audio": batch["audio"] * np.float32(np.nan)}
            return put_batch(batch, *rest)

        monkeypatch.setattr(sharding, "put_batch", put)

    return poison


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_left_out_and_told(tiny_scenes, tmp_path, poisoned):
    poisoned({2})
    run = tmp_path / "run"
    trainer.train(experiment(), tiny_scenes, run, progress=False)
    rows = read_metrics(run)
    assert [row["applied"] for row in rows] == [1, 0, 1, 1]
    assert [row["skipped"] for row in rows] == [0, 1, 1, 1]
    assert np.isfinite([rows[0]["loss"], rows[2]["loss"], rows[3]["loss"]]).all()
    before, after = arrays_of(run, 2), arrays_of(run, 4)
    assert all(np.isfinite(value).all() for value in (*before.values(), *after.values()))
    (incident,) = read_incidents(run)
    assert incident["step"] == 2
    # What a batch is made of follows from the seed: four groups of two members.
    assert len(incident["samples"]) == 5
    assert all(name.startswith("train_k") for name in incident["samples"])


@pytest.mark.slow
def test_numbers_that_stay_wrong_end_the_run_with_all_that_tells_why(
    tiny_scenes, tmp_path, poisoned
):
    poisoned({2, 3})
    # The good step after the last bad one is on its way, and seen where the log is written.
    ours = dataclasses.replace(experiment(), steps=8, health=HealthConfig(bad_steps=2), log_every=4)
    run = tmp_path / "run"
    message = "steps 2 to 3 were not finite, and 2 in a row end a run.*saved as step"
    with pytest.raises(RunStopped, match=message):
        trainer.train(ours, tiny_scenes, run, progress=False)
    assert all(np.isfinite(value).all() for value in arrays_of(run).values())
    bundle = run / "incident_3"
    assert {path.name for path in bundle.iterdir()} == {
        *("steps.json", "state.json", "experiment.json")
    }
    state = json.loads((bundle / "state.json").read_text())
    assert not any(part["not_finite"] for part in state.values())
    # It goes on when it is started again, from the weights before.
    assert trainer.train(ours, tiny_scenes, run, progress=False).step == 8


@pytest.mark.slow
@pytest.mark.parametrize("at", ["step", "batch"])
def test_skipped_records_are_counted_once_whatever_signal_comes(
    tiny_scenes, tmp_path, monkeypatch, at
):
    """In a step, which is finished; or with a batch, whose step is given up."""
    put_batch, take, calls = sharding.put_batch, TrainBatches.__next__, []

    def signalled():
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    def takes(self):
        batch = take(self)
        self._skipped.update(["train_k1/7"])
        if at == "batch":
            signalled()
        return batch

    def puts(*args):
        if at == "step":
            signalled()
        return put_batch(*args)

    monkeypatch.setattr(TrainBatches, "__next__", takes)
    monkeypatch.setattr(sharding, "put_batch", puts)
    ours, run = dataclasses.replace(experiment(), log_every=4, checkpoint_every=4), tmp_path / "run"
    with pytest.raises(Interrupted, match=f"saved at step {2 if at == 'batch' else 3} of 4"):
        trainer.train(ours, tiny_scenes, run, progress=False)
    assert read_incidents(run) == []
    trainer.train(ours, tiny_scenes, run, progress=False)
    (incident,) = read_incidents(run)
    assert (incident["step"], incident["times"], incident["samples"]) == (4, 4, ["train_k1/7"])
    assert [row["skipped_records"] for row in read_metrics(run)] == [4]


@pytest.mark.slow
def test_what_moves_to_the_devices_unasked_ends_the_run(tiny_scenes, tmp_path, monkeypatch):
    see = trainer.HealthWatch.see

    def unasked(self, step, metrics):
        jax.block_until_ready(metrics["loss"] + np.float32(1.0))
        return see(self, step, metrics)

    monkeypatch.setattr(trainer.HealthWatch, "see", unasked)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        trainer.train(experiment(), tiny_scenes, tmp_path / "run", progress=False)


@pytest.mark.slow
def test_scores_are_rows_of_the_log_and_a_resumed_run_has_each_once(tiny_scenes, tmp_path):
    def validation(feed):
        assert feed.tokenizer is not None
        return lambda variables, step: {
            "validation/sum": float(variables["params"].popitem()[0] > "")
        }

    ours = dataclasses.replace(experiment(), evaluate_every=2)
    with pytest.raises(InputError, match="evaluate_every: 2, but nothing scores the run"):
        trainer.train(ours, tiny_scenes, tmp_path / "run", progress=False)
    for _ in range(2):
        trainer.train(ours, tiny_scenes, tmp_path / "run", progress=False, validation=validation)
    scored = [row["step"] for row in read_metrics(tmp_path / "run") if "validation/sum" in row]
    assert scored == [2, 4]


@pytest.mark.slow
def test_an_evaluation_that_cannot_be_made_ends_no_training(tiny_scenes, tmp_path, capfd):
    def validation(feed):
        def scores(variables, step):
            raise InputError("text 0: has 39 tokens, at most 24 are read.")

        return scores

    ours = dataclasses.replace(experiment(), evaluate_every=2)
    result = trainer.train(ours, tiny_scenes, tmp_path / "run", validation=validation)
    assert result.step == STEPS
    assert "step 2: not evaluated: text 0: has 39 tokens" in capfd.readouterr().err


@pytest.mark.slow
def test_a_save_that_fails_stops_the_run_or_is_tried_again(tiny_scenes, tmp_path, monkeypatch):
    save, failed = RunCheckpoints.save, []

    def fails_once(self, step, *rest, **more):
        if not failed:
            failed.append(step)
            raise SaveError(f"checkpoints: step {step} could not be saved (No space left).")
        save(self, step, *rest, **more)

    monkeypatch.setattr(RunCheckpoints, "save", fails_once)
    with pytest.raises(InputError, match="step 2 could not be saved"):
        trainer.train(experiment(), tiny_scenes, tmp_path / "stops", progress=False)
    failed.clear()
    ours = experiment(failed_save="go_on")
    assert trainer.train(ours, tiny_scenes, tmp_path / "goes_on", progress=False).step == STEPS
    assert failed == [2]
    steps = [path.name for path in (tmp_path / "goes_on" / "checkpoints").iterdir()]
    assert steps == ["4"]


@pytest.mark.slow
def test_a_save_that_fails_does_not_hide_why_a_run_ended(tiny_scenes, tmp_path, monkeypatch, capfd):
    take, taken = TrainBatches.__next__, []

    def dies(self):
        if len(taken) == 2:
            raise RunStopped("data.workers: process 7 was killed.")
        taken.append(None)
        return take(self)

    async def full(self, directory):
        async def write():
            raise OSError(28, "No space left on device")

        return write()

    monkeypatch.setattr(TrainBatches, "__next__", dies)
    monkeypatch.setattr(JsonFile, "save", full)
    with pytest.raises(RunStopped, match="process 7 was killed"):
        trainer.train(experiment(), tiny_scenes, tmp_path / "run")
    assert "step 2 could not be saved ([Errno 28] No space left" in capfd.readouterr().err


def test_a_last_save_that_fails_is_an_error_all_the_same(tiny_scenes, tmp_path, monkeypatch):
    def fails(self, step, *rest, **more):
        raise SaveError(f"checkpoints: step {step} could not be saved (No space left).")

    monkeypatch.setattr(RunCheckpoints, "save", fails)
    with pytest.raises(InputError, match="step 4 could not be saved; make room"):
        trainer.train(
            experiment(failed_save="go_on"), tiny_scenes, tmp_path / "run", progress=False
        )


def test_what_changes_no_result_may_change(straight, tiny_scenes):
    other = dataclasses.replace(experiment(), log_every=3, keep=7)
    assert trainer.train(other, tiny_scenes, straight, progress=False).step == STEPS


def test_scenes_of_another_length_are_refused(tiny_scenes, tmp_path):
    ours = experiment()
    ours = dataclasses.replace(ours, model=dataclasses.replace(ours.model, window_s=3.0))
    with pytest.raises(InputError, match=r"--data: scenes of .* but the model takes 3 s"):
        trainer.train(ours, tiny_scenes, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


DEVICES = """
import sys
sys.path.insert(0, sys.argv[1])
from tiny import tiny_experiment
import dataclasses, jax
from spatial_clap_jax.train import processes, sharding, trainer
if __name__ == "__main__":
    processes.join_processes()
    fsdp = int(sys.argv[4])
    ours = dataclasses.replace(
        tiny_experiment(), steps=3, log_every=1, mesh=sharding.MeshShape(fsdp=fsdp)
    )
    trainer.train(ours, sys.argv[2], sys.argv[3], progress=False)
"""


@pytest.mark.slow
def test_one_device_equals_eight_with_split_parameters(tiny_scenes, tmp_path):
    for devices in (1, 8):
        fsdp = min(devices, 4)
        arguments = (Path(__file__).parents[1], tiny_scenes, tmp_path / str(devices), fsdp)
        flag = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [sys.executable, "-c", DEVICES, *map(str, arguments)],
            check=True,
            env={**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"},
        )
    one, eight = (read_metrics(tmp_path / str(n)) for n in (1, 8))
    for left, right in zip(one, eight, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-4)


CONFIG = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
from tiny import tiny_experiment

def get_config(size):
    tiny = tiny_experiment()
    run = dataclasses.replace(tiny, steps={steps}, log_every=1, checkpoint_every=3, keep=5)
    return dataclasses.replace(run, {changes})
"""
ROOT = Path(__file__).parents[2]


def launch(
    folder: Path,
    scenes: Path,
    workdir: Path,
    processes: int,
    devices: int,
    steps: int,
    changes: str = "",
    before: str = "",
):
    """A training by the local script, as a user would start it; `before` runs in each process."""
    config = folder / f"config_{steps}.py"
    text = CONFIG.format(tests=str(ROOT / "tests"), steps=steps, changes=changes)
    config.write_text(before + text, encoding="utf-8")
    arguments = ("train", config, "--data", scenes, "--workdir", workdir)
    return subprocess.Popen(
        [ROOT / "launch" / "local.sh", str(processes), *arguments],
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "DEVICES": str(devices),
            "JAX_PLATFORMS": "cpu",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_devices(tiny_scenes, tmp_path):
    """Eight devices in two processes; from their step 3 on, four in one, and eight in four."""
    straight = tmp_path / "2x4"
    started = launch(tmp_path, tiny_scenes, straight, 2, 4, steps=6)
    out, err = started.communicate()
    assert started.returncode == 0, err
    # One process speaks for all.
    assert out.count("trained to step 6") == 1
    assert "2 processes" in err
    whole = read_metrics(straight)
    for processes, devices in ((1, 4), (4, 2)):
        workdir = tmp_path / f"{processes}x{devices}"
        shutil.copytree(straight, workdir)
        shutil.rmtree(workdir / "checkpoints" / "6")
        started = launch(tmp_path, tiny_scenes, workdir, processes, devices, steps=6)
        _, err = started.communicate()
        assert started.returncode == 0, err
        assert "from step 3" in err
        rows = read_metrics(workdir)
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        for ours, theirs in zip(rows[3:], whole[3:], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        ours, theirs = arrays_of(workdir), arrays_of(straight)
        for name, value in theirs.items():
            # A softmax has no slope along this one: Adam moves it by rounding alone.
            if "score']['bias" not in name:
                np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_of_four_devices_train_as_one_of_eight(tiny_scenes, tmp_path):
    losses = {}
    for processes, devices in ((1, 8), (2, 4)):
        workdir = tmp_path / f"{processes}x{devices}"
        started = launch(
            tmp_path, tiny_scenes, workdir, processes, devices, 50, changes="checkpoint_every=50"
        )
        _, err = started.communicate()
        assert started.returncode == 0, err
        losses[processes] = [row["loss"] for row in read_metrics(workdir)]
    assert len(losses[1]) == 50
    # It learns, so that a difference would have grown.
    assert np.mean(losses[1][-5:]) < np.mean(losses[1][:5])
    np.testing.assert_allclose(losses[2], losses[1], rtol=0, atol=1e-6)


SLOW_INPUT = """
import os, time
from spatial_clap_jax.train import sharding

if os.environ["JAX_PROCESS_ID"] == "1":
    placed = sharding.put_batch
    sharding.put_batch = lambda *given: (time.sleep(0.3), placed(*given))[1]
"""


@pytest.mark.slow
def test_waiting_for_one_process_input_is_told_by_the_first(tiny_scenes, tmp_path):
    workdir = tmp_path / "run"
    started = launch(tmp_path, tiny_scenes, workdir, 2, 1, steps=12, before=SLOW_INPUT)
    _, err = started.communicate()
    assert started.returncode == 0, err
    assert np.median([row["data_wait_share"] for row in read_metrics(workdir)]) > 0.5
    assert "of the time for data: " in err


@pytest.mark.slow
def test_processes_agree_whether_the_last_step_is_evaluated(tiny_scenes, tmp_path):
    """Process 0 alone has the log that tells it, and all must take part."""
    # Long enough for the captions of the validation split, which are not cut.
    text = "dataclasses.replace(tiny.model.text, max_tokens=64)"
    model = f"evaluate_every=4, model=dataclasses.replace(tiny.model, text={text})"
    for _ in range(2):
        started = launch(tmp_path, tiny_scenes, tmp_path / "run", 2, 1, 4, changes=model)
        try:
            _, err = started.communicate(timeout=240)
        finally:
            started.terminate()
        assert started.returncode == 0, err
    scored = [row["step"] for row in read_metrics(tmp_path / "run") if "loss" not in row]
    assert scored == [4]


@pytest.mark.slow
def test_a_signal_to_one_process_saves_the_same_step_in_all(tiny_scenes, tmp_path):
    workdir = tmp_path / "run"
    started = launch(tmp_path, tiny_scenes, workdir, 2, 1, steps=100_000)
    assert started.stderr is not None
    for line in started.stderr:
        if "step 2/" in line:
            break
    second = [pid for pid, parent in process_parents() if parent == started.pid]
    second = [pid for pid in second if "JAX_PROCESS_ID=1" in environment_of(pid)]
    os.kill(second[0], signal.SIGTERM)
    err = started.stderr.read()
    assert started.wait(60) == 75, err
    said = {int(n) for n in re.findall(r"is saved at step (\d+) of 100000; the same command", err)}
    assert len(said) == 1, err
    assert load_params(workdir)[1] == said.pop()


def process_parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                status = (path / "stat").read_text().rpartition(")")[2].split()
                yield int(path.name), int(status[1])


def environment_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text("utf-8", "replace")
    return ""


@pytest.mark.slow
def test_the_local_script_ends_all_when_one_fails(tmp_path):
    script = ROOT / "launch" / "local.sh"
    fake = tmp_path / "python"
    # Process 1 fails at once, process 0 would wait for it for ever.
    fake.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'
        'if [ "$JAX_PROCESS_ID" = 1 ]; then echo "train: no such thing" >&2; exit 7; fi\n'
        "exec sleep 600\n",
        encoding="utf-8",
    )
    fake.chmod(0o755)
    done = subprocess.run(
        [script, "2", "train"],
        env={"JAX_PLATFORMS": "cpu", **os.environ, "PYTHON": str(fake)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7
    assert "[1] train: no such thing" in done.stderr
    wrong = subprocess.run([script, "none", "train"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("usage: launch/local.sh N COMMAND")
