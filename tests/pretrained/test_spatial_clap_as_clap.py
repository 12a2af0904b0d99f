"""`export --format hf-clap` of a Spatial-CLAP: its encoders answer in transformers."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_variables, save_tiny_run, tiny_experiment

from spatial_clap_jax import features
from spatial_clap_jax.cli import main
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import export
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.inference import load
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.stored import flatten, read_trained

TEXT = TextConfig(
    vocabulary=320,
    width=16,
    layers=1,
    heads=2,
    mlp_width=24,
    max_tokens=24,
    positions="absolute",
    position_offset=2,
    token_types=1,
    pooling="pooler",
)


def experiment(**model):
    """A tiny Spatial-CLAP of the released kind; ClapFeatureExtractor takes whole seconds only."""
    ours = tiny_experiment()
    changes = {
        "window_s": 1.0,
        "content": HtsatConfig(
            spec_size=128, mels=32, patch=4, embed_dim=8, depths=(1, 2), heads=(2, 2), window=4
        ),
        "content_mel": LogMelConfig(
            sample_rate_hz=16_000, n_fft=512, hop=160, mels=32, high_hz=8000.0
        ),
        "text": TEXT,
        "fusion_width": 12,
        **model,
    }
    return dataclasses.replace(ours, model=dataclasses.replace(ours.model, **changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spatial") / "run"
    return save_tiny_run(folder, steps=(1,), averaged=False, experiment=experiment())


@pytest.mark.slow
@pytest.mark.parity
def test_both_encoders_answer_in_transformers(run, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    export(run, tmp_path, "hf-clap")
    folder = tmp_path / "hf-clap"
    clap, info = transformers.ClapModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    ours, trained = load(run), read_trained(run)
    texts = ["a dog barks on the left side.", "rain falls"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = clap.get_text_features(tokens["input_ids"], tokens["attention_mask"])
    np.testing.assert_allclose(ours.embed_text(texts), theirs.pooler_output.numpy(), atol=2e-6)

    # Our fusion, were the spatial encoder to give zeros.
    rng = np.random.default_rng(0)
    stereo = (0.1 * rng.standard_normal((1, 2, 16_000))).astype(np.float32)
    system, variables = trained.system, trained.variables
    bound = system.module.bind(variables)
    log_mel = features.log_mel(jnp.asarray(stereo.mean(axis=1)), system.config.content_mel)
    content = np.asarray(bound.content(log_mel, False).pooled)
    silence = np.zeros((1, system.config.spatial.width), np.float32)
    expected = np.asarray(bound.fusion(np.concatenate([content, silence], axis=-1)))
    expected = expected / np.linalg.norm(expected)
    views = extractor(stereo[0].mean(axis=0), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        heard = clap.audio_model(views["input_features"].float())
        found = clap.get_audio_features(views["input_features"].float())
    np.testing.assert_allclose(heard.pooler_output.numpy(), content, atol=1e-4)
    np.testing.assert_allclose(found.pooler_output.numpy(), expected, atol=2e-6)


def test_the_folder_is_replaced_by_its_like_only(run, tmp_path):
    first = export(run, tmp_path, "hf-clap")
    assert export(run, tmp_path, "hf-clap") == first
    note = tmp_path / "hf-clap" / "notes.txt"
    note.write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt beside an earlier export"):
        export(run, tmp_path, "hf-clap")
    assert note.read_text() == "mine"


def test_the_card_says_that_place_is_lost(run, tmp_path):
    export(run, tmp_path, "hf-clap")
    card = (tmp_path / "hf-clap" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "place is lost" in card
    with pytest.raises(InputError, match="holds neither a run"):
        load(tmp_path / "hf-clap")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": tiny_experiment().model.content}, r"content encoder is CnnConfig, Clap"),
        ({"fusion_width": 16}, r"projections are 16 wide inside and give 12"),
        ({"text": dataclasses.replace(TEXT, position_offset=0)}, r"counts positions from 0, as"),
        ({"text": dataclasses.replace(TEXT, pooling="mean")}, r"pools by mean and has 1 token"),
        ({"window_s": 0.5}, r"takes 0\.5 s, and ClapFeatureExtractor whole seconds only"),
    ],
)
def test_what_clap_has_not_is_refused(changes, message, tmp_path, capsys):
    ours = experiment(**changes)
    run = save_tiny_run(tmp_path / "run", steps=(1,), averaged=False, experiment=ours)
    with pytest.raises(SystemExit):
        main(["export", str(run), "--out", str(tmp_path / "out"), "--format", "hf-clap"])
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_random_variables_reach_every_tensor():
    arrays = flatten(random_variables(experiment()))
    assert all(np.abs(array).min() > 0 for array in arrays.values())
