"""Spatial-CLAP with captions starts from one that was told labels."""

import dataclasses
import json

import numpy as np
import pytest
from tiny import random_variables, save_tiny_run, tiny_experiment, tiny_m2d

from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate
from spatial_clap_jax.export import export
from spatial_clap_jax.features import LAION_CLAP_LOG_MEL
from spatial_clap_jax.inference import load
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.label_vectors import LabelsConfig
from spatial_clap_jax.models.parted import PartedCnnConfig
from spatial_clap_jax.stored import flatten
from spatial_clap_jax.train.checkpoint import load_params
from spatial_clap_jax.train.experiment import InitConfig, load_config
from spatial_clap_jax.train.optim import map_by_path
from spatial_clap_jax.train.trainer import train
from spatial_clap_jax.train.warm_start import adopt, notes_on_drawn
from spatial_clap_jax.validation import Validation


def labelled(classes: tuple[str, ...] | None = ("bell", "dog")):
    experiment = tiny_experiment()
    model = dataclasses.replace(experiment.model, text=LabelsConfig(classes))
    return dataclasses.replace(experiment, model=model)


def started_from(source, **changes):
    experiment = tiny_experiment()
    model = dataclasses.replace(experiment.model, **changes)
    return dataclasses.replace(experiment, model=model, init=InitConfig(model=str(source)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("labels") / "run", experiment=labelled())


def test_all_but_the_labels_is_taken(run):
    _, towers = adopt(started_from(run))
    average = random_variables(labelled(), 102)
    there = {
        f"{collection}/{path}": array
        for collection in ("params", "batch_stats")
        for path, array in flatten(average[collection]).items()
        if not path.startswith("labels/")
    }
    assert towers.arrays.keys() == there.keys()
    for path, array in there.items():
        np.testing.assert_array_equal(towers.arrays[path], array)
    assert {path.split("/")[1] for path in towers.arrays} >= {"content", "spatial", "fusion"}


def test_encoders_are_those_of_the_labels_with_their_front_ends(run):
    there = labelled().model
    other = dataclasses.replace(there.content_mel, mels=8)
    experiment, _ = adopt(
        started_from(
            run,
            content=CnnConfig(channels=(4,), pools=((1, 2),), width=8, heads=2),
            content_mel=other,
            spatial=PartedCnnConfig(),
            spatial_mel=other,
            spatial_planes="magnitude_phase",
            window_s=0.25,
        )
    )
    for name in ("content", "content_mel", "spatial", "spatial_mel", "spatial_planes"):
        assert getattr(experiment.model, name) == getattr(there, name)
    assert experiment.model.window_s == 0.25
    assert experiment.model.text == tiny_experiment().model.text


def test_the_bias_of_the_sigmoid_loss_goes_on(tmp_path):
    loss = dataclasses.replace(tiny_experiment().loss, kind="siglip")
    sigmoid = dataclasses.replace(labelled(), loss=loss)
    run = save_tiny_run(tmp_path / "run", experiment=sigmoid)
    _, towers = adopt(dataclasses.replace(started_from(run), loss=loss))
    bias = random_variables(sigmoid, 102)["params"]["logit_bias"]
    assert towers.arrays["params/logit_bias"] == bias


def test_what_only_a_training_knows_stays(tmp_path):
    htsat = HtsatConfig(embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    front = {"content_mel": LAION_CLAP_LOG_MEL, "window_s": 0.5}
    there = dataclasses.replace(labelled().model, content=htsat, **front)
    source = dataclasses.replace(labelled(), model=there)
    run = save_tiny_run(tmp_path / "run", experiment=source)
    dropped = dataclasses.replace(htsat, drop_path=0.3, attention_dropout=0.2)
    experiment, _ = adopt(started_from(run, content=dropped, **front))
    assert experiment.model.content == dropped


def test_slowed_parts_that_were_drawn_are_told(run):
    rules = load_config("spatial_clap_from_labels", "small").optimizer.rate_rules
    optimizer = dataclasses.replace(tiny_experiment().optimizer, rate_rules=rules)
    alone = dataclasses.replace(tiny_experiment(), optimizer=optimizer)
    (note,) = notes_on_drawn(alone, ())
    assert note.startswith("content, fusion, spatial: slowed down (--optimizer.rate-rules) though")
    assert note.endswith("--init.model RUN loads it")
    begun, towers = adopt(dataclasses.replace(started_from(run), optimizer=optimizer))
    assert notes_on_drawn(begun, towers.arrays) == []


def test_a_monaural_clap_takes_the_content_encoder_alone(run):
    experiment, towers = adopt(started_from(run, spatial=None))
    assert experiment.model.spatial is None
    parts = {path.split("/")[1] for path in towers.arrays}
    assert "content" in parts
    assert "spatial" not in parts


def test_other_systems_are_refused(run, tmp_path):
    m2d = save_tiny_run(tmp_path / "m2d", experiment=tiny_m2d())
    with pytest.raises(InputError, match=r"holds a M2dClapConfig; give a run of Spatial-CLAP"):
        adopt(started_from(m2d))
    of_m2d = dataclasses.replace(tiny_m2d(), init=InitConfig(model=str(run)))
    with pytest.raises(InputError, match=r"holds a SpatialClapConfig; give a run of M2D-CLAP"):
        adopt(of_m2d)
    with pytest.raises(InputError, match=r"training of configs/spatial_clap_labels\.py"):
        adopt(started_from(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def trained(tiny_scenes, tmp_path_factory):
    """A folder with a run told by the labels of its data, and one with captions that follows."""
    out = tmp_path_factory.mktemp("stages")
    experiment = dataclasses.replace(labelled(None), steps=1)
    train(experiment, tiny_scenes, out / "labels", progress=False)
    train(started_from(out / "labels"), tiny_scenes, out / "captions", progress=False)
    return out


@pytest.mark.slow
def test_classes_are_those_of_the_data(trained, tiny_scenes):
    told = json.loads((trained / "labels" / "description.json").read_text())
    categories = open_scenes(tiny_scenes).manifest["categories"]
    assert told["experiment"]["model"]["text"]["classes"] == categories


@pytest.mark.slow
def test_a_run_by_labels_goes_on(trained, tiny_scenes):
    experiment = dataclasses.replace(labelled(None), steps=2)
    result = train(experiment, tiny_scenes, trained / "labels", progress=False, accept=["steps"])
    assert result.step == 2


@pytest.mark.slow
def test_a_run_with_captions_begins_where_the_labels_ended(trained, tiny_scenes, tmp_path):
    still = dataclasses.replace(
        started_from(trained / "labels"),
        optimizer=dataclasses.replace(tiny_experiment().optimizer, frozen=("^content/",)),
        steps=1,
    )
    train(still, tiny_scenes, tmp_path / "still", progress=False)

    def of_content(workdir):
        arrays = {}
        trees, _ = load_params(workdir)
        params = trees["variables"]["params"]["content"]
        map_by_path(lambda path, leaf: arrays.update({path: leaf}), params)
        return arrays

    before, after = of_content(trained / "labels"), of_content(tmp_path / "still")
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array)


@pytest.mark.slow
def test_what_was_told_labels_is_not_asked_of_texts(trained, tiny_scenes, tmp_path):
    model, scenes = load(trained / "labels"), open_scenes(tiny_scenes)
    with pytest.raises(InputError, match="reads no texts, so that nothing can be told of the sce"):
        evaluate(model, scenes, progress=False)
    asked = dataclasses.replace(labelled(None), evaluate_every=1)
    with pytest.raises(InputError, match="evaluate_every: 1, but this model reads no texts"):
        train(asked, tiny_scenes, tmp_path / "asked", progress=False, validation=Validation)


@pytest.mark.slow
def test_a_run_that_took_all_of_another_goes_on(tiny_scenes, trained, tmp_path):
    wider = dataclasses.replace(tiny_experiment().model.text, width=32)
    there = dataclasses.replace(tiny_experiment().model, text=wider, projected="tokens")
    source = dataclasses.replace(tiny_experiment(), model=there, steps=1)
    train(source, tiny_scenes, tmp_path / "first", progress=False)
    second = started_from(tmp_path / "first")
    train(dataclasses.replace(second, steps=1), tiny_scenes, tmp_path / "second", progress=False)
    told = json.loads((tmp_path / "second" / "description.json").read_text())
    assert told["experiment"]["model"]["text"]["width"] == 32
    assert told["experiment"]["model"]["projected"] == "tokens"
    result = train(second, tiny_scenes, tmp_path / "second", progress=False, accept=["steps"])
    assert result.step == 2


@pytest.mark.parametrize("config", ["spatial_clap_labels", "spatial_clap_from_labels"])
@pytest.mark.parametrize("size", ["quickstart", "small", "base"])
def test_the_shipped_stages_fit_each_other(config, size):
    experiment, plain = load_config(config, size), load_config("spatial_clap", size)
    changed = {"text": plain.model.text} if "from" not in config else {}
    assert dataclasses.replace(experiment.model, **changed) == plain.model
    assert experiment.data == plain.data


@pytest.mark.slow
def test_what_was_told_labels_goes_into_files_for_a_training_alone(trained, tmp_path):
    for format in ("stablehlo", "hf-clap"):
        with pytest.raises(InputError, match="told labels and has no text side; take --format saf"):
            export(trained / "labels", tmp_path, format)
    export(trained / "labels", tmp_path, "safetensors")
    card = (tmp_path / "safetensors" / "README.md").read_text()
    assert "it reads no texts" in card
    assert "spatial_clap_from_labels.py" in card
    _, towers = adopt(started_from(tmp_path / "safetensors"))
    _, of_run = adopt(started_from(trained / "labels"))
    assert towers.arrays.keys() == of_run.arrays.keys()
    for path, array in of_run.arrays.items():
        np.testing.assert_array_equal(towers.arrays[path], array)
