"""Towers out of what this library exports, and which reader takes which source."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import M2D_LOG_MEL, LogMelConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.pretrained import read
from spatial_clap_jax.pretrained.hf_text import text_entries, text_shapes
from spatial_clap_jax.pretrained.htsat import htsat_shapes
from spatial_clap_jax.pretrained.m2d_clap import vit_shapes
from spatial_clap_jax.pretrained.mapping import write_entries
from spatial_clap_jax.pretrained.ours import find_export
from spatial_clap_jax.pretrained.read import read_audio_tower, read_text_tower, read_weights
from spatial_clap_jax.pretrained.towers import TextTower, below

CONTENT = HtsatConfig(
    spec_size=64, mels=32, embed_dim=8, depths=(1, 1), heads=(2, 2), drop_path=0.0
)
MEL = LogMelConfig(sample_rate_hz=16_000, mels=32, high_hz=8_000.0)
TEXT = TextConfig(vocabulary=300, width=32, layers=1, heads=2, mlp_width=16, max_tokens=12)


def drawn(shapes):
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


CONTENT_ARRAYS, TEXT_ARRAYS = drawn(htsat_shapes(CONTENT)), drawn(text_shapes(TEXT))
OTHERS = drawn({"params/logit_scale": (), "params/fusion/kernel": (2, 3)})


def manifest(**changes):
    content = {"kind": "HtsatConfig", **to_plain(CONTENT)}
    text = {"kind": "TextConfig", **to_plain(TEXT)}
    model = {"content": content, "content_mel": to_plain(MEL), "text": text} | changes
    return {"experiment": {"model": {key: part for key, part in model.items() if part is not ...}}}


def export(folder: Path, arrays=None, **changes) -> Path:
    """An export as `spatial-clap export --format safetensors` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(manifest(**changes)))
    whole = {**below(CONTENT_ARRAYS, "content"), **below(TEXT_ARRAYS, "text"), **OTHERS}
    arrays = whole | (arrays or {})
    kept = {path: array for path, array in arrays.items() if array is not None}
    save_file(kept, folder / "model.safetensors")
    tokenizer = Tokenizer.train(["a dog barks"], 300, 40)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return folder


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for path, array in got.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
        assert array.shape == expected[path].shape


def test_both_towers_of_an_export(tmp_path):
    folder = export(tmp_path / "mine")
    audio, text = read_audio_tower(folder), read_text_tower(str(folder))
    assert (audio.config, audio.mel, text.config) == (CONTENT, MEL, TEXT)
    assert_same(audio.arrays, CONTENT_ARRAYS)
    assert_same(text.arrays, TEXT_ARRAYS)
    assert text.tokenizer is not None
    assert text.tokenizer.max_tokens == 12
    assert audio.report.summary.startswith(f"{folder}: {len(CONTENT_ARRAYS)} arrays of ")
    assert audio.report.summary.endswith("tensors left (other parts of the model)")
    assert len(audio.report.left) == len(TEXT_ARRAYS) + len(OTHERS)
    assert "other/params/logit_scale" in dict(text.report.left)


def test_an_export_is_found_beside_programs(tmp_path):
    assert find_export(tmp_path) is None
    assert find_export(tmp_path / "none") is None
    export(tmp_path / "safetensors")
    (tmp_path / "stablehlo").mkdir()
    (tmp_path / "stablehlo" / "model.json").write_text("{}")
    assert find_export(tmp_path) == find_export(tmp_path / "safetensors")
    assert find_export(tmp_path) == tmp_path / "safetensors"


def test_a_run_and_programs_alone_are_refused_with_the_remedy(tmp_path):
    programs, run = tmp_path / "programs", tmp_path / "run"
    (programs / "stablehlo").mkdir(parents=True)
    (programs / "stablehlo" / "model.json").write_text("{}")
    for folder in (programs, programs / "stablehlo"):
        with pytest.raises(InputError, match="holds compiled programs, out of which weights cann"):
            read_audio_tower(folder)
    export(run)
    (run / "description.json").write_text("{}")
    for reader in (read_audio_tower, read_text_tower):
        with pytest.raises(InputError, match=r"is the folder of a run; spatial-clap export .*run "):
            reader(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": {"kind": "CnnConfig", "width": 3}}, r"its content encoder is CnnConfig; only"),
        ({"content": ...}, r"its content encoder is absent; only an HTSAT or a ViT can"),
        ({"content": None}, r"its content encoder is absent; only an HTSAT or a ViT can"),
        ({"content_mel": ...}, r"describes no content_mel"),
        ({"content": {**to_plain(CONTENT), "width": 3}}, r"HtsatConfig: unknown key width"),
        (
            {"content": {**to_plain(CONTENT), "embed_dim": 16}},
            r"params/input_norm|has shape .* which does not fit",
        ),
    ],
)
def test_an_export_of_another_content_encoder_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_audio_tower(export(tmp_path, **changes))


VIT = VitConfig(width=8, layers=1, heads=2)


@pytest.mark.parametrize(
    "described",
    [
        # As M2D-CLAP describes it, and as a system with a choice of encoders.
        {"kind": "M2dClapConfig", "mel": to_plain(M2D_LOG_MEL), "normalisation": [-7.0, 4.0]},
        {"content_mel": to_plain(M2D_LOG_MEL), "content_normalisation": [-7.0, 4.0]},
    ],
    ids=["m2d", "spatial"],
)
def test_a_vit_comes_with_its_front_end_and_normalisation(tmp_path, described):
    is_m2d = "kind" in described
    content = to_plain(VIT) if is_m2d else {"kind": "VitConfig", **to_plain(VIT)}
    arrays = drawn(vit_shapes(VIT))
    target = {"target/content/norm/scale": np.ones(8, np.float32)}
    gone = dict.fromkeys(below(CONTENT_ARRAYS, "content"))
    whole = {**gone, **below(arrays, "content"), **target}
    tower = read_audio_tower(export(tmp_path, whole, content=content, **described))
    assert (tower.config, tower.mel, tower.normalisation) == (VIT, M2D_LOG_MEL, (-7.0, 4.0))
    assert_same(tower.arrays, arrays)
    assert "other/target/content/norm/scale" in dict(tower.report.left)


@pytest.mark.parametrize("text", [..., None])
def test_an_export_without_text_is_refused_for_texts(tmp_path, text):
    folder = export(tmp_path, text=text)
    with pytest.raises(InputError, match=r"has no text encoder; give the export of a model with"):
        read_text_tower(folder)
    assert read_audio_tower(folder).config == CONTENT


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"params/text/norm/scale": None}, r"lacks params/norm/scale; every weight"),
        ({"params/text/zeta": np.ones(1)}, r"has params/zeta, which this architecture does not"),
        ({"params/text/norm/scale": np.ones(3)}, r"params/norm/scale has shape \[3\], which"),
    ],
)
def test_a_damaged_export_is_refused_by_name(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        read_text_tower(export(tmp_path, arrays))


@pytest.mark.parametrize("content", ["[]", '{"experiment": {}}', '{"experiment": []}', "{"])
def test_a_damaged_description_is_refused(tmp_path, content):
    export(tmp_path)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.json: (describes no model; copy|cannot be read)"):
        read_text_tower(tmp_path)


def bert(folder: Path) -> Path:
    """A folder of BERT's, written without PyTorch."""
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 10}
    config = sizes | {"type_vocab_size": 2, "model_type": "bert"}
    shape = TextConfig(60, 16, 1, 2, 8, 10, "absolute", 0, 2, "pooler", 1e-12)
    (folder / "config.json").write_text(json.dumps(config))
    arrays = drawn(text_shapes(shape))
    save_file(write_entries(text_entries(shape, "bert."), arrays), folder / "model.safetensors")
    words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog"])
    (folder / "vocab.txt").write_text(words)
    return folder


def test_a_text_encoder_has_no_audio_side(tmp_path):
    tower = read_weights(bert(tmp_path))
    assert isinstance(tower, TextTower)
    assert tower.tokenizer is not None
    assert tower.tokenizer.max_tokens == tower.config.max_tokens == 10
    assert_same(read_text_tower(tmp_path).arrays, tower.arrays)
    assert tower.arrays["params/layer_0/attention/qkv/kernel"].shape == (16, 48)
    with pytest.raises(InputError, match=r"is a text encoder; give a CLAP for the audio side"):
        read_audio_tower(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reader"),
    [
        ("config.json", '{"model_type": "clap"}', "read_hf_clap"),
        ("config.json", '{"model_type": "roberta"}', "read_hf_text"),
        ("modules.json", "[]", "read_hf_text"),
    ],
)
def test_a_folder_is_told_by_its_configuration(tmp_path, monkeypatch, name, content, reader):
    (tmp_path / name).write_text(content)
    monkeypatch.setattr(read, reader, lambda source: (reader, source))
    assert read_weights(tmp_path) == (reader, tmp_path)


@pytest.mark.parametrize(
    ("tensor", "reader"),
    [
        ("audio_encoder.mel_encoder.bn0.weight", "spatial_clap_of"),
        ("module.audio_branch.bn0.weight", "laion_clap_of"),
        ("anything", "laion_clap_of"),
    ],
)
def test_a_file_is_told_by_its_tensors(tmp_path, monkeypatch, tensor, reader):
    save_file({tensor: np.ones(1)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(read, reader, lambda tensors, source: reader)
    assert read_weights(tmp_path / "a.safetensors") == reader
