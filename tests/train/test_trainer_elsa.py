"""ELSA through the whole way: scenes in ambisonics, training with labels, use, export, card."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import RATE_HZ, WINDOW, tiny_elsa, tiny_experiment, tiny_recipe

from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.pipeline import train_batches
from spatial_clap_jax.data.scenes import GroupCounts
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import export
from spatial_clap_jax.inference import load
from spatial_clap_jax.systems.attributes import AttributesConfig
from spatial_clap_jax.train import feeds, sharding
from spatial_clap_jax.train.description import read_description
from spatial_clap_jax.train.experiment import InitConfig
from spatial_clap_jax.train.feeds import open_feed
from spatial_clap_jax.train.metrics_log import read_metrics
from spatial_clap_jax.train.trainer import train
from spatial_clap_jax.validation import Validation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    recipe = dataclasses.replace(
        tiny_recipe(),
        receiver=Foa(),
        rooms=FloorRanges(t30_s=(0.15, 0.5)),
        elevation_range_deg=(-40.0, 40.0),
        distance_range_m=(0.5, 3.0),
        group_counts=GroupCounts(
            **dict.fromkeys(("train_k2", "train_k3", "validation_k2", "validation_k3"), 0),
            **dict.fromkeys(("test_k2", "test_k3"), 0),
            **dict.fromkeys(("train_k1", "train_k0"), 8),
            **dict.fromkeys(("validation_k1", "test_k1", "validation_k0", "test_k0"), 2),
        ),
    )
    out = tmp_path_factory.mktemp("foa") / "scenes"
    render_scenes(recipe, "synthetic", out, workers=1, progress=False)
    return out


def branch_experiment():
    elsa = tiny_elsa()
    names = ("sample_rate_hz", "window_s", "attributes", "intensity", "intensity_scale")
    model = AttributesConfig(**{name: getattr(elsa.model, name) for name in names})
    return dataclasses.replace(elsa, name="tiny_branch", model=model, steps=1)


@pytest.fixture(scope="module")
def branch(scenes, tmp_path_factory):
    run = tmp_path_factory.mktemp("branch") / "run"
    train(branch_experiment(), scenes, run, progress=False)
    return run


@pytest.fixture(scope="module")
def run(scenes, branch, tmp_path_factory):
    elsa = tiny_elsa()
    elsa = dataclasses.replace(
        elsa,
        data=dataclasses.replace(elsa.data, plain_share=0.25),
        init=InitConfig(branch=str(branch)),
    )
    run = tmp_path_factory.mktemp("elsa") / "run"
    train(elsa, scenes, run, progress=False)
    return run


def test_scores_of_a_branch_that_reads_nothing_are_refused_at_the_start(scenes):
    pretraining = dataclasses.replace(branch_experiment(), evaluate_every=1)
    with pytest.raises(InputError, match=r"evaluate_every: 1, but this model reads no texts"):
        Validation(open_feed(pretraining, scenes))


def test_both_trainings_log_what_they_regress(branch, run):
    for folder, names in (
        (branch, {"direction_loss", "drr_loss", "t30_loss", "direction_error_deg"}),
        (run, {"direction_loss", "distance_error_m", "floor_area_error_m2", "retrieval"}),
    ):
        row = read_metrics(folder)[-1]
        assert names <= row.keys()
        assert 0 < row["direction_error_deg"] < 180


def test_a_planned_batch_is_the_trained_one(run, scenes):
    elsa = tiny_elsa()
    found = read_description(run)
    assert found["preprocessing"]["channels"] == 4
    tokenizer = Tokenizer.from_json(found["tokenizer"], found["max_tokens"])
    labels = elsa.build_system().labels
    batches = train_batches(
        open_scenes(scenes), elsa.data, tokenizer, scl=True, seed=0, labels=labels
    )
    batch = next(batches)
    batches.close()
    planned = feeds.abstract_batch(elsa, sharding.make_mesh(jax.devices()[:1]))
    assert {n: (x.shape, x.dtype) for n, x in planned.items()} == {
        n: (x.shape, x.dtype) for n, x in batch.items()
    }


def test_it_is_used_and_exported(run, tmp_path):
    model = load(run)
    field = np.random.default_rng(0).uniform(-0.3, 0.3, (4, WINDOW)).astype(np.float32)
    embedding = model.embed_audio(field, RATE_HZ)
    plain = model.embed_audio(field[:1], RATE_HZ, plain=True)
    assert np.abs(embedding - plain).max() > 1e-4
    export(run, tmp_path, "stablehlo")
    np.testing.assert_allclose(
        load(tmp_path / "stablehlo").embed_audio(field, RATE_HZ), embedding, atol=1e-4
    )
    card = (tmp_path / "stablehlo" / "README.md").read_text()
    assert "4 channels (W, Y, Z, X)" in card
    assert "ELSA (Devnani et al., arXiv 2409.11369)" in card
    assert "ahead from behind" not in card
    with pytest.raises(InputError, match=r"hf-clap: ClapModel is monaural, and of Elsa no monau"):
        export(run, tmp_path, "hf-clap")


def test_scenes_of_another_receiver_are_refused(scenes, tiny_scenes, tmp_path):
    with pytest.raises(
        InputError, match=r"--data: scenes of 2 channels, but the model takes 4; ren"
    ):
        train(tiny_elsa(), tiny_scenes, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match=r"--data: scenes of 4 channels, but the model takes 2"):
        train(tiny_experiment(), scenes, tmp_path / "run", progress=False)
