"""The command line on mono clips: render, embed-text, train on sentences, evaluate with a probe."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towers_on_disk import save_bert

from spatial_clap_jax.cli import main
from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.data.sentences import Sentences, captions_of
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.inference import load
from spatial_clap_jax.stored import flatten, read_trained
from spatial_clap_jax.train import sharding, trainer
from spatial_clap_jax.train.experiment import load_config
from spatial_clap_jax.train.fitting import fitted_to_data

pytestmark = pytest.mark.slow

pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")

CLIPS = """
from dataclasses import replace
from spatial_clap_jax.acoustics.receivers import Mono
from spatial_clap_jax.data.scenes import GroupCounts, SceneRecipe
from spatial_clap_jax.data.sources import SourceOptions

def get_config(size):
    return SceneRecipe(
        name="tiny_clips",
        duration_s=0.5,
        receiver=Mono(),
        group_counts=GroupCounts(*(0,) * 9, train_k0=-1, validation_k0=-1, test_k0=-1),
        sources=SourceOptions(synthetic_clips=(2, 1, 1)),
    )
"""
MODEL = """
from spatial_clap_jax.systems.m2d_clap import CachedSentences
from tiny import tiny_m2d

def get_config(size):
    return tiny_m2d(text=CachedSentences(16), classes=None, active_level_db=-30.0)
"""
RECALLS = {f"{way}_r{at}/plain" for way in ("t2a", "a2t") for at in (1, 5, 10)}
PROBED = {"probe/plain", "probe_map/plain"}
HEADED = {"labels/plain", "labels_map/plain"}


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, their sentence embeddings, and a run of two steps that learnt from both."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "clips.py").write_text(CLIPS)
    (folder / "model.py").write_text(MODEL)
    save_bert(folder / "bert")
    clips, sentences = folder / "data", folder / "sentences"
    run("render", folder / "clips.py", "--sources", "synthetic", "--out", clips, "--workers", 1)
    run("embed-text", clips, "--text-encoder", folder / "bert", "--out", sentences)
    run(*_train(folder, "run"), "--data.sentences", sentences)
    return folder


def _train(folder: Path, workdir: str) -> tuple[object, ...]:
    run_of = ("--data", folder / "data", "--workdir", folder / workdir, "--steps", 2)
    return ("train", folder / "model.py", *run_of)


def evaluated(place: Path, out: Path, *options: object) -> dict:
    run("evaluate", place / "run", "--data", place / "data", "--out", out, *options)
    return json.loads(out.read_text())


def test_everything_is_asked_in_one_command(place, tmp_path, capsys):
    options = ("--probe", "True", "--text-encoder", place / "bert")
    results = evaluated(place, tmp_path / "results.json", *options)
    assert set(results) == RECALLS | {"content/plain", "content_map/plain"} | PROBED | HEADED
    assert results["content/plain"]["chance"] == pytest.approx(1 / 12)
    assert results["probe/plain"]["n"] == 12
    said = capsys.readouterr().out
    assert "linear probe: C = " in said
    assert "content, linear probe, mAP" in said


def test_without_its_text_encoder_it_is_probed(place, tmp_path, capsys):
    results = evaluated(place, tmp_path / "results.json", "--probe", "True")
    assert set(results) == PROBED | HEADED


def test_vectors_stand_for_the_text_encoder(place, tmp_path, capsys):
    asked = tmp_path / "asked"
    made = ("--text-encoder", place / "bert", "--split", "test")
    run("embed-text", place / "data", *made, "--out", asked)
    said = refused(
        *(capsys, "evaluate", place / "run", "--data", place / "data"),
        *("--sentences", place / "sentences"),
    )
    # Captions of training clips, without the prompts.
    assert "can be heard.' and 11 more; embed the captions and prompts of the data" in said
    assert "embed-text DATA --split test" in said
    read = evaluated(place, tmp_path / "read.json", "--text-encoder", place / "bert")
    looked_up = evaluated(place, tmp_path / "up.json", "--sentences", asked, "--captions", "all")
    assert {name for name in looked_up if "_all_" in name} == {
        f"{way}_all_r{at}/plain" for way in ("t2a", "a2t") for at in (1, 5, 10)
    }
    for name, score in read.items():
        assert looked_up[name]["value"] == pytest.approx(score["value"], abs=0.1), name
    texts = ["a bell rings.", "bell can be heard."]
    by_vectors, by_encoder = (
        load(place / "run", **given).embed_text(texts)
        for given in ({"sentences": asked}, {"text_encoder": place / "bert"})
    )
    np.testing.assert_allclose(by_vectors, by_encoder, atol=1e-5)
    with pytest.raises(InputError, match=r"has no vector of 'a cow moos' and 1 more; embed the ca"):
        load(place / "run", sentences=asked).embed_text(["a cow moos", "no", "a bell rings"])
    with pytest.raises(InputError, match=r"sentences .*: a text encoder is given too; leave it ou"):
        load(place / "run", text_encoder=place / "bert", sentences=asked)
    (tmp_path / "a.csv").write_text("caption\na bell rings\n")
    said = refused(capsys, "embed-text", tmp_path / "a.csv", *made, "--out", tmp_path / "x")
    assert "--split test: " in said
    assert "is a table, whose rows all count; leave it out" in said


@pytest.mark.slow
def test_step_0_is_what_the_run_drew(place, tmp_path):
    trained = read_trained(place / "run")
    experiment = fitted_to_data(
        load_config(place / "model.py", "small"), open_scenes(place / "data")
    )
    start, _ = trainer.build_state_and_step(experiment, sharding.make_mesh())
    drawn, found = flatten(start({}).variables), flatten(read_trained(place / "run", 0).variables)
    assert drawn.keys() == found.keys()
    for name, array in drawn.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)
    moved = flatten(trained.variables)
    assert any(np.abs(moved[name] - drawn[name]).max() > 1e-4 for name in drawn)
    results = evaluated(place, tmp_path / "first.json", "--probe", "True", "--step", 0)
    assert set(results) == PROBED | HEADED


@pytest.mark.slow
def test_logits_are_those_of_the_training(place):
    model, system = load(place / "run").of_records(), read_trained(place / "run").system
    # As many frames as an input of the encoder has, as loud as they come.
    audio = 0.1 * np.random.default_rng(0).normal(size=(2, 1, 39 * 160)).astype(np.float32)
    batch = {
        "audio": jnp.asarray(audio),
        "categories": jnp.zeros((2, 12)),
        "sentence": jnp.ones((2, 16)),
    }
    variables = read_trained(place / "run").variables
    # Nothing is hidden from it in use.
    seeing = dataclasses.replace(system, config=dataclasses.replace(system.config, mask_ratio=0.0))
    rows = seeing.encode(variables, batch, jax.random.key(0), train=False).rows
    logits = model.classify(audio, 16_000)
    np.testing.assert_allclose(logits, rows["category_logits"], atol=1e-3)
    np.testing.assert_array_equal(model.classify(audio[1], 16_000), logits[1])
    assert len(model.classes) == 12
    with pytest.raises(InputError, match="has learnt no classes"):
        dataclasses.replace(model, classes=()).classify(audio, 16_000)


def test_step_0_of_a_run_that_started_from_weights(place, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    description = json.loads((place / "run" / "description.json").read_text())
    description["experiment"]["init"]["model"] = "runs/earlier"
    del description["sha256"]
    (copy / "description.json").write_text(json.dumps(description))
    (copy / "checkpoints").mkdir()
    said = refused(
        *(capsys, "evaluate", copy, "--data", place / "data"), "--probe", "True", "--step", 0
    )
    assert "this one started from --init.model runs/earlier; give that" in said


def test_embedding_again_changes_nothing(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "sentences").iterdir()}
    again = ("embed-text", place / "data", "--text-encoder", place / "bert")
    run(*again, "--out", place / "sentences")
    assert {path: path.stat().st_mtime_ns for path in (place / "sentences").iterdir()} == before
    assert "48 sentence embeddings of width 16" in capsys.readouterr().out
    save_bert(place / "other_bert", seed=1)
    said = refused(
        *(capsys, "embed-text", place / "data", "--text-encoder", place / "other_bert"),
        *("--out", place / "sentences"),
    )
    assert "holds other sentences: fingerprint is" in said
    # The same encoder elsewhere is the same.
    save_bert(place / "moved_bert")
    run(*again[:3], place / "moved_bert", "--out", place / "sentences")


def test_another_text_encoder_than_that_of_the_training_is_refused(place, tmp_path, capsys):
    """One of the same width, whose vectors would be compared with what they do not fit."""
    other, asked = tmp_path / "other", ("evaluate", place / "run", "--data", place / "data")
    save_bert(other, seed=1)
    split = ("embed-text", place / "data", "--split", "test")
    run(*split, "--text-encoder", other, "--out", tmp_path / "asked")
    named = "is of the text encoder 'other', and this model learnt from vectors of 'bert', of oth"
    for given in (("--text-encoder", other), ("--sentences", tmp_path / "asked")):
        assert named in refused(capsys, *asked, *given)
    # What is said of the training travels with an export.
    run("export", place / "run", "--out", tmp_path / "export", "--format", "safetensors")
    with pytest.raises(InputError, match=named):
        load(tmp_path / "export", text_encoder=other)
    # Of vectors that were brought nobody knows what made them.
    brought = Sentences(tmp_path / "asked").vectors(captions_of(place / "data", "test"))
    np.save(tmp_path / "brought.npy", brought)
    run(*split, "--vectors", tmp_path / "brought.npy", "--out", tmp_path / "unknown")
    assert load(place / "run", sentences=tmp_path / "unknown").sentences is not None


def test_a_run_as_text_encoder(place, tmp_path, capsys):
    said = refused(
        *(capsys, "embed-text", place / "data", "--text-encoder", place / "run"),
        *("--out", tmp_path / "s"),
    )
    assert "has no text encoder; give the one that it learnt from" in said
    assert not (tmp_path / "s").exists()


def test_what_a_training_lacks_is_said_before_it_starts(place, tmp_path, capsys):
    train = _train(place, "other")
    assert "run `spatial-clap embed-text` on the data" in refused(capsys, *train)
    few = tmp_path / "few.csv"
    few.write_text("caption\na bell rings\n")
    run("embed-text", few, "--text-encoder", place / "bert", "--out", tmp_path / "few")
    assert len(Sentences(tmp_path / "few")) == 1
    said = refused(capsys, *train, "--data.sentences", tmp_path / "few")
    assert "has no vector of" in said
    assert "and 46 more; run embed-text again" in said
    (tmp_path / "wide.py").write_text(MODEL.replace("(16)", "(20)"))
    wide = ("train", tmp_path / "wide.py", *train[2:], "--data.sentences", place / "sentences")
    assert "holds vectors of 16, but the model takes 20" in refused(capsys, *wide)
    (tmp_path / "named.py").write_text(MODEL.replace("=None", '=("bell", "wind")'))
    named = ("train", tmp_path / "named.py", *train[2:], "--data.sentences", place / "sentences")
    assert "the data have the class 'beeps' and 9 more" in refused(capsys, *named)
    assert not (place / "other").exists()


def test_probes_need_clips(place, tmp_path, capsys):
    (tmp_path / "my.csv").write_text("filename,caption,wrong_captions\n")
    said = refused(
        *(capsys, "evaluate", place / "run", "--scenes", tmp_path / "my.csv"), "--probe", "True"
    )
    assert "--probe True: needs --data with plain clips" in said
