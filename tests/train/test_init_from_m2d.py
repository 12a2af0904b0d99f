"""Spatial-CLAP and ELSA start from the encoder of an M2D-CLAP, ours or a published one."""

import dataclasses

import jax
import numpy as np
import pytest
from m2d_files import NORMALISATION, WIDTH, published_2025
from safetensors.numpy import save_file
from tiny import random_variables, save_tiny_run, tiny_elsa, tiny_experiment, tiny_m2d

from spatial_clap_jax.features import M2D_LOG_MEL
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.pretrained.mapping import leaf_shapes
from spatial_clap_jax.stored import flatten
from spatial_clap_jax.train.experiment import InitConfig
from spatial_clap_jax.train.warm_start import adopt


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("m2d") / "run", experiment=tiny_m2d())


def adopted(make, source):
    return adopt(dataclasses.replace(make(), init=InitConfig(audio=str(source))))


def shapes_below_content(experiment):
    shapes = leaf_shapes(jax.eval_shape(experiment.build_system().init, jax.random.key(0)))
    return {path: shape for path, shape in shapes.items() if path.startswith("params/content/")}


@pytest.mark.parametrize("make", [tiny_experiment, tiny_elsa])
def test_a_run_gives_its_encoder_front_end_and_normalisation(make, run):
    experiment, towers = adopted(make, run)
    there = tiny_m2d().model
    model = experiment.model
    assert (model.content, model.content_mel) == (there.content, there.mel)
    assert model.content_normalisation == there.normalisation
    # The moving average of the newest checkpoint.
    average = flatten(random_variables(tiny_m2d(), 102)["params"]["content"])
    assert towers.arrays.keys() == {f"params/content/{path}" for path in average}
    for path, array in average.items():
        np.testing.assert_array_equal(towers.arrays[f"params/content/{path}"], array)
    held = {path: array.shape for path, array in towers.arrays.items()}
    assert held == shapes_below_content(experiment)


def test_a_published_encoder_does_too(tmp_path):
    save_file(published_2025(layers=1), tmp_path / "m2d.safetensors")
    experiment, towers = adopted(tiny_experiment, tmp_path / "m2d.safetensors")
    assert experiment.model.content == VitConfig(frames=992, width=WIDTH, layers=1, heads=1)
    assert experiment.model.content_mel == M2D_LOG_MEL
    assert experiment.model.content_normalisation == NORMALISATION
    held = {path: array.shape for path, array in towers.arrays.items()}
    assert held == shapes_below_content(experiment)
