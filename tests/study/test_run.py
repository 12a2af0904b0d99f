"""The shipped study at its smallest, by the command line, and what it leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from spatial_clap_jax import cli
from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate
from spatial_clap_jax.inference import load
from spatial_clap_jax.study import Noise, run_study
from spatial_clap_jax.study import run as module
from spatial_clap_jax.study.outcomes import read_findings
from spatial_clap_jax.train.checkpoint import load_params
from spatial_clap_jax.train.description import read_description, write_description
from spatial_clap_jax.train.experiment import load_config
from spatial_clap_jax.train.interruption import Interrupted
from spatial_clap_jax.train.metrics_log import MetricsLog, read_metrics

pytestmark = pytest.mark.slow

CONFIG = "configs/studies/spatial_clap_findings.py"
FIGURES = {"scores.png", "conditions.png", "learning_curves.png", "directions.png", "map.png"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A folder with `scenes`, and the quickstart study of one seed in `study`."""
    out = tmp_path_factory.mktemp("study")
    options = {"--size": "quickstart", "--seeds": "1", "--data": str(out / "scenes")}
    options |= {"--sources": "synthetic", "--workdir": str(out / "study")}
    cli.main(["study", CONFIG, *(word for option in options.items() for word in option)])
    return out


def study():
    return load_config(CONFIG, "quickstart")


def test_results_hold_every_row_condition_and_comparison(done):
    results = json.loads((done / "study" / "results.json").read_text())
    assert list(results["rows"]) == [row.name for row in study().rows]
    for found in results["rows"].values():
        assert found["seeds"] == [0]
        assert list(found["scores"]) == list(study().changes())
        assert list(found["changes"]) == [condition.name for condition in study().conditions]
        assert {"assignment/2", "assignment/3", "direction/1", "content/1"} <= set(
            found["scores"]["test"]
        )
        for score in found["scores"]["test"].values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
            assert score["by_seed"] == [score["value"]]
    assert [(pair["better"], pair["worse"]) for pair in results["comparisons"]] == list(
        study().comparisons
    )
    assert results["missing_conditions"] == []


def test_the_table_and_all_figures_are_there(done):
    text = (done / "study" / "table.md").read_text()
    for row in study().rows:
        assert row.title in text
    assert "spacing +20 %" in text
    for name in FIGURES:
        assert (done / "study" / name).read_bytes().startswith(b"\x89PNG")


def test_a_score_is_that_of_the_training_evaluated_alone(done):
    results = json.loads((done / "study" / "results.json").read_text())
    model = load(done / "study" / "runs" / "scl" / "seed0" / "training")
    alone = evaluate(model, open_scenes(done / "scenes"), progress=False)
    for task, score in results["rows"]["scl"]["scores"]["test"].items():
        assert score["value"] == pytest.approx(alone[task]["value"])
        assert score["chance"] == pytest.approx(alone[task]["chance"])


def test_a_second_call_trains_and_tests_nothing(done, monkeypatch):
    def never(*_, **__):
        raise AssertionError("was called")

    monkeypatch.setattr(module, "train", never)
    monkeypatch.setattr(module, "evaluate_in_detail", never)
    before = json.loads((done / "study" / "results.json").read_text())
    found = run_study(
        study(),
        done / "scenes",
        done / "study",
        seeds=1,
        sources="synthetic",
        progress=False,
    )
    assert found == before


def test_a_lost_test_is_made_again_alike(done, tmp_path):
    shutil.copytree(done / "study", tmp_path / "study")
    folder = tmp_path / "study" / "runs" / "no-scl" / "seed0"
    before = read_findings(folder, None)
    (folder / "tests.npz").unlink()
    run_study(
        study(), done / "scenes", tmp_path / "study", seeds=1, rows=["no-scl"], progress=False
    )
    assert not list((tmp_path / "study").glob(".*"))
    after = read_findings(folder, None)
    assert after.keys() == before.keys()
    for condition, test in before.items():
        for task, outcome in test.outcomes.items():
            again = after[condition].outcomes[task]
            np.testing.assert_array_equal(again.hits, outcome.hits)


def test_a_study_that_was_stopped_anywhere_ends_as_one_that_was_not(done, tmp_path, monkeypatch):
    """Amid the training before, between the two, amid the second, and amid the tests."""
    shutil.copytree(done / "study" / "scenes", tmp_path / "study" / "scenes")
    folder = tmp_path / "study" / "runs" / "scl" / "seed0"
    write, trains, evaluates = MetricsLog.write, module.train, module.evaluate_in_detail

    def run():
        run_study(
            study(), done / "scenes", tmp_path / "study", seeds=1, rows=["scl"], progress=False
        )

    def signalled(step):
        def writes(self, at, row):
            write(self, at, row)
            if at == step:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)

        return writes

    def between(experiment, data, workdir, **options):
        if workdir.name == "training":
            signal.raise_signal(signal.SIGINT)
        return trains(experiment, data, workdir, **options)

    def tested(*args, **options):
        if (folder / "tests.npz").exists():
            signal.raise_signal(signal.SIGINT)
        return evaluates(*args, **options)

    for stop, error in (
        ((MetricsLog, "write", signalled(4)), "before is saved at step 4 of 6"),
        ((module, "train", between), ""),
        ((MetricsLog, "write", signalled(8)), "training is saved at step 8 of 12"),
        ((module, "evaluate_in_detail", tested), ""),
    ):
        monkeypatch.setattr(*stop)
        with pytest.raises(Interrupted if error else KeyboardInterrupt, match=error or None):
            run()
        monkeypatch.undo()
    assert list(read_findings(folder, None)) == ["test"]
    run()
    straight = done / "study" / "runs" / "scl" / "seed0"
    for stage in ("before", "training"):
        params, step = load_params(folder / stage)
        expected, last = load_params(straight / stage)
        assert step == last
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        losses = [[row["loss"] for row in read_metrics(one / stage)] for one in (folder, straight)]
        assert losses[0] == losses[1]
    found, expected = read_findings(folder, None), read_findings(straight, None)
    assert found.keys() == expected.keys()
    for condition, test in expected.items():
        for task, outcome in test.outcomes.items():
            np.testing.assert_array_equal(found[condition].outcomes[task].hits, outcome.hits)


def test_two_processes_share_a_study_by_its_rows(done, tmp_path):
    """Trained before; each tests its rows, and the last summary is of both."""
    shutil.copytree(done / "study", tmp_path / "study")
    for row in ("no-scl", "scl"):
        (tmp_path / "study" / "runs" / row / "seed0" / "tests.npz").unlink()
    options = {"--size": "quickstart", "--seeds": "1", "--data": str(done / "scenes")}
    options |= {"--sources": "synthetic", "--workdir": str(tmp_path / "study")}
    words = [word for option in options.items() for word in option]
    command = [sys.executable, "-m", "spatial_clap_jax", "study", CONFIG, *words, "--rows"]
    started = [
        subprocess.Popen([*command, row], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for row in ("no-scl", "scl")
    ]
    for process in started:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    both, alone = (
        json.loads((folder / "study" / "results.json").read_text()) for folder in (tmp_path, done)
    )
    assert both == alone
    assert not list((tmp_path / "study").glob(".*"))


def test_a_training_that_began_goes_on_in_a_study_that_was_moved(done, tmp_path):
    """Without the training before it, whose weights it has taken."""
    shutil.copytree(done / "study", tmp_path / "moved")
    folder = tmp_path / "moved" / "runs" / "scl" / "seed0"
    (folder / "tests.npz").unlink()
    shutil.rmtree(folder / "before")
    run_study(study(), done / "scenes", tmp_path / "moved", seeds=1, rows=["scl"], progress=False)
    assert (folder / "tests.npz").is_file()
    assert not (folder / "before").exists()


def test_a_training_that_began_from_nothing_is_no_second_one(done, tmp_path):
    shutil.copytree(done / "study", tmp_path / "study")
    folder = tmp_path / "study" / "runs" / "scl" / "seed0"
    (folder / "tests.npz").unlink()
    told = read_description(folder / "training")
    told["experiment"]["init"]["model"] = None
    write_description(folder / "training", told)
    with pytest.raises(InputError, match=r"training: began from nothing, and the study would have"):
        run_study(study(), done / "scenes", tmp_path / "study", seeds=1, rows=["scl"])


def test_other_clips_are_refused_before_anything_is_rendered(done, tmp_path):
    csv = tmp_path / "other.csv"
    csv.write_text("filename,category,fold\na.wav,dog,1\nb.wav,rain,2\nc.wav,cat,3\n")
    with pytest.raises(InputError, match=r"other\.csv: .*scenes was rendered from other clips"):
        run_study(study(), done / "scenes", tmp_path / "study", seeds=1, sources=str(csv))
    assert not (tmp_path / "study").exists()


def test_a_condition_that_means_something_else_now_is_tested_again(done, tmp_path):
    shutil.copytree(done / "study", tmp_path / "study")
    conditions = tuple(
        replace(c, snr_db=-30.0) if isinstance(c, Noise) else c for c in study().conditions
    )
    before = read_findings(tmp_path / "study" / "runs" / "scl" / "seed0", None)
    run_study(
        replace(study(), conditions=conditions),
        done / "scenes",
        tmp_path / "study",
        seeds=1,
        rows=["scl"],
        sources="synthetic",
        progress=False,
    )
    after = read_findings(tmp_path / "study" / "runs" / "scl" / "seed0", None)
    for name, test in before.items():
        assert (after[name].changes == test.changes) == (name != "noise-10")
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert "noise-10" in results["rows"]["scl"]["scores"]
    assert "noise-10" not in results["rows"]["no-scl"]["scores"]


def test_files_that_are_not_the_studys_are_not_written_over(done, tmp_path):
    def refused(match):
        with pytest.raises(InputError, match=match):
            run_study(study(), done / "scenes", tmp_path, seeds=1, progress=False)

    (tmp_path / "map.png").write_bytes(b"mine")
    refused(r"map\.png: is not of this study, and would be written over; take another --workdir")
    (tmp_path / "map.png").unlink()
    for text in ('{"assignment/2": 1}', '{"study": "another"}', "[", ""):
        (tmp_path / "results.json").write_text(text)
        refused(r"results\.json: holds no results of the study spatial_clap_findings")
        assert (tmp_path / "results.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_rows_of_other_settings_are_not_compared_with_those_of_today(done, tmp_path):
    """Also where they are not asked for, and before any training."""
    shutil.copytree(done / "study", tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "runs" / "scl")
    longer = tuple(
        replace(row, experiment=replace(row.experiment, steps=13)) for row in study().rows
    )
    with pytest.raises(
        InputError, match=r"no-scl.seed0.tests\.npz: tells of a training with other"
    ):
        run_study(
            replace(study(), rows=longer),
            done / "scenes",
            tmp_path / "study",
            seeds=1,
            rows=["scl"],
            progress=False,
        )
    assert not (tmp_path / "study" / "runs" / "scl").exists()


def test_a_training_that_began_otherwise_does_not_go_on(done, tmp_path):
    """Its first stage is not looked at again once the second has begun."""
    shutil.copytree(done / "study", tmp_path / "study")
    (tmp_path / "study" / "runs" / "scl" / "seed0" / "tests.npz").unlink()
    rows = tuple(
        replace(row, before=replace(row.before, ema_decay=0.5)) if row.name == "scl" else row
        for row in study().rows
    )
    with pytest.raises(
        InputError, match=r"identity\.json: tells of a training with other settings"
    ):
        run_study(
            replace(study(), rows=rows),
            done / "scenes",
            tmp_path / "study",
            seeds=1,
            rows=["scl"],
            progress=False,
        )


def test_tests_without_their_trainings_are_compared_all_the_same(done, tmp_path):
    """As they are kept beside the findings, for others to go on from."""
    for path in (done / "study" / "runs").glob("*/seed0/tests.npz"):
        copy = tmp_path / "study" / path.relative_to(done / "study")
        copy.parent.mkdir(parents=True)
        shutil.copy(path, copy)
    found = run_study(
        study(), done / "scenes", tmp_path / "study", seeds=1, sources="synthetic", progress=False
    )
    assert found == json.loads((done / "study" / "results.json").read_text())
    drawn = {path.name for path in (tmp_path / "study").glob("*.png")}
    assert drawn == FIGURES - {"learning_curves.png"}


def test_a_folder_that_is_no_seed_is_left_alone(done, tmp_path):
    shutil.copytree(done / "study", tmp_path / "study")
    runs = tmp_path / "study" / "runs" / "scl"
    shutil.copytree(runs / "seed0", runs / "seed0 (copy)")
    found = run_study(study(), done / "scenes", tmp_path / "study", seeds=1, progress=False)
    assert found["rows"]["scl"]["seeds"] == [0]


def test_other_settings_in_the_same_folder_are_refused(done):
    rows = tuple(replace(row, experiment=replace(row.experiment, steps=13)) for row in study().rows)
    with pytest.raises(InputError, match=r"tests\.npz: tells of a training with other settings"):
        run_study(
            replace(study(), rows=rows), done / "scenes", done / "study", seeds=1, progress=False
        )


def test_a_damaged_file_of_tests_is_named(done, tmp_path):
    shutil.copytree(done / "study" / "runs" / "scl", tmp_path / "runs" / "scl")
    path = tmp_path / "runs" / "scl" / "seed0" / "tests.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"tests\.npz: is damaged .* remove it"):
        read_findings(path.parent, None)


def test_scenes_of_other_clips_or_another_recipe_are_no_condition_of_these(done, tmp_path):
    shutil.copytree(done / "study" / "scenes", tmp_path / "study" / "scenes")

    def refused(match, **changes):
        with pytest.raises(InputError, match=match):
            run_study(
                replace(study(), **changes),
                done / "scenes",
                tmp_path / "study",
                seeds=1,
                progress=False,
            )

    refused("reverberant: rendered by another recipe, or from other clips", singles=3)
    path = tmp_path / "study" / "scenes" / "wider" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["source"]["fingerprint"] = "another"
    path.write_text(json.dumps(manifest))
    refused("wider: rendered by another recipe, or from other clips than the data")


def test_arguments_that_make_no_study(done, tmp_path):
    with pytest.raises(InputError, match="--seeds 0: must be at least 1"):
        run_study(study(), done / "scenes", tmp_path, seeds=0)
    with pytest.raises(
        InputError, match=r"--rows nothing: is none of the study's rows no-scl, scl"
    ):
        run_study(study(), done / "scenes", tmp_path, rows=["nothing"])
    with pytest.raises(InputError, match="gives no study"):
        cli.study_command(["configs/scenes.py", "--data", "x", "--workdir", "y"])
