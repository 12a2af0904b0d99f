"""Scores of a training as it goes equal those of its checkpoint afterwards."""

import dataclasses

import pytest
from tiny import tiny_experiment

from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate
from spatial_clap_jax.inference import load
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train import trainer
from spatial_clap_jax.train.feeds import open_feed
from spatial_clap_jax.train.metrics_log import read_metrics
from spatial_clap_jax.validation import Validation


def experiment(**changes):
    tiny = tiny_experiment()
    assert isinstance(tiny.model, SpatialClapConfig)
    # Captions of three sources are not cut.
    model = dataclasses.replace(
        tiny.model, text=dataclasses.replace(tiny.model.text, max_tokens=64)
    )
    return dataclasses.replace(
        tiny, model=model, ema_decay=0.9, evaluate_every=2, **{"steps": 3, **changes}
    )


@pytest.mark.slow
def test_scores_in_training_are_those_of_the_checkpoint(tiny_scenes, tmp_path, capfd):
    run = tmp_path / "run"
    trainer.train(experiment(), tiny_scenes, run, validation=Validation)
    rows = [row for row in read_metrics(run) if "loss" not in row]
    # Every second step, and the last.
    assert [row["step"] for row in rows] == [2, 3]
    found = evaluate(load(run), open_scenes(tiny_scenes), "validation", progress=False)
    expected = {f"validation/{name}": score["value"] for name, score in found.items()}
    assert {"validation/direction/1", "validation/assignment/2"} <= set(expected)
    assert {name: value for name, value in rows[-1].items() if name != "step"} == pytest.approx(
        expected
    )
    told = capfd.readouterr().err
    assert "step 2: validation in" in told
    assert "assignment/2 0." in told or "assignment/2 1." in told


def test_data_without_the_split_are_refused_at_the_start(tiny_scenes):
    feed = open_feed(experiment(), tiny_scenes)
    feed.scenes = dataclasses.replace(
        feed.scenes, manifest={**feed.scenes.manifest, "groups": {"train_k1": 3}}
    )
    with pytest.raises(InputError, match=r"evaluate_every: 2, .*no split 'validation' \(train\)"):
        Validation(feed)
