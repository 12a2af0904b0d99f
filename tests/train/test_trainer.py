"""Whole small runs: they learn, resume to the same bits, compile once, refuse what does not fit."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import FakeScenes
from tiny import RATE_HZ, WINDOW, tiny_experiment

from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.data.pipeline import train_batches
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import feeds, sharding, trainer
from spatial_clap_jax.train.checkpoint import load_params
from spatial_clap_jax.train.description import read_description
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
    return dataclasses.replace(tiny_experiment(), steps=3, log_every=1)
"""


def test_two_processes_of_the_local_script_equal_one(tiny_scenes, tmp_path):
    """Two processes of two devices each against one of four, started as a user would."""
    root = Path(__file__).parents[2]
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(tests=str(root / "tests")), encoding="utf-8")
    flags = os.environ.get("XLA_FLAGS", "")
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        arguments = ("train", config, "--data", tiny_scenes, "--workdir", workdir)
        done = subprocess.run(
            [root / "launch" / "local.sh", str(processes), *arguments],
            env={
                **os.environ,
                "PYTHON": sys.executable,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "XLA_FLAGS": flags,
                "DEVICES": str(4 // processes),
                "JAX_PLATFORMS": "cpu",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        # One process speaks for all.
        assert done.stdout.count("trained to step 3") == 1
    assert "2 processes" in done.stderr
    one, two = (read_metrics(tmp_path / str(n)) for n in (1, 2))
    for left, right in zip(one, two, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=2e-6)
    leaves = [arrays_of(tmp_path / str(n)) for n in (1, 2)]
    for name, value in leaves[0].items():
        np.testing.assert_allclose(leaves[1][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_local_script_ends_all_when_one_fails(tmp_path):
    script = Path(__file__).parents[2] / "launch" / "local.sh"
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
        env={**os.environ, "PYTHON": str(fake)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7
    assert "[1] train: no such thing" in done.stderr
    wrong = subprocess.run([script, "none", "train"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("usage: launch/local.sh N COMMAND")
