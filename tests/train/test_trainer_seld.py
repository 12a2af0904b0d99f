"""SELD networks through the whole of training: from a folder of clips to a run that locates."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import soundfile
from test_trainer import arrays_of
from tiny import save_tiny_run
from tiny_seld import CLASSES, DURATION_S, RATE_HZ, tiny_seld, write_tiny_clips

from spatial_clap_jax.cli import main
from spatial_clap_jax.data.dcase import open_clips
from spatial_clap_jax.data.event_tables import read_events
from spatial_clap_jax.data.video import write_video
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate_events import PostProcessing, evaluate_events, tuned
from spatial_clap_jax.event_locator import is_locator, load_locator, trained_member
from spatial_clap_jax.export import export
from spatial_clap_jax.inference import load
from spatial_clap_jax.seld_tracks import average_outputs
from spatial_clap_jax.train import feeds, sharding, trainer
from spatial_clap_jax.train.description import read_description
from spatial_clap_jax.train.metrics_log import read_metrics
from spatial_clap_jax.validation import Validation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_tiny_clips(tmp_path_factory.mktemp("clips") / "clips")


@pytest.fixture(scope="module")
def ours():
    experiment = tiny_seld()
    return dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, classes=None), ema_decay=0.5
    )


@pytest.fixture(scope="module")
def run(ours, clips, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "seld"
    trainer.train(ours, clips, workdir, progress=False)
    return workdir


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "spatial_clap")


@pytest.fixture(scope="module")
def locator(run):
    return load_locator([run])


def test_a_run_logs_its_losses_and_knows_its_classes(run):
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        told = ("direction", "distance", "on_screen", "visible")
        parts = sum(row[f"{name}_loss"] for name in told)
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
    found = read_description(run)
    assert found["experiment"]["model"]["classes"] == list(CLASSES)
    assert found["preprocessing"] == {
        "sample_rate_hz": RATE_HZ,
        "channels": 2,
        "window_samples": round(DURATION_S * RATE_HZ),
    }


def test_a_planned_batch_of_clips_is_the_trained_one(ours, clips, run):
    feed = feeds.open_feed(ours, clips)
    batches = feed.batches(range(4))
    batch = next(batches)
    batches.close()
    planned = feeds.abstract_batch(feed.experiment, sharding.make_mesh(jax.devices()[:1]))
    assert {n: (x.shape, x.dtype) for n, x in planned.items()} == {
        n: (x.shape, x.dtype) for n, x in batch.items()
    }


def test_scores_in_training_are_those_of_the_checkpoint(ours, clips, tmp_path):
    wanted = dataclasses.replace(ours, evaluate_every=4)
    trainer.train(wanted, clips, tmp_path / "run", progress=False, validation=Validation)
    (row,) = [row for row in read_metrics(tmp_path / "run") if "loss" not in row]
    locator, opened = load_locator([tmp_path / "run"]), open_clips(clips)
    found, _ = evaluate_events(locator, opened, "validation", progress=False)
    whole = {name: score["value"] for name, score in found.items() if ":" not in name}
    assert "seld_f/macro" in whole
    scores = {name.removeprefix("validation/"): x for name, x in row.items() if name != "step"}
    assert scores == pytest.approx(whole, nan_ok=True)


def test_the_step_of_clips_compiles_once(ours, clips):
    """However many sources sound at once: targets are of one shape."""
    feed = feeds.open_feed(ours, clips)
    mesh = sharding.make_mesh(shape=ours.mesh)
    start, step = trainer.build_state_and_step(feed.experiment, mesh)
    state, losses = start({}), []
    batches = feed.batches(range(4))
    for share in (0, 1):
        batch = next(batches)
        # The second batch has two sources of the class everywhere.
        batch["targets"][:, :, 1:3] = share * batch["targets"][:, :, :1]
        batch["targets"][:, :, 0] *= 1 - share
        state, metrics = step(state, sharding.put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    batches.close()
    assert step._cache_size() == 1
    assert losses[0] != losses[1]


def test_a_resumed_run_equals_a_straight_one(ours, clips, run, tmp_path, monkeypatch):
    halted = trainer.RunCheckpoints.save

    def save_and_halt(self, step, *args, **kwargs):
        halted(self, step, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.RunCheckpoints, "save", save_and_halt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(ours, clips, tmp_path / "run", progress=False)
    monkeypatch.undo()
    trainer.train(ours, clips, tmp_path / "run", progress=False)
    resumed, straight = arrays_of(tmp_path / "run"), arrays_of(run)
    for name, value in straight.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_other_clips_are_refused(ours, clips, run, tmp_path):
    other = write_tiny_clips(tmp_path / "clips", train=4)
    with pytest.raises(InputError, match=r"dataset differs in .*splits.train \(6 there, 4 here\)"):
        trainer.train(ours, other, run, progress=False)


def test_clips_without_videos_cannot_be_looked_at(ours, tmp_path):
    deaf = write_tiny_clips(tmp_path / "clips", video=False)
    with pytest.raises(InputError, match=r"have no videos, but the model looks at them; .*looks F"):
        trainer.train(ours, deaf, tmp_path / "run", progress=False)
    model = dataclasses.replace(ours.model, duration_s=1.0)
    with pytest.raises(InputError, match=r"clips of 0.4 s at 24000 Hz, but the model takes 1 s"):
        trainer.train(
            dataclasses.replace(ours, model=model), deaf, tmp_path / "run", progress=False
        )


def test_a_network_scores_clips(locator, clips):
    folder = open_clips(clips)
    results, predictions = evaluate_events(locator, folder, progress=False)
    assert results["seld_f/macro"]["n"] == 12
    assert 0 <= results["seld_f/macro"]["value"] <= 1
    assert predictions.keys() == set(folder.splits["test"])
    chosen = tuned(locator, folder, PostProcessing(), progress=False)
    assert 0 < chosen.decoding.threshold < 1


def test_an_ensemble_is_the_mean_of_its_members(run, clips):
    folder = open_clips(clips)
    names = folder.splits["test"]
    one = load_locator([run], step=2).locate_clips(folder, names, progress=False)
    other = load_locator([run], step=4).locate_clips(folder, names, progress=False)
    twice = load_locator([run, run], step=4).locate_clips(folder, names, progress=False)
    for name in names:
        assert np.abs(one[name] - other[name]).max() > 1e-6
        np.testing.assert_allclose(twice[name], other[name], atol=1e-6)
    members = (*load_locator([run], step=2).members, *load_locator([run], step=4).members)
    both = dataclasses.replace(load_locator([run]), members=members)
    mean = both.locate_clips(folder, names, progress=False)
    np.testing.assert_allclose(
        mean[names[0]], average_outputs([one[names[0]], other[names[0]]]), atol=1e-6
    )


def test_a_long_recording_is_located_window_by_window(locator, clips, tmp_path):
    folder = open_clips(clips)
    names = folder.splits["test"][:2]
    sound = np.concatenate([folder.audio(name) for name in names], axis=1)
    path = tmp_path / "long.wav"
    soundfile.write(path, sound.T[:-1200], RATE_HZ, subtype="FLOAT")
    video = clips / "video_dev" / "dev-test-tiny" / f"{names[0]}.mp4"
    with pytest.raises(InputError, match="looks at pictures; give the video"):
        locator.locate_recording(path)
    # The second window has no pictures left.
    with pytest.raises(InputError, match=str(video)):
        locator.locate_recording(path, video)
    short = tmp_path / "short.wav"
    soundfile.write(short, folder.audio(names[0]).T, RATE_HZ, subtype="FLOAT")
    alone = locator.locate_clips(folder, names[:1], progress=False)[names[0]]
    np.testing.assert_allclose(locator.locate_recording(short, video), alone, atol=1e-5)


@pytest.mark.parametrize("length_s", [0.25, 0.4, 0.55])
def test_a_recording_need_not_fill_its_last_window(locator, tmp_path, length_s):
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.1, (round(length_s * RATE_HZ), 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, RATE_HZ, subtype="FLOAT")
    pictures = rng.integers(0, 256, (round(length_s * 20), 32, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", pictures, 20)
    tracks = locator.locate_recording(tmp_path / "a.wav", tmp_path / "a.mp4")
    assert len(tracks) == np.ceil(length_s * 10)
    # Its last picture stays on show.
    longer = np.concatenate([pictures, np.repeat(pictures[-1:], 20, axis=0)])
    write_video(tmp_path / "longer.mp4", longer, 20)
    held = locator.locate_recording(tmp_path / "a.wav", tmp_path / "longer.mp4")
    np.testing.assert_allclose(held, tracks, atol=1e-3)
    write_video(tmp_path / "short.mp4", pictures[: len(pictures) - 3], 20)
    with pytest.raises(InputError, match=f"shorter than the {length_s:.2f} s of its audio"):
        locator.locate_recording(tmp_path / "a.wav", tmp_path / "short.mp4")


def test_a_network_that_tells_no_screen_leaves_it_to_the_others(locator, clips):
    folder = open_clips(clips)
    names = folder.splits["test"]
    system = locator.members[0].system
    silent = dataclasses.replace(system, config=dataclasses.replace(system.config, on_screen=False))
    deaf = trained_member(
        "deaf", silent, silent.init(jax.random.key(0)), locator.members[0].data, 0
    )
    both = dataclasses.replace(locator, members=(deaf, *locator.members))
    alone = locator.locate_clips(folder, names, progress=False)
    mixed = both.locate_clips(folder, names, progress=False)
    for name in names:
        # The order of its tracks follows the first member.
        told = [np.sort(found[name][:, :, 3], axis=1) for found in (alone, mixed)]
        np.testing.assert_allclose(told[1], told[0], atol=1e-6)
    results, _ = evaluate_events(both, folder, progress=False)
    assert any("on_screen" in score for score in results)


def test_it_is_exported_and_used_without_the_library(run, locator, clips, tmp_path):
    folder = open_clips(clips)
    name = folder.splits["test"][0]
    wanted = locator.locate_clips(folder, [name], progress=False)[name]
    export(run, tmp_path, "stablehlo")
    program = jax.export.deserialize(
        bytearray((tmp_path / "stablehlo" / "tracks.stablehlo").read_bytes())
    )
    held = json.loads((tmp_path / "stablehlo" / "model.json").read_text())
    pictures = held["inputs"]["frames"]["shape"]
    inputs = {
        "audio": folder.audio(name)[None],
        "frames": folder.frames(name, pictures[1], tuple(pictures[2:4]))[None],
    }
    np.testing.assert_allclose(np.asarray(program.call(inputs))[0], wanted, atol=1e-4)
    card = (tmp_path / "stablehlo" / "README.md").read_text()
    assert "0 a bell, 1 a dog" in card
    export(run, tmp_path, "safetensors")
    again = load_locator([tmp_path / "safetensors"]).locate_clips(folder, [name], progress=False)
    np.testing.assert_allclose(again[name], wanted, atol=1e-6)
    with pytest.raises(InputError, match="holds an audio-text model, and this is a SELD network"):
        export(run, tmp_path, "hf-clap")


def test_it_is_no_audio_text_model(run, tmp_path, tiny_run):
    assert is_locator(run)
    assert not is_locator(tiny_run)
    with pytest.raises(InputError, match="locates events and embeds nothing; use `spatial-clap de"):
        load(run)
    export(run, tmp_path, "stablehlo")
    with pytest.raises(InputError, match="holds a SELD network"):
        load(tmp_path / "stablehlo")
    with pytest.raises(InputError, match="is a SpatialClap, no SELD network; give a run of"):
        load_locator([tiny_run])


def test_the_command_line_detects(run, clips, tmp_path, capsys):
    out, results = tmp_path / "predictions", tmp_path / "results.json"
    data = ["--data", str(clips)]
    options = ["--out", str(out), "--results", str(results), "--tune", "True"]
    main(["detect", str(run), *data, *options, "--plot", str(tmp_path / "scores.png")])
    printed = capsys.readouterr().out
    assert "chosen on validation clips" in printed
    assert "events, F 20 deg" in printed
    tables = sorted(out.glob("*.csv"))
    assert [path.stem for path in tables] == ["test_0", "test_1", "test_2"]
    read_events(tables[0], classes=2, labels=4)
    assert "seld_f/macro" in json.loads(results.read_text())
    with pytest.raises(SystemExit):
        main(["detect", str(run), *data, "--out", str(out)])
    assert "holds something; nothing is overwritten" in capsys.readouterr().err
    main(["evaluate", str(run), *data, "--split", "validation"])
    # An untrained network places no event well enough for an error of its own.
    assert "events, F, on-screen" in capsys.readouterr().out


def test_an_evaluation_set_without_labels_is_detected_in(run, clips, tmp_path, capsys):
    whole, secret = ["detect", str(run), "--data", str(clips)], tmp_path / "secret"
    options = ["--out", str(tmp_path / "told")]
    main([*whole, *options])
    for kind in ("stereo", "video"):
        shutil.copytree(clips / f"{kind}_dev" / "dev-test-tiny", secret / f"{kind}_eval" / "eval")
    shutil.copy(clips / "clips.json", secret)
    blind = ["detect", str(run), "--data", str(secret)]
    main([*blind, "--out", str(tmp_path / "untold")])
    assert "untold: 3 tables" in capsys.readouterr().out
    for path in (tmp_path / "told").iterdir():
        assert (tmp_path / "untold" / path.name).read_text() == path.read_text()
    for more, message in (
        ([], "has no folder metadata_eval, and training and scores need labels"),
        (["--out", str(tmp_path / "x"), "--tune", "True"], "has no labels, which --results, --pl"),
    ):
        with pytest.raises(SystemExit):
            main([*blind, *more])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--data", str(secret)])
    assert "training and scores need labels" in capsys.readouterr().err


def test_the_command_line_detects_in_a_recording(run, clips, tmp_path, capsys):
    audio = clips / "stereo_dev" / "dev-test-tiny" / "test_0.wav"
    video = clips / "video_dev" / "dev-test-tiny" / "test_0.mp4"
    # Low enough that an untrained network tells something.
    options = ["--decoding.threshold", "0.001", "--plot", str(tmp_path / "events.svg")]
    main(["detect", str(run), "--audio", str(audio), "--video", str(video), *options])
    printed = capsys.readouterr().out
    assert "azimuth deg, left +" in printed
    assert "a bell" in printed
    assert (
        "azimuth, deg" in (tmp_path / "events.svg").read_text()
        or (tmp_path / "events.svg").stat().st_size
    )
    with pytest.raises(SystemExit):
        main(["detect", str(run), "--audio", str(audio), "--data", str(clips)])
    assert "give either --data DIR or --audio FILE" in capsys.readouterr().err
