"""The branch by itself: its loss, what it refuses, and ELSA's start from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_variables, save_tiny_run, tiny_elsa

from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import export
from spatial_clap_jax.losses.regression import normalised_attributes
from spatial_clap_jax.stored import flatten
from spatial_clap_jax.systems.attributes import AttributesConfig
from spatial_clap_jax.systems.base import reads_texts
from spatial_clap_jax.systems.elsa import ElsaConfig
from spatial_clap_jax.train.experiment import Experiment, InitConfig
from spatial_clap_jax.train.warm_start import adopt


def tiny_attributes(**changes) -> Experiment:
    elsa = tiny_elsa()
    model = elsa.model
    assert isinstance(model, ElsaConfig)
    names = ("sample_rate_hz", "window_s", "attributes", "intensity", "intensity_scale")
    branch = AttributesConfig(**{name: getattr(model, name) for name in names})
    return dataclasses.replace(elsa, model=dataclasses.replace(branch, **changes))


def test_loss_by_hand():
    system = tiny_attributes().build_system()
    target = jnp.asarray(np.r_[90.0, 0.0, 2.0, 200.0, [0.0] * 20, [0.5] * 20][None], jnp.float32)
    batch = {
        "attributes": target,
        "has_place": jnp.array([True]),
        "direction": jnp.array([[1.0, 0, 0]]),
    }
    right = normalised_attributes(target)
    loss, metrics = system.objective({"attributes": right}, {}, batch, None)
    assert float(loss) == pytest.approx(0, abs=1e-10)
    # The log compares with the batch's direction, which lies ahead here, not at the left.
    assert float(metrics["direction_error_deg"]) == pytest.approx(90, abs=1e-3)
    off, metrics = system.objective({"attributes": right.at[:, 3].add(2)}, {}, batch, None)
    assert float(off) == pytest.approx(4)
    assert float(metrics["volume_loss"]) == pytest.approx(4)


def test_it_reads_nothing():
    system = tiny_attributes().build_system()
    assert not reads_texts(system)
    with pytest.raises(InputError, match=r"have no text encoder; train ELSA from them by --init"):
        system.embed_text({}, jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("branch") / "run", experiment=tiny_attributes())


def from_branch(source, **changes) -> Experiment:
    elsa = tiny_elsa()
    model = dataclasses.replace(elsa.model, **changes)
    return dataclasses.replace(elsa, model=model, init=InitConfig(branch=str(source)))


def test_elsa_starts_from_a_run_and_from_its_export(run, tmp_path):
    # Another shape than the run's, which is adopted with its weights; dropout stays ours.
    ours = dataclasses.replace(tiny_elsa().model.attributes, channels=(3,), dropout=0.7)
    experiment = from_branch(run, attributes=ours, intensity_scale="active")
    adopted, towers = adopt(experiment)
    held = tiny_attributes().model
    assert adopted.model.attributes == dataclasses.replace(held.attributes, dropout=0.7)
    assert adopted.model.intensity_scale == held.intensity_scale
    # The moving average of the last step, which `save_tiny_run` draws by 102.
    own = {
        path: array
        for path, array in flatten(random_variables(tiny_attributes(), 102)).items()
        if "/branch/" in path
    }
    assert own.keys() == towers.arrays.keys()
    for path, array in own.items():
        np.testing.assert_array_equal(towers.arrays[path], array, err_msg=path)
    export(run, tmp_path, "safetensors")
    card = (tmp_path / "safetensors" / "README.md").read_text()
    assert "--init.branch this/folder" in card
    assert "embed_text" not in card
    again, same = adopt(from_branch(tmp_path / "safetensors"))
    assert again.model.attributes.channels == held.attributes.channels
    for path, array in own.items():
        np.testing.assert_array_equal(same.arrays[path], array, err_msg=path)
    # On a resume the checkpoint has the weights, and the run's description the shape.
    resumed, none = adopt(experiment, to_plain(adopted))
    assert resumed == adopted
    assert not none.arrays


def test_weights_land_in_elsas_variables(run):
    adopted, towers = adopt(from_branch(run))
    shapes = jax.eval_shape(adopted.build_system().init, jax.random.key(0))
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    assert {p: a.shape for p, a in towers.arrays.items()} == {
        p: shape for p, shape in paths.items() if "/branch/" in p
    }


def test_what_cannot_be_started_from_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"--init\.branch .*: the model, ElsaConfig, has no learn"):
        adopt(from_branch(run, branch="static"))
    with pytest.raises(InputError, match=r"nowhere: is neither a run nor an export of one"):
        adopt(from_branch(tmp_path / "nowhere"))
    text = dataclasses.replace(tiny_attributes(), init=InitConfig(text="x"))
    with pytest.raises(InputError, match=r"--init\.text x: the model, AttributesConfig, has no te"):
        adopt(text)
    attributes = dataclasses.replace(tiny_attributes().model.attributes, pooling="flatten")
    other = save_tiny_run(tmp_path / "flat", experiment=tiny_attributes(attributes=attributes))
    with pytest.raises(InputError, match=r"has a weight for each frame of 0\.5 s, and the model h"):
        adopt(from_branch(other, window_s=1.0))
    with pytest.raises(InputError, match=r"have no text program; take --format safetensors"):
        export(run, tmp_path, "stablehlo")
