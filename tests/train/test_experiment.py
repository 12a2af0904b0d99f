"""Config files build experiments; what cannot be one is refused by name."""

import dataclasses
import json
import math

import jax.numpy as jnp
import pytest
from tiny import tiny_experiment

from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.data.scenes import SceneRecipe
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import experiment
from spatial_clap_jax.train.experiment import SIZES, Experiment, compute_dtype, load_config


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "config",
    [
        *("spatial_clap", "elsa", "elsa_attributes", "m2d_clap", "m2d_clap_labels"),
        *("m2d_clap_text", "seld", "seld_crnn"),
        *("spatial_clap_labels", "spatial_clap_from_labels"),
    ],
)
def test_shipped_configs_survive_json(config, size):
    ours = load_config(f"configs/{config}.py", size)
    assert from_plain(Experiment, json.loads(json.dumps(to_plain(ours)))) == ours


@pytest.mark.parametrize("size", SIZES)
def test_scenes_fit_the_model_of_the_same_size(size):
    recipe = load_config("configs/scenes.py", size)
    model = load_config("configs/spatial_clap.py", size).model
    assert isinstance(recipe, SceneRecipe)
    assert recipe.sample_rate_hz == model.sample_rate_hz
    assert recipe.duration_s == model.window_s


@pytest.mark.parametrize("size", SIZES)
def test_clips_of_events_fit_the_network_of_the_same_size(size):
    recipe = load_config("configs/seld_scenes.py", size)
    for config in ("seld", "seld_crnn"):
        model = load_config(f"configs/{config}.py", size).model
        assert recipe.duration_s == model.duration_s
        assert (recipe.video is not None) or model.looked_at is None
        frames = model.features.frames(round(model.duration_s * model.sample_rate_hz))
        # As many cells as label frames, none left over.
        encoder = model.encoder
        pooled = (encoder.patch or (1, 1))[0] * math.prod(frames for frames, _ in encoder.pools)
        assert frames == pooled * model.labels


def test_shipped_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("spatial_clap.py", "small") == load_config("spatial_clap", "small")
    assert load_config("configs/spatial_clap.py", "small").name == "spatial_clap_small"
    with pytest.raises(InputError, match=r"mine/spatial_clap\.py: no such config"):
        load_config("mine/spatial_clap.py", "small")


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(size):\n    return size * 2\n")
    assert load_config(tmp_path / "mine.py", "small") == "smallsmall"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n", "defines no get_config"),
        ("def get_config(size)\n", "line 1: expected ':'"),
        ("def get_config(size):\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, expected):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=expected):
        load_config(tmp_path / "mine.py", "small")


def test_automatic_precision_follows_the_backend(monkeypatch):
    for backend, expected in (("cpu", jnp.float32), ("gpu", jnp.bfloat16), ("tpu", jnp.bfloat16)):
        monkeypatch.setattr(experiment.jax, "default_backend", lambda backend=backend: backend)
        assert compute_dtype("auto") == expected
    assert compute_dtype("float32") == jnp.float32
    assert dataclasses.replace(load_config("spatial_clap", "small")).precision == "auto"


def with_rivals(weight, scl, rivals):
    ours = tiny_experiment()
    return dataclasses.replace(
        ours,
        loss=dataclasses.replace(ours.loss, rival_weight=weight, scl=scl),
        data=dataclasses.replace(ours.data, rivals=rivals),
    )


def test_rivals_have_a_weight_and_a_weight_has_rivals():
    for weight, scl, rivals in ((0.0, True, False), (0.0, False, False), (0.5, True, False)):
        assert with_rivals(weight, scl, rivals).loss.rival_weight == weight
    assert with_rivals(0.5, False, True).data.rivals
    with pytest.raises(InputError, match=r"rival_weight: 0\.5 with loss\.scl False and data\.riva"):
        with_rivals(0.5, False, False)
    for scl in (True, False):
        with pytest.raises(
            InputError, match=r"rival_weight: 0\.0 .* data\.rivals True; a weight needs"
        ):
            with_rivals(0.0, scl, True)
    with pytest.raises(InputError, match=r"data\.rivals need a weight and no SCL"):
        with_rivals(0.5, True, True)
