"""Runs that start from pretrained encoders: their shape for the experiment, their weights."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_experiment
from towers_on_disk import TEXT, random_arrays, save_bert

from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import write_model
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.inference import load
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.pretrained.mapping import leaf_shapes, nested
from spatial_clap_jax.stored import TrainedModel, flatten
from spatial_clap_jax.systems.clap import ClapConfig
from spatial_clap_jax.train import trainer
from spatial_clap_jax.train.checkpoint import load_params
from spatial_clap_jax.train.description import read_description
from spatial_clap_jax.train.experiment import Experiment, InitConfig
from spatial_clap_jax.train.warm_start import adopt

FROZEN = (r"^text/",)


def experiment(**init):
    ours = tiny_experiment()
    return dataclasses.replace(
        ours,
        init=InitConfig(**init),
        optimizer=dataclasses.replace(ours.optimizer, frozen=FROZEN if "text" in init else ()),
        model=dataclasses.replace(
            ours.model, text=dataclasses.replace(ours.model.text, dropout=0.3)
        ),
    )


def text_of(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    tree, _ = load_params(workdir, step, ("variables",))
    return flatten(tree["variables"]["params"]["text"])


def _printed(capsys) -> str:
    """All that was said, lines that the console broke joined again."""
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers") / "bert"
    return folder, save_bert(folder)


def test_a_tower_with_a_pooler_has_no_tokens_to_be_averaged(bert):
    ours = experiment(text=str(bert[0]))
    averaging = dataclasses.replace(ours.model, projected="tokens")
    adopted, _ = adopt(dataclasses.replace(ours, model=averaging))
    assert (adopted.model.text.pooling, adopted.model.projected) == ("pooler", "text")


@pytest.mark.slow
def test_a_text_tower_gives_the_run_its_shape_tokenizer_and_weights(
    bert, tiny_scenes, tmp_path, capsys
):
    source, arrays = tmp_path / "bert", bert[1]
    shutil.copytree(bert[0], source)
    run, ours = tmp_path / "run", experiment(text=str(source))
    trainer.train(dataclasses.replace(ours, steps=1), tiny_scenes, run / "one")
    held = read_description(run / "one")
    text = held["experiment"]["model"]["text"]
    # Shape and habits are the tower's; dropout and length stay the experiment's.
    assert (text["width"], text["layers"], text["pooling"]) == (TEXT.width, 1, "pooler")
    assert (text["dropout"], text["max_tokens"]) == (0.3, ours.model.text.max_tokens)
    assert held["tokenizer"] == Tokenizer.from_folder(source, 24).to_json()
    printed = _printed(capsys)
    assert f"{source}: {len(arrays)} arrays of" in printed
    assert "positions of longer texts" in printed
    # Frozen, it is bit for bit what the file holds, but for the rows of longer texts.
    for path, array in text_of(run / "one").items():
        expected = arrays[f"params/{path}"]
        rows = len(array) if path == "positions/embedding" else len(expected)
        np.testing.assert_array_equal(array, expected[:rows])
    # What is loaded is averaged too, and the run embeds.
    assert np.isfinite(load(run / "one").embed_text(["a dog barks"])).all()


@pytest.mark.slow
def test_a_resumed_run_needs_its_sources_no_more(bert, tiny_scenes, tmp_path):
    source = tmp_path / "bert"
    shutil.copytree(bert[0], source)
    ours = experiment(text=str(source))
    straight = tmp_path / "straight"
    trainer.train(ours, tiny_scenes, straight, progress=False)
    resumed = tmp_path / "resumed"
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "2")
    shutil.rmtree(source)
    assert trainer.train(ours, tiny_scenes, resumed, progress=False).step == 2
    one, other = (load_params(run, 2, ("variables",))[0] for run in (straight, resumed))
    one, other = flatten(one), flatten(other)
    for path, array in one.items():
        np.testing.assert_array_equal(other[path], array, err_msg=path)
    verbose = dataclasses.replace(ours, init=dataclasses.replace(ours.init, verbose=True))
    assert trainer.train(verbose, tiny_scenes, resumed, progress=False).step == 2
    with pytest.raises(InputError, match=r"holds a run that differs: init\.text '.*' there, None"):
        trainer.train(experiment(), tiny_scenes, resumed, progress=False)


@pytest.mark.slow
def test_every_tensor_is_told_on_request(bert, tiny_scenes, tmp_path, capsys):
    ours = experiment(text=str(bert[0]), verbose=True)
    trainer.train(dataclasses.replace(ours, steps=1), tiny_scenes, tmp_path / "run")
    printed = _printed(capsys)
    for path in bert[1]:
        assert f"{path} [" in printed
    assert "left: params/positions/embedding rows 24 to 39" in printed


HTSAT = HtsatConfig(
    spec_size=32, mels=16, patch=4, embed_dim=8, depths=(1, 1), heads=(2, 2), window=4
)
MEL = LogMelConfig(sample_rate_hz=16_000, n_fft=256, hop=160, mels=16, high_hz=8000.0)


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    """An exported CLAP of ours; its folder, and its variables by path."""
    folder = tmp_path_factory.mktemp("towers") / "clap"
    shape = ClapConfig(
        sample_rate_hz=16_000,
        window_s=0.3,
        content=HTSAT,
        content_mel=MEL,
        text=dataclasses.replace(TEXT, position_offset=2),
        joint_width=12,
    )
    ours = Experiment(name="clap", model=shape)
    system = ours.build_system()
    import jax

    shapes = leaf_shapes(jax.eval_shape(system.init, jax.random.key(0)))
    arrays = random_arrays(shapes)
    tokenizer = Tokenizer.train(["a dog barks"], TEXT.vocabulary, TEXT.max_tokens)
    model = TrainedModel(to_plain(ours), system, nested(arrays), tokenizer, 0, {})
    write_model(model, folder, "safetensors")
    return folder, arrays


@pytest.mark.slow
def test_an_audio_tower_gives_shape_front_end_weights_and_statistics(clap, tiny_scenes, tmp_path):
    ours = experiment(audio=str(clap[0]))
    # Half a second is more than this small encoder takes at a hop of 160.
    coarse = dataclasses.replace(MEL, hop=320)
    adopted, towers = adopt(ours)
    assert (adopted.model.content, adopted.model.content_mel) == (HTSAT, MEL)
    own = {path: array for path, array in clap[1].items() if path.split("/")[1] == "content"}
    assert towers.arrays.keys() == own.keys()
    assert any(path.startswith("batch_stats/") for path in own)
    ours = dataclasses.replace(
        adopted,
        init=InitConfig(),
        model=dataclasses.replace(adopted.model, content_mel=coarse, content=HTSAT),
    )
    from spatial_clap_jax.train import sharding

    start, _ = trainer.build_state_and_step(ours, sharding.make_mesh())
    variables = flatten(start(dict(towers.arrays)).variables)
    for path, array in own.items():
        np.testing.assert_array_equal(variables[path], array, err_msg=path)


def test_training_habits_stay_the_experiments(clap):
    ours = experiment(audio=str(clap[0]))
    ours = dataclasses.replace(
        ours,
        model=dataclasses.replace(
            ours.model, content=dataclasses.replace(HTSAT, embed_dim=4, drop_path=0.7)
        ),
    )
    adopted, _ = adopt(ours)
    assert adopted.model.content == dataclasses.replace(HTSAT, drop_path=0.7)


@pytest.mark.slow
def test_what_cannot_be_started_from_is_refused(bert, clap, tiny_scenes, tmp_path):
    with pytest.raises(InputError, match=r"is a text encoder; give a CLAP for the audio side"):
        adopt(experiment(audio=str(bert[0])))
    save_bert(tmp_path / "mute", tokenizer=False)
    with pytest.raises(InputError, match=r"--init\.text .*: brings no tokenizer"):
        adopt(experiment(text=str(tmp_path / "mute")))
    run = tmp_path / "run"
    trainer.train(dataclasses.replace(tiny_experiment(), steps=1), tiny_scenes, run, progress=False)
    with pytest.raises(InputError, match=r"is the folder of a run; spatial-clap export .* DIR"):
        adopt(experiment(text=str(run)))
    with pytest.raises(InputError, match=r"nowhere: there is no such file or folder"):
        adopt(experiment(text=str(tmp_path / "nowhere")))


def test_the_text_side_of_an_export_is_a_source_too(clap):
    adopted, towers = adopt(experiment(text=str(clap[0])))
    assert adopted.model.text.position_offset == 2
    table = towers.arrays["params/text/positions/embedding"]
    np.testing.assert_array_equal(table, clap[1]["params/text/positions/embedding"][:26])
