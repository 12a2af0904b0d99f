"""M2D-CLAP's stages through the whole way: clips, training, the next stage, use and export."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_m2d_stage, tiny_recipe

from spatial_clap_jax import features
from spatial_clap_jax.acoustics.receivers import Mono
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.scenes import GroupCounts, SceneRecipe
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import export
from spatial_clap_jax.inference import load
from spatial_clap_jax.stored import flatten
from spatial_clap_jax.train import trainer
from spatial_clap_jax.train.checkpoint import load_params
from spatial_clap_jax.train.description import read_description
from spatial_clap_jax.train.experiment import Experiment, InitConfig, load_config
from spatial_clap_jax.train.feeds import open_feed
from spatial_clap_jax.train.fitting import (
    fitted_to_data,
    measured_normalisation,
    training_clips,
)
from spatial_clap_jax.train.metrics_log import read_metrics
from spatial_clap_jax.train.warm_start import adopt
from spatial_clap_jax.validation import Validation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    recipe = SceneRecipe(
        name="tiny_clips",
        duration_s=tiny_recipe().duration_s,
        receiver=Mono(),
        group_counts=GroupCounts(*(0,) * 9, train_k0=8, validation_k0=2, test_k0=2),
        sources=tiny_recipe().sources,
    )
    out = tmp_path_factory.mktemp("clips") / "clips"
    render_scenes(recipe, "synthetic", out, workers=1, progress=False)
    return out


def stage(config: str, **changes) -> Experiment:
    """A shipped stage, tiny, for two steps."""
    ours = tiny_m2d_stage(config, **changes)
    return dataclasses.replace(
        ours,
        data=dataclasses.replace(ours.data, captions_per_batch=8),
        steps=2,
        log_every=1,
        checkpoint_every=1,
    )


def starting_from(experiment: Experiment, **init) -> Experiment:
    return dataclasses.replace(experiment, init=dataclasses.replace(experiment.init, **init))


def arrays_of(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    tree, _ = load_params(workdir, step, ("variables", "average", "optimizer", "step"))
    return flatten(tree)


def resumed_like(run: Path, experiment: Experiment, clips: Path, folder: Path) -> None:
    """Goes on from step 1 of a copy of a run, and expects the bits of the run."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "2")
    assert trainer.train(experiment, clips, folder, progress=False).step == 2
    ours, straight = arrays_of(folder), arrays_of(run)
    assert ours.keys() == straight.keys()
    for name, array in straight.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("m2d") / "run"
    averaged = dataclasses.replace(stage("m2d_clap"), ema_decay=0.9)
    trainer.train(averaged, clips, workdir, progress=False)
    return workdir


def test_a_resumed_run_equals_a_straight_one_bit_for_bit(run, clips, tmp_path):
    """Target, masks, crops and the measured normalisation with it."""
    first, last = arrays_of(run, 1), arrays_of(run, 2)
    targets = [name for name in last if name.startswith("variables/target/")]
    assert targets
    assert all((first[name] != last[name]).any() for name in targets)
    assert not any("target" in name for name in last if not name.startswith("variables/"))
    resumed_like(
        run, dataclasses.replace(stage("m2d_clap"), ema_decay=0.9), clips, tmp_path / "again"
    )


def test_the_normalisation_is_measured_and_stored(run, clips):
    found = read_description(run)["experiment"]["model"]["normalisation"]
    audio = [
        group.audio[0, 0] * np.float32(group.scale)
        for group in open_scenes(clips).source("train_k0")
    ]
    model = dataclasses.replace(stage("m2d_clap").model, crop_frames=None)
    levels = np.asarray(features.log_mel(jnp.stack(audio), model.mel), np.float64)
    # Of whole clips by hand; the run's is of crops of most of each.
    assert measured_normalisation([np.stack(audio)], model, 0) == pytest.approx(
        (levels.mean(), levels.std()), abs=2e-6
    )
    assert found == pytest.approx((levels.mean(), levels.std()), abs=0.5)
    assert found != pytest.approx((levels.mean(), levels.std()), abs=1e-4)
    # What is given is not measured.
    given = stage("m2d_clap")
    given = dataclasses.replace(
        given, model=dataclasses.replace(given.model, normalisation=(-1.0, 2.0))
    )
    assert fitted_to_data(given, open_scenes(clips)) == given
    with pytest.raises(
        InputError, match=r"model.normalisation: levels of the data are all the sam"
    ):
        measured_normalisation([np.zeros((1, 8000), np.float32)], model, 0)


def test_stage_1_1_takes_the_encoder_and_the_classes_of_the_data(run, clips, tmp_path):
    labels = starting_from(stage("m2d_clap_labels"), model=str(run))
    trainer.train(labels, clips, tmp_path / "labels", progress=False)
    held = read_description(tmp_path / "labels")["experiment"]["model"]
    assert held["classes"] == open_scenes(clips).manifest["categories"]
    before = read_description(run)["experiment"]["model"]
    assert held["normalisation"] == before["normalisation"]
    row = read_metrics(tmp_path / "labels")[-1]
    assert 0 < row["category_loss"] < 2
    assert 0 <= row["category_accuracy"] <= 1
    resumed_like(tmp_path / "labels", labels, clips, tmp_path / "again")


def test_the_normalisation_hears_all_of_the_data():
    heard = []

    class Counted:
        """A split of which each clip tells its number."""

        def __init__(self, count, first):
            self.count, self.first = count, first

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            heard.append(self.first + index)
            return SimpleNamespace(audio=np.zeros((1, 1, 4), np.float32), scale=1.0)

    for counts, expected in (((1000, 23), 512), ((3, 4), 7)):
        heard.clear()
        splits = {"train_k0": Counted(counts[0], 0), "train_k1": Counted(counts[1], counts[0])}
        scenes = SimpleNamespace(splits=(*splits, "test_k0"), source=splits.__getitem__)
        list(training_clips(scenes))
        assert len(set(heard)) == len(heard) == expected
        assert (heard[0], heard[-1]) == (0, sum(counts) - 1)
        # No stretch is left out.
        assert max(np.diff(heard)) <= np.ceil(sum(counts) / expected)


def test_inputs_in_use_are_as_long_as_in_training(clips, tmp_path):
    for config, frames in (("m2d_clap", 40), ("m2d_clap_labels", 51)):
        ours = stage(config)
        content = dataclasses.replace(ours.model.content, frames=48)
        wrong = dataclasses.replace(ours, model=dataclasses.replace(ours.model, content=content))
        with pytest.raises(
            InputError, match=rf"model.content.frames: 48, .* of {frames} frames; give --model.con"
        ):
            trainer.train(wrong, clips, tmp_path / config, progress=False)


def test_what_stays_as_it_was_drawn_is_said(run, clips):
    def notes(config, **init):
        feed = open_feed(starting_from(stage(config), **init), clips)
        feed.describe()
        return [note for note in feed.notes() if "drawn at random" in note]

    [frozen] = notes("m2d_clap_text", anew=())
    assert frozen == (
        "content: frozen (--optimizer.frozen) as drawn at random, so that nothing of it is ever "
        "learnt; --init.model RUN loads it"
    )
    [tuned] = notes("m2d_clap_labels")
    assert tuned.startswith("content: begins as drawn at random; --init.model RUN loads the enc")
    assert notes("m2d_clap") == notes("m2d_clap_text", model=str(run)) == []
    assert notes("m2d_clap_labels", model=str(run)) == []
    # What an encoder is loaded into, is not drawn, whatever loads it.
    assert notes("m2d_clap_text", anew=(), audio=str(run)) == []


def test_labels_are_scored_as_the_training_goes(clips, tmp_path):
    labels = dataclasses.replace(stage("m2d_clap_labels"), evaluate_every=2)
    trainer.train(labels, clips, tmp_path / "run", progress=False, validation=Validation)
    [row] = [row for row in read_metrics(tmp_path / "run") if "loss" not in row]
    assert 0 < row["validation/labels_map/plain"] <= 1
    assert row["step"] == 2
    nothing = dataclasses.replace(stage("m2d_clap", contrast_weight=0.0), evaluate_every=2)
    with pytest.raises(
        InputError, match=r"evaluate_every: 2, .* reads no texts and tells no label"
    ):
        Validation(open_feed(nothing, clips))


def test_stage_2_trains_the_text_side_alone_and_2_1_goes_on(run, clips, tmp_path):
    text = starting_from(stage("m2d_clap_text"), model=str(run))
    trainer.train(text, clips, tmp_path / "text", progress=False)
    before, after = arrays_of(run), arrays_of(tmp_path / "text")
    parts = {"content": True, "audio_projection": False, "text": False}
    for part, stays in parts.items():
        names = [name for name in after if name.startswith(f"variables/params/{part}/")]
        # It starts from the moving average of the stage before.
        averaged = [before[name.replace("variables/", "average/")] for name in names]
        same = [np.array_equal(after[name], x) for name, x in zip(names, averaged, strict=True)]
        assert names
        assert all(same) if stays else not all(same)
    rows = read_metrics(tmp_path / "text")
    # The scale starts anew, at its upper bound.
    assert rows[0]["scale"] == pytest.approx(100, rel=1e-4)
    resumed_like(tmp_path / "text", text, clips, tmp_path / "again")
    goes_on = starting_from(stage("m2d_clap_text", mask_ratio=0.0), model=str(tmp_path / "text"))
    goes_on = starting_from(goes_on, anew=())
    adopted, towers = adopt(goes_on)
    assert adopted.model.mask_ratio == 0
    for path in ("params/logit_scale", "params/text/tokens/embedding"):
        np.testing.assert_array_equal(towers.arrays[path], after[f"variables/{path}"])
    assert not towers.reports[0].left
    assert towers.tokenizer is not None


def test_a_stage_tells_what_it_takes(run):
    text = starting_from(stage("m2d_clap_text", projector="mlp"), model=str(run))
    # Another encoder than the run's, which is adopted with its weights; the length stays.
    content = dataclasses.replace(text.model.content, layers=3, frames=48)
    text = dataclasses.replace(text, model=dataclasses.replace(text.model, content=content))
    adopted, towers = adopt(text)
    held = stage("m2d_clap").model
    assert adopted.model.content == dataclasses.replace(held.content, frames=48)
    report = towers.reports[0]
    reasons = {why for _, why in report.left}
    assert reasons == {"no part of this stage", "drawn anew"}
    assert {path for path, why in report.left if why == "drawn anew"} == {"params/logit_scale"}
    assert {path.split("/")[1] for path, _ in report.made} == {"audio_projection", "logit_scale"}
    assert all(not path.startswith("params/audio_projection") for path in towers.arrays)
    wrong = starting_from(text, anew=("^vision/",))
    with pytest.raises(InputError, match=r"--init.anew: '\^vision/' matches no parameter; mend"):
        adopt(wrong)


def test_it_is_used_and_exported_without_its_target(run, tmp_path):
    model = load(run)
    audio = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 8000)).astype(np.float32)
    embedding = model.embed_audio(audio, 16_000)
    export(run, tmp_path, "safetensors")
    again = load(tmp_path / "safetensors")
    np.testing.assert_allclose(again.embed_audio(audio, 16_000), embedding, atol=1e-6)
    texts = ["a dog barks", "rain falls"]
    np.testing.assert_allclose(again.embed_text(texts), model.embed_text(texts), atol=1e-6)
    # A stage starts from an export too.
    text = starting_from(stage("m2d_clap_text"), model=str(tmp_path / "safetensors"))
    ours, straight = adopt(text)[1], adopt(starting_from(text, model=str(run)))[1]
    assert ours.arrays.keys() == {p for p in straight.arrays if not p.startswith("target/")}
    for path, array in ours.arrays.items():
        np.testing.assert_array_equal(array, straight.arrays[path], err_msg=path)
    assert not any(path.startswith("target/") for path in ours.arrays)


def test_what_cannot_be_a_stage_before_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: is neither a run nor an export of one; give t"):
        adopt(starting_from(stage("m2d_clap_text"), model=str(tmp_path / "nowhere")))
    from tiny import shared_run, tiny_elsa

    other = shared_run(tmp_path)
    with pytest.raises(InputError, match=r"--init.model .* holds a SpatialClapConfig; give a run"):
        adopt(starting_from(stage("m2d_clap_text"), model=str(other)))
    elsa = dataclasses.replace(tiny_elsa(), init=InitConfig(model=str(run)))
    with pytest.raises(InputError, match=r"--init.model .*: the model, ElsaConfig, has no stages"):
        adopt(elsa)
    sentences = dataclasses.replace(
        load_config("m2d_clap", "base"), init=InitConfig(text="bert-base-uncased")
    )
    with pytest.raises(
        InputError, match=r"--init.text bert.*: the model, M2dClapConfig, has no te"
    ):
        adopt(sentences)


def test_split_parameters_split_the_target_alike():
    ours = stage("m2d_clap")
    wide = dataclasses.replace(ours.model.content, width=128)
    model = dataclasses.replace(ours.model, content=wide, joint_width=128)
    mesh_shape = trainer.sharding.MeshShape(rules=((r"mlp/up/kernel$", "-,fsdp"),))
    ours = dataclasses.replace(ours, model=model, mesh=mesh_shape)
    mesh = trainer.sharding.make_mesh(jax.devices()[:1], mesh_shape)
    start, _ = trainer.build_state_and_step(ours, mesh)
    places = start.lower({}).out_info
    path = ("content", "block_0", "mlp", "up", "kernel")
    found = []
    for collection in ("params", "target"):
        leaf = places.variables[collection]
        for name in path:
            leaf = leaf[name]
        found.append(leaf.sharding.spec)
    assert found[0] == found[1]
    assert "fsdp" in found[0]
