"""The quickstart as one call, at a size that takes seconds; the shipped size is the README's."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import tiny_elsa, tiny_experiment, tiny_m2d, tiny_recipe
from tiny_seld import tiny_seld, tiny_seld_recipe

from spatial_clap_jax import quickstart as module
from spatial_clap_jax.acoustics.receivers import Foa, Mono
from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.data.scenes import GroupCounts, SceneRecipe
from spatial_clap_jax.data.seld_recipe import ClipCounts
from spatial_clap_jax.inference import load
from spatial_clap_jax.quickstart import SYSTEMS, quickstart
from spatial_clap_jax.systems.seld import SeldConfig
from spatial_clap_jax.train.experiment import Experiment, load_config


def tiny_config(name: str, size: str):
    assert size == "quickstart"
    if name == "scenes.py":
        return tiny_recipe()
    tiny = tiny_experiment()
    text = replace(tiny.model.text, max_tokens=64)
    return replace(tiny, model=replace(tiny.model, text=text))


@pytest.mark.slow
def test_everything_is_made_and_a_second_call_makes_nothing_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_config", tiny_config)
    results = quickstart("spatial_clap", tmp_path / "out")
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert {"t2a_r1/2", "direction/1", "assignment/2", "assignment/3"} <= results.keys()
    for name in ("scenes", "run", "results.json", "results.png", "exported/stablehlo"):
        assert (tmp_path / "out" / name).exists()
        assert str(tmp_path / "out" / name) in said.replace("\n", "")
    assert "chance %" in said
    assert load(tmp_path / "out" / "exported").embed_text(["a siren"]).shape == (1, 12)
    made = (tmp_path / "out" / "scenes" / "manifest.json").stat().st_mtime_ns
    assert quickstart("spatial_clap", tmp_path / "out") == results
    assert (tmp_path / "out" / "scenes" / "manifest.json").stat().st_mtime_ns == made


def tiny_elsa_config(name: str, size: str):
    assert size == "quickstart"
    if name == "elsa_scenes.py":
        return replace(
            tiny_recipe(),
            name="tiny_elsa_scenes",
            rooms=FloorRanges(t30_s=(0.15, 0.5)),
            receiver=Foa(),
            distance_range_m=(0.5, 3.0),
            elevation_range_deg=(-40.0, 40.0),
            group_counts=GroupCounts(
                *(16, 4, 0, 2, 0, 0, 8, 4, 0), train_k0=4, validation_k0=2, test_k0=4
            ),
        )
    assert name == "elsa.py"
    tiny = tiny_elsa()
    text = replace(tiny.model.text, max_tokens=128)
    data = replace(tiny.data, mixture_share=0.25, plain_share=0.25)
    return replace(tiny, model=replace(tiny.model, text=text), data=data)


@pytest.mark.slow
def test_everything_is_made_of_ambisonic_scenes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_config", tiny_elsa_config)
    out = tmp_path / "out"
    results = quickstart("elsa", out)
    said = capsys.readouterr().out
    assert json.loads((out / "results.json").read_text()) == results
    assert {"t2a_r1/1", "a2t_r1/plain", "assignment/2", "angular_error_deg/1"} <= results.keys()
    assert {"direction_4/swapped", "direction_8/1"} <= results.keys()
    for name in ("scenes", "run", "results.json", "results.png", "exported/stablehlo"):
        assert (out / name).exists()
        assert str(out / name) in said.replace("\n", "")
    assert "angular error" in said
    exported = load(out / "exported")
    assert exported.channels == 4
    assert exported.embed_text(["a siren"]).shape == (1, 12)
    assert quickstart("elsa", out) == results


def tiny_m2d_config(name: str, size: str):
    assert size == "quickstart"
    if name == "clips.py":
        return SceneRecipe(
            name="tiny_clips",
            duration_s=tiny_recipe().duration_s,
            receiver=Mono(),
            group_counts=GroupCounts(*(0,) * 9, train_k0=-1, validation_k0=-1, test_k0=-1),
            sources=tiny_recipe().sources,
        )
    assert name == "m2d_clap.py"
    return tiny_m2d(active_level_db=-30.0)


@pytest.mark.slow
def test_everything_is_made_of_clips_by_themselves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_config", tiny_m2d_config)
    out = tmp_path / "out"
    results = quickstart("m2d_clap", out)
    said = capsys.readouterr().out
    assert json.loads((out / "results.json").read_text()) == results
    assert {"t2a_r1/plain", "a2t_r1/plain", "content/plain", "probe/plain"} <= results.keys()
    for name in ("scenes", "run", "results.json", "results.png", "exported/safetensors"):
        assert (out / name).exists()
        assert str(out / name) in said.replace("\n", "")
    assert load(out / "exported").embed_text(["a siren"]).shape == (1, 12)


def tiny_seld_config(name: str, size: str):
    assert size == "quickstart"
    if name == "seld_scenes.py":
        return replace(
            tiny_seld_recipe(),
            duration_s=0.5,
            clip_counts=ClipCounts(train=4, validation=2, test=2),
            event_s=(0.2, 0.4),
        )
    assert name == "seld.py"
    tiny = tiny_seld()
    return replace(tiny, model=replace(tiny.model, classes=None, duration_s=0.5), steps=2)


@pytest.mark.slow
def test_everything_is_made_of_events_with_videos(tmp_path, monkeypatch, capsys):
    pytest.importorskip("av")
    monkeypatch.setattr(module, "load_config", tiny_seld_config)
    out = tmp_path / "out"
    results = quickstart("seld", out)
    said = capsys.readouterr().out
    assert json.loads((out / "results.json").read_text()) == results
    assert {"seld_f/macro", "seld_f/micro", "seld_f_on_screen/macro"} <= results.keys()
    for name in ("scenes", "run", "results.json", "results.png", "exported/stablehlo"):
        assert (out / name).exists()
        assert str(out / name) in said.replace("\n", "")
    assert "chance %" in said
    program = (out / "exported" / "stablehlo" / "tracks.stablehlo").read_bytes()
    inputs = {"audio": np.zeros((1, 2, 12_000), np.float32)}
    inputs["frames"] = np.zeros((1, 2, 8, 16, 3), np.uint8)
    tracks = jax.export.deserialize(bytearray(program)).call(inputs)
    assert tracks.shape == (1, 5, 3, 4, 12)
    assert quickstart("seld", out) == results


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_its_configs(system):
    scenes, model, _ = SYSTEMS[system]
    recipe, experiment = load_config(scenes, "quickstart"), load_config(model, "quickstart")
    assert isinstance(experiment, Experiment)
    model = experiment.model
    length_s = model.duration_s if isinstance(model, SeldConfig) else model.window_s
    assert recipe.duration_s == length_s
