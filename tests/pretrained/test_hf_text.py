"""RoBERTa and BERT read from the folders that transformers writes answer as they do there."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.text import TextEncoder
from spatial_clap_jax.pretrained.hf_text import read_hf_text, text_config, text_entries
from spatial_clap_jax.pretrained.mapping import nested, write_entries
from spatial_clap_jax.pretrained.towers import TextTower

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytestmark = pytest.mark.parity

from random_models import randomised  # noqa: E402

TOKENS = 20
SIZES = {
    "vocab_size": 60,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
}
ROBERTA = SIZES | {"max_position_embeddings": TOKENS + 2, "layer_norm_eps": 1e-5}
ROBERTA |= {"type_vocab_size": 1}
BERT = SIZES | {"max_position_embeddings": TOKENS}
KINDS = {
    "roberta": ("RobertaModel", ROBERTA),
    # Another padding id moves the first position.
    "roberta-pad-3": ("RobertaModel", ROBERTA | {"max_position_embeddings": 24, "pad_token_id": 3}),
    "roberta-masked": ("RobertaForMaskedLM", ROBERTA),
    "xlm-roberta": ("XLMRobertaModel", ROBERTA),
    "camembert": ("CamembertModel", ROBERTA),
    "bert": ("BertModel", BERT | {"layer_norm_eps": 1e-3}),
    "bert-masked": ("BertForMaskedLM", BERT),
}


def model_of(kind: str, seed: int = 0):
    name, sizes = KINDS[kind]
    cls = getattr(transformers, name)
    return randomised(cls(cls.config_class(**sizes)), seed)


@functools.cache
def encoder(config):
    return jax.jit(TextEncoder(config).apply)


def ours(tower: TextTower, ids, mask):
    return encoder(tower.config)(nested(tower.arrays), ids, mask)


def batch(model, seed=0):
    """Texts of one word (three tokens), of the longest, and of lengths between."""
    pad = model.config.pad_token_id
    lengths = np.array([TOKENS, 3, 1, TOKENS - 1, 7])
    mask = np.arange(TOKENS) < lengths[:, None]
    ids = np.random.default_rng(seed).integers(4, SIZES["vocab_size"], size=mask.shape)
    return np.where(mask, ids, pad), mask


def theirs(model, ids, mask):
    with torch.no_grad():
        base = getattr(model, model.base_model_prefix, model)
        out = base(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)))
    return out.last_hidden_state.numpy(), out


def unit(vectors):
    vectors = np.asarray(vectors)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def assert_same(tower, model, ids, mask, pooled):
    out = ours(tower, ids, mask)
    hidden, _ = theirs(model, ids, mask)
    np.testing.assert_allclose(out.hidden[mask], hidden[mask], atol=1e-4)
    np.testing.assert_allclose(unit(out.pooled), unit(pooled), atol=2e-6)
    assert np.std(unit(pooled), axis=0).mean() > 0.02


SEEDS = [(kind, seed) for kind in ("roberta", "bert") for seed in (0, 1, 2)]
SEEDS += [(kind, 0) for kind in KINDS if kind not in ("roberta", "bert")]


@pytest.mark.parametrize(("kind", "seed"), SEEDS)
def test_a_saved_encoder_gives_the_same_numbers(tmp_path, kind, seed):
    model = model_of(kind, seed)
    model.save_pretrained(tmp_path)
    tower = read_hf_text(tmp_path)
    ids, mask = batch(model, seed)
    hidden, out = theirs(model, ids, mask)
    masked = kind.endswith("masked")
    assert tower.config.pooling == ("first" if masked else "pooler")
    assert tower.tokenizer is None
    assert_same(tower, model, ids, mask, hidden[:, 0] if masked else out.pooler_output.numpy())
    made = (("pooling", "the first token: the source has no pooler"),)
    assert tower.report.made == (made if masked else ())
    heads = {why for _, why in tower.report.left}
    assert heads == ({"heads of masked language modelling"} if masked else set())
    assert ("taken; " in tower.report.summary) == masked


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_padding_never_matters(tmp_path, kind):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    tower = read_hf_text(tmp_path)
    ids, mask = batch(model)
    padded = ours(tower, ids, mask)
    for row, length in [(1, 3), (3, TOKENS - 1)]:
        assert mask[row].sum() == length
        alone = ids[row : row + 1, :length]
        bare = ours(tower, alone, np.ones_like(alone, bool))
        np.testing.assert_allclose(unit(padded.pooled[row]), unit(bare.pooled[0]), atol=1e-6)
        np.testing.assert_allclose(padded.hidden[row, :length], bare.hidden[0], atol=1e-5)
        with torch.no_grad():
            expected = model(torch.from_numpy(alone)).pooler_output[0].numpy()
        np.testing.assert_allclose(unit(padded.pooled[row]), unit(expected), atol=2e-6)
    noise = np.where(mask, ids, 5)
    np.testing.assert_array_equal(ours(tower, noise, mask).pooled, padded.pooled)


def rewrite(folder: Path, change=None, **config) -> Path:
    """Changes the weights and the configuration that lie in a folder."""
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    state = load_file(weights)
    if change is not None:
        save_file({name: value.contiguous() for name, value in change(state).items()}, weights)
    path = folder / "config.json"
    held = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not ...}))
    return folder


@pytest.fixture
def roberta(tmp_path):
    model = model_of("roberta")
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_indices_of_older_files_are_left_by_name(roberta):
    model, folder = roberta
    ids = torch.arange(TOKENS + 2)[None]
    rewrite(folder, lambda state: state | {"embeddings.position_ids": ids})
    tower = read_hf_text(folder)
    assert tower.report.left == (("embeddings.position_ids", "indices"),)
    batched = batch(model)
    assert_same(tower, model, *batched, theirs(model, *batched)[1].pooler_output.numpy())


def test_berts_oldest_names_and_its_heads_of_pre_training(tmp_path):
    config = transformers.BertConfig(**BERT)
    model = randomised(transformers.BertForPreTraining(config))
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in model.state_dict().items()
    }
    assert "cls.predictions.transform.LayerNorm.gamma" in old
    assert "cls.seq_relationship.weight" in old
    torch.save(old, tmp_path / "pytorch_model.bin")
    config.save_pretrained(tmp_path)
    tower = read_hf_text(tmp_path)
    assert tower.config.pooling == "pooler"
    assert tower.config.layer_norm_epsilon == 1e-12
    ids, mask = batch(model)
    assert_same(tower, model, ids, mask, theirs(model, ids, mask)[1].pooler_output.numpy())


def test_a_folder_without_a_pooler_pools_the_first_token(roberta):
    model, folder = roberta
    rewrite(folder, lambda state: {k: v for k, v in state.items() if "pooler" not in k})
    tower = read_hf_text(folder)
    assert tower.config.pooling == "first"
    assert "1 made (the first token: the source has no pooler)" in tower.report.summary
    ids, mask = batch(model)
    assert_same(tower, model, ids, mask, theirs(model, ids, mask)[0][:, 0])


def test_half_a_pooler_is_an_error(roberta):
    _, folder = roberta
    rewrite(folder, lambda state: {k: v for k, v in state.items() if k != "pooler.dense.bias"})
    with pytest.raises(InputError, match=r"lacks pooler\.dense\.bias; every weight"):
        read_hf_text(folder)


def test_what_is_read_can_be_written_back(roberta):
    model, folder = roberta
    tower = read_hf_text(folder)
    back = write_entries(text_entries(tower.config), tower.arrays)
    assert back.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor.numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"encoder.layer.2.output.dense.bias": torch.zeros(48)},
            r": has encoder\.layer\.2\.output\.dense\.bias, which this architecture does not know",
        ),
        (
            lambda state: {k: v for k, v in state.items() if "layer.1.attention.self.key" not in k},
            r"lacks encoder\.layer\.1\.attention\.self\.key\.weight, encoder\.layer\.1\.att.*bias;",
        ),
        (
            lambda state: state | {"encoder.layer.0.output.dense.weight": torch.zeros(80, 48)},
            r"output\.dense\.weight has shape \[80, 48\], which does not fit params/layer_0/mlp/do",
        ),
        (
            lambda state: state | {"pooler.dense.bias": torch.full((48,), torch.nan)},
            r"pooler\.dense\.bias holds NaN or infinite numbers",
        ),
        (
            lambda state: {f"x{k}": v for k, v in state.items() if "word" not in k},
            r"tensors that end in embeddings\.word_embeddings\.weight: none; one is expected",
        ),
        (
            lambda state: state | {"x.embeddings.word_embeddings.weight": torch.zeros(2)},
            r"word_embeddings\.weight: , x\.; one is expected",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(roberta, change, message):
    with pytest.raises(InputError, match=message):
        read_hf_text(rewrite(roberta[1], change))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mpnet"}, r"model_type 'mpnet' is none of roberta, xlm-roberta, camembert"),
        ({"model_type": ...}, r"model_type None is none of roberta"),
        ({"hidden_act": "gelu_new"}, r"hidden_act is 'gelu_new', our encoder has 'gelu' only"),
        (
            {"position_embedding_type": "relative_key"},
            r"position_embedding_type is 'relative_key', our encoder has 'absolute' only",
        ),
        ({"is_decoder": True}, r"is_decoder is True, our encoder has False only"),
        ({"vocab_size": ..., "hidden_size": "48"}, r"config\.json lacks vocab_size, hidden_size;"),
        ({"vocab_size": 61}, r"word_embeddings\.weight has shape \[60, 48\], which does not fit"),
        ({"num_attention_heads": 5}, r"heads: 5 does not divide the width 48"),
        ({"num_hidden_layers": 1}, r"has encoder\.layer\.1\.attention\.output\.LayerNorm\.bias, "),
        ({"num_hidden_layers": 3}, r"lacks encoder\.layer\.2\.attention\.self\.query\.weight, "),
    ],
)
def test_other_architectures_are_refused(roberta, config, message):
    with pytest.raises(InputError, match=message):
        read_hf_text(rewrite(roberta[1], **config))


def test_a_folder_without_a_configuration_is_refused(roberta):
    (roberta[1] / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds no config\.json; give a folder of Hugging Face"):
        read_hf_text(roberta[1])


def test_what_a_configuration_may_leave_out():
    """The rest of a `config.json` has the defaults of transformers' own classes."""
    needed = {key: getattr(transformers.RobertaConfig(), key) for key in [*SIZES, *BERT]}
    full = transformers.RobertaConfig().to_dict() | {"model_type": "roberta"}
    bare = {
        **needed,
        "type_vocab_size": full["type_vocab_size"],
        "model_type": "roberta",
    }
    assert text_config(bare, "pooler", "a") == text_config(full, "pooler", "a")
    full = transformers.BertConfig().to_dict() | {"model_type": "bert"}
    bare |= {"model_type": "bert", "vocab_size": 30522, "type_vocab_size": 2}
    assert text_config(bare, "pooler", "a") == text_config(full, "pooler", "a")


POOLING = {
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "word_embedding_dimension": 48,
    "include_prompt": True,
}


def sentence_encoder(folder: Path, model, pooling: dict, place="", kinds=None, path="1_Pooling"):
    """The layout that sentence-transformers writes."""
    model.save_pretrained(folder / place)
    kinds = kinds or ["Transformer", "Pooling", "Normalize"]
    paths = [place, path, "2_Normalize", "3_Dense"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize("place", ["", "0_Transformer"])
@pytest.mark.parametrize("kinds", [None, ["Transformer", "Pooling"]])
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token"])
def test_a_sentence_encoder_pools_as_its_modules_say(tmp_path, mode, kinds, place):
    model = model_of("bert" if mode == "mean_tokens" else "roberta", seed=3)
    pooling = POOLING | {f"pooling_mode_{mode}": True}
    sentence_encoder(tmp_path, model, pooling, place, kinds)
    tower = read_hf_text(tmp_path)
    ids, mask = batch(model)
    hidden, _ = theirs(model, ids, mask)
    if mode == "mean_tokens":
        weight = mask[..., None]
        expected, kind = (hidden * weight).sum(axis=1) / weight.sum(axis=1), "mean"
    else:
        expected, kind = hidden[:, 0], "first"
    assert tower.config.pooling == kind
    assert tower.report.left == tuple(
        (f"pooler.dense.{part}", f"pooled by {kind}") for part in ("bias", "weight")
    )
    assert_same(tower, model, ids, mask, expected)


@pytest.mark.parametrize(("mode", "kind"), [("mean", "mean"), ("cls", "first")])
def test_the_newer_name_of_a_pooling(tmp_path, mode, kind):
    sentence_encoder(tmp_path, model_of("bert"), {"pooling_mode": mode})
    assert read_hf_text(tmp_path).config.pooling == kind


@pytest.mark.parametrize(
    ("pooling", "options", "message"),
    [
        ({"pooling_mode_max_tokens": True}, {}, r"pools by max_tokens; our encoder pools by one"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            {},
            r"pools by cls_token \+ mean_tokens; our encoder",
        ),
        ({}, {}, r"pools by nothing; our encoder"),
        ({"pooling_mode": "lasttoken"}, {}, r"pools by lasttoken; our encoder"),
        (
            {"pooling_mode_mean_tokens": True},
            {"kinds": ["Transformer", "Pooling", "Dense"]},
            r"is made of Transformer, Pooling, Dense; a transformer with pooling",
        ),
        ({"pooling_mode_mean_tokens": True}, {"kinds": ["WordEmbeddings", "Pooling"]}, "is made"),
        ({"pooling_mode_mean_tokens": True}, {"path": "../x"}, r"'\.\./x' is no folder in it"),
    ],
)
def test_other_sentence_encoders_are_refused(tmp_path, pooling, options, message):
    folder = tmp_path / "model"
    sentence_encoder(folder, model_of("bert"), POOLING | pooling, **options)
    with pytest.raises(InputError, match=message):
        read_hf_text(folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ('{"a": 1}', r"modules\.json lists no modules"),
        ('[{"path": ""}]', r"modules\.json lists no modules \('type'\); restore"),
        ("[3]", r"modules\.json lists no modules"),
        ("3", r"modules\.json lists no modules"),
        ("[]", r"is made of nothing; a transformer with pooling"),
        ("{", r"modules\.json: cannot be read as JSON"),
    ],
)
def test_damaged_modules_are_refused(tmp_path, modules, message):
    sentence_encoder(tmp_path, model_of("bert"), POOLING)
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(InputError, match=message):
        read_hf_text(tmp_path)


def test_a_transformer_outside_its_folder_is_refused(tmp_path):
    folder = sentence_encoder(tmp_path / "x", model_of("bert"), POOLING | {"pooling_mode": "cls"})
    path = folder / "modules.json"
    path.write_text(path.read_text().replace('"path": ""', '"path": "../y"'))
    with pytest.raises(InputError, match=r"'\.\./y' is no folder in it; restore its files"):
        read_hf_text(folder)


def test_dropout_is_what_the_file_says(roberta):
    rewrite(roberta[1], hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    config = read_hf_text(roberta[1]).config
    assert (config.dropout, config.attention_dropout) == (0.3, 0.2)
    assert dataclasses.replace(config, dropout=0.1, attention_dropout=0.1) == text_config(
        roberta[0].config.to_dict(), "pooler", "a"
    )
