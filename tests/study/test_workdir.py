"""A study and its folder, where trainings and their tests are made up."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import Trained, made_up_findings, made_up_study
from tiny import tiny_recipe

from spatial_clap_jax import cli
from spatial_clap_jax.acoustics.rooms import RoomRanges
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.errors import InputError, RunStopped
from spatial_clap_jax.mistakes import told_of
from spatial_clap_jax.study import Rendered, run_study
from spatial_clap_jax.study import run as module
from spatial_clap_jax.study.conditions import open_conditions
from spatial_clap_jax.study.outcomes import read_findings, write_findings
from spatial_clap_jax.train import run_lock

STUDY = made_up_study()


@pytest.fixture
def trained(monkeypatch) -> Trained:
    """Trainings and tests that take no time."""
    stand_in = Trained()
    stand_in.install(monkeypatch)
    return stand_in


@pytest.fixture
def few(tiny_scenes, monkeypatch):
    """A way to run a study of conditions that need no rendering, without figures."""
    monkeypatch.setattr(module, "draw_figures", lambda *_: {})
    study = replace(STUDY, conditions=STUDY.conditions[1:])

    def run(workdir, **options):
        study_of = options.pop("study", study)
        return run_study(
            study_of, tiny_scenes, workdir, **{"seeds": 1, "progress": False, **options}
        )

    return run


@pytest.mark.slow
def test_a_condition_has_no_more_scenes_than_the_data(tiny_scenes, tmp_path, trained):
    """Of 200 and 300 that are asked for there are four; rendered ones are as many, and pairs."""
    found = run_study(
        STUDY, tiny_scenes, tmp_path / "s", seeds=1, sources="synthetic", progress=False
    )
    assert found["missing_conditions"] == []
    assert open_scenes(tmp_path / "s" / "scenes" / "wider").manifest["groups"] == {
        "test_k1": 4,
        "test_k2": 4,
    }
    for row in found["rows"].values():
        assert list(row["scores"]) == ["test", "unchanged", "wider", "loud", "told"]
        assert {score["n"] for tasks in row["scores"].values() for score in tasks.values()} == {4}
        assert set(row["changes"]["wider"]) == {"assignment/2", "direction/1"}
    kept = read_findings(tmp_path / "s" / "runs" / "one" / "seed0", None)
    assert kept["unchanged"].changes == {"singles": 4, "pairs": 4}
    assert kept["wider"].changes["pairs"] == 4
    assert (
        "The first 4 scenes of one source and 4 of two" in (tmp_path / "s" / "table.md").read_text()
    )


def test_data_of_no_scenes_that_conditions_are_about(tiny_scenes, tmp_path):
    scenes = open_scenes(tiny_scenes)
    study = STUDY.held_to({"test_k3": 4})
    opened, missing = open_conditions(study, scenes, tmp_path, "synthetic", False)
    assert list(opened) == ["test"]
    assert missing == dict.fromkeys(
        ("wider", "loud", "told"), "the data have no test scenes of one source or of two"
    )
    singles = STUDY.held_to({"test_k1": 3})
    opened, _ = open_conditions(singles, scenes, tmp_path, None, False)
    assert list(opened["loud"].splits) == ["test_k1"]


def test_a_bucket_is_no_workdir(tmp_path, monkeypatch, few, trained):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="gs://bucket/x is no path of a file system; mount"):
        few("gs://bucket/x")
    assert not list(tmp_path.iterdir())


def test_a_command_without_a_config_or_with_a_bucket_is_told_what_to_give(tmp_path):
    with pytest.raises(InputError) as error:
        cli.study_command(["--data", "x"])
    given = re.search(r"give a file like (\S+) before the options", str(error.value))
    assert given
    assert Path(given[1]).is_file()
    words = [given[1], "--data", str(tmp_path / "gone"), "--workdir", "gs://bucket/x"]
    with pytest.raises(InputError, match="gs://bucket/x is no path of a file system"):
        cli.study_command(words)


def test_the_home_folder_has_a_short_name(tmp_path, monkeypatch, few, trained):
    monkeypatch.setenv("HOME", str(tmp_path))
    few("~/study")
    assert (tmp_path / "study" / "results.json").is_file()


def test_lost_results_do_not_make_a_folder_anothers(tmp_path, few, trained):
    few(tmp_path)
    before = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").unlink()
    assert (tmp_path / "table.md").exists()
    few(tmp_path)
    assert (tmp_path / "results.json").read_text() == before
    # What begun and was never tested tells it too.
    (tmp_path / "results.json").unlink()
    for path in tmp_path.glob("runs/*/seed0/tests.npz"):
        path.unlink()
    few(tmp_path, rows=["one"])
    (tmp_path / "results.json").unlink()
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(InputError, match=r"table\.md: is not of this study, and would be written"):
        few(tmp_path)


def test_a_summary_that_is_cut_short_has_renamed_its_results_first(
    tmp_path, monkeypatch, few, trained
):
    rename, renamed = Path.replace, []

    def killed(self, target):
        if Path(target).parent == tmp_path:
            renamed.append(Path(target).name)
            if len(renamed) == 2:
                raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        few(tmp_path)
    assert renamed == ["results.json", "table.md"]
    monkeypatch.undo()
    Trained().install(monkeypatch)
    few(tmp_path)
    assert (tmp_path / "table.md").is_file()


@pytest.mark.parametrize("times", [1, 99])
def test_a_summary_is_made_again_if_others_have_tested_meanwhile(
    tmp_path, tiny_scenes, monkeypatch, few, trained, times
):
    """Not for ever: whoever tests without end writes its own."""
    drawn = []
    scenes = open_scenes(tiny_scenes)

    def tests_meanwhile(*_):
        drawn.append(None)
        if len(drawn) <= times:
            seed = 5 + len(drawn)
            write_findings(
                tmp_path / "runs" / "two" / f"seed{seed}",
                module._identity(STUDY.rows[1], seed, scenes, 200),
                {"test": made_up_findings(STUDY, "test", 0.5, scenes=4)},
            )
        return {}

    few(tmp_path)
    monkeypatch.setattr(module, "draw_figures", tests_meanwhile)
    found = few(tmp_path)
    assert found == json.loads((tmp_path / "results.json").read_text())
    seeds = found["rows"]["two"]["seeds"]
    assert (len(drawn), seeds) == ((2, [0, 6]) if times == 1 else (3, [0, 6, 7]))


def test_a_training_that_fails_keeps_no_other_from_its_turn(
    tmp_path, monkeypatch, few, trained, capfd
):
    def diverges(before, experiment, data, folder, progress):
        if "one" in str(folder):
            raise RunStopped("steps 2 to 3 were not finite")
        return trained.train(before, experiment, data, folder, progress)

    monkeypatch.setattr(module, "_trained", diverges)
    with pytest.raises(
        RunStopped, match=r"made-up: 2 of 4 trainings failed, .*one, seed 0: steps 2 to 3.*seed 1"
    ) as error:
        few(tmp_path, seeds=2)
    assert told_of(error.value)[0] == 3
    err = capfd.readouterr().err
    assert "failed: one, seed 0: steps 2 to 3 were not finite" in " ".join(err.split())
    results = json.loads((tmp_path / "results.json").read_text())
    assert [found["seeds"] for found in results["rows"].values()] == [[], [0, 1]]
    # The others are done, and a later start tries those that failed alone.
    trained.install(monkeypatch)
    trained.trained.clear()
    few(tmp_path, seeds=2)
    assert [folder.parent.name for folder in trained.trained] == ["one", "one"]


def test_what_is_without_a_condition_is_told_with_its_reason(tmp_path, few, trained, capfd):
    found = few(tmp_path, study=STUDY, progress=True)
    assert found["missing_conditions"] == ["wider"]
    told = " ".join(capfd.readouterr().err.split())
    assert (
        "made-up: without wider: its scenes are not there, and --sources would render them." in told
    )


def test_a_condition_that_was_tested_is_not_missing(tmp_path, tiny_scenes, few, trained, capfd):
    """Its outcomes were kept, and its scenes were not."""
    scenes = open_scenes(tiny_scenes)
    held = STUDY.held_to(scenes.manifest["groups"])
    for row in STUDY.rows:
        tested = {name: made_up_findings(held, name, 0.5, scenes=4) for name in held.changes()}
        folder = tmp_path / "runs" / row.name / "seed0"
        write_findings(folder, module._identity(row, 0, scenes, 200), tested)
    found = few(tmp_path, study=STUDY, progress=True)
    assert found["missing_conditions"] == []
    assert "without" not in capfd.readouterr().err
    # Another seed lacks it.
    found = few(tmp_path, study=STUDY, seeds=2, progress=True)
    assert found["missing_conditions"] == ["wider"]
    assert "without wider" in capfd.readouterr().err


def test_measured_rooms_have_a_reason_of_their_own(tmp_path, tiny_scenes):
    shutil.copytree(tiny_scenes, tmp_path / "scenes")
    manifest = json.loads((tmp_path / "scenes" / "manifest.json").read_text())
    manifest["rirs"] = "of some rooms"
    (tmp_path / "scenes" / "manifest.json").write_text(json.dumps(manifest))
    for sources in (None, "synthetic"):
        opened, missing = open_conditions(
            STUDY.held_to(manifest["groups"]),
            open_scenes(tmp_path / "scenes"),
            tmp_path / "conditions",
            sources,
            False,
        )
        assert list(opened) == ["test", "unchanged", "loud", "told"]
        assert missing == {
            "wider": "the rooms of the data were measured, and no others can be rendered for them"
        }
    assert not (tmp_path / "conditions").exists()


@pytest.mark.slow
def test_a_condition_that_would_change_more_than_it_is_about_is_left_out(tmp_path):
    recipe = replace(tiny_recipe(), rooms=RoomRanges(length_m=(6.0, 7.0), absorption=(0.4, 0.5)))
    scenes = render_scenes(recipe, "synthetic", tmp_path / "data", workers=1, progress=False)
    dry, wet = RoomRanges(absorption=(0.6, 0.7)), RoomRanges((6.0, 7.0), absorption=(0.1, 0.2))
    study = made_up_study(conditions=(Rendered("dry", "", dry), Rendered("wet", "", wet)))
    opened, missing = open_conditions(
        study.held_to(scenes.manifest["groups"]), scenes, tmp_path, "synthetic", False
    )
    assert missing == {
        "dry": "the rooms of the data have length_m of their own, which it changes",
    }
    assert list(opened) == ["test", "unchanged", "wet"]


def test_data_that_are_not_there_are_rendered_from_sources(tmp_path):
    with pytest.raises(
        InputError, match=r"--data .*gone: no such folder; .* --sources to have it rendered"
    ):
        run_study(STUDY, tmp_path / "gone", tmp_path / "study")


def test_the_time_that_is_told_is_of_this_start(tmp_path, few, trained, monkeypatch, capfd):
    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "evaluate_in_detail", stops)
    with pytest.raises(KeyboardInterrupt):
        few(tmp_path, rows=["one"], progress=True)
    trained.install(monkeypatch)
    few(tmp_path, progress=True)
    told = " ".join(capfd.readouterr().err.split())
    assert (
        "row one, seed 0: trained and tested; this start, which was not the first, took 0.0 min"
        in told
    )
    assert "row two, seed 0: trained and tested in 0.0 min" in told


def test_a_map_is_kept_of_the_showcase_alone(tmp_path, few, trained):
    few(tmp_path)
    kept = {row: read_findings(tmp_path / "runs" / row / "seed0", None) for row in ("one", "two")}
    assert kept["one"]["test"].map is None
    assert kept["two"]["test"].map is not None
    assert kept["two"]["unchanged"].map is None


def test_a_map_that_was_kept_of_another_row_stays(tmp_path, tiny_scenes, few, trained):
    held = made_up_study().held_to(open_scenes(tiny_scenes).manifest["groups"])
    folder = tmp_path / "runs" / "one" / "seed0"
    identity = module._identity(STUDY.rows[0], 0, open_scenes(tiny_scenes), 200)
    write_findings(folder, identity, {"test": made_up_findings(held, "test", 0.5)})
    few(tmp_path, rows=["one"])
    kept = read_findings(folder, identity)
    assert list(kept) == ["test", "unchanged", "loud", "told"]
    assert len(kept["test"].map.audio) == 40


def test_two_starts_are_not_at_work_on_one_row_and_seed(tmp_path, few, trained, monkeypatch):
    monkeypatch.setattr(run_lock, "_PATIENCE_S", 0.0)
    with (
        run_lock.held(tmp_path / "runs" / "one" / "seed0", print),
        pytest.raises(InputError, match=r"one.seed0: a training is at work here"),
    ):
        few(tmp_path)
    assert not trained.trained
    few(tmp_path)
    # What is done is not worked on, and is nobody's to wait for.
    with run_lock.held(tmp_path / "runs" / "one" / "seed0", print):
        few(tmp_path)


def test_what_another_start_has_done_meanwhile_is_not_done_again(
    tmp_path, few, trained, monkeypatch
):
    few(tmp_path / "other")
    reads, asked = module.read_findings, []

    def reads_late(folder, identity):
        """The file of another start comes between the first look and the lock."""
        asked.append(folder)
        # Each row is looked at when all are, and before the lock.
        if len(asked) == 2:
            shutil.copytree(tmp_path / "other" / "runs", tmp_path / "runs", dirs_exist_ok=True)
        return reads(folder, identity) if len(asked) > 2 else {}

    (tmp_path / "runs" / "one" / "seed0").mkdir(parents=True)
    monkeypatch.setattr(module, "read_findings", reads_late)
    trained.trained.clear()
    few(tmp_path)
    assert not trained.trained


def test_a_claim_that_is_damaged_is_named(tmp_path, few, trained):
    few(tmp_path, rows=["one"])
    folder = tmp_path / "runs" / "one" / "seed0"
    (folder / "tests.npz").unlink()
    whole = (folder / "identity.json").read_bytes()
    for content in (whole[:40], b"\xff", b""):
        (folder / "identity.json").write_bytes(content)
        with pytest.raises(
            InputError, match=r"identity\.json: is not readable as JSON .*; remove it if the tr"
        ):
            few(tmp_path, rows=["one"])
    for content in (b"[1, 2]", b"null", b"{}", whole.replace(b'"steps": 2', b'"steps": "?"')):
        (folder / "identity.json").write_bytes(content)
        with pytest.raises(InputError, match=r"identity\.json: tells of a training with other"):
            few(tmp_path, rows=["one"])
    (folder / "identity.json").unlink()
    few(tmp_path, rows=["one"])
    assert (folder / "identity.json").read_bytes() == whole


def test_what_changes_no_result_may_be_other_than_it_was(tmp_path, few, trained):
    few(tmp_path)
    trained.trained.clear()

    def changed(**changes):
        rows = tuple(
            replace(row, experiment=replace(row.experiment, **changes)) for row in STUDY.rows
        )
        return replace(STUDY, rows=rows, conditions=STUDY.conditions[1:])

    data = replace(STUDY.rows[0].experiment.data, workers=3, prefetch=5)
    free = changed(log_every=7, checkpoint_every=9, evaluate_every=3, data=data)
    few(tmp_path, study=free)
    assert not trained.trained
    # Not only what is tested: what began goes on, too.
    for path in tmp_path.glob("runs/*/seed0/tests.npz"):
        path.unlink()
    few(tmp_path, study=free)
    assert len(trained.trained) == 2
    data = replace(data, captions_per_batch=16)
    other = changed(ema_decay=0.5, log_every=7, data=data)
    with pytest.raises(InputError) as error:
        few(tmp_path, study=other)
    told = str(error.value)
    assert "experiment.ema_decay None there, 0.5 here" in told
    assert "experiment.data.captions_per_batch 8 there, 16 here" in told
    assert "log_every" not in told
    assert "workers" not in told
