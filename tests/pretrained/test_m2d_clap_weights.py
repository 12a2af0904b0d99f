"""M2D-CLAP's published tensors: every name, both ways, and what is refused."""

import math

import numpy as np
import pytest
from m2d_files import (
    NORMALISATION,
    PREDICTOR_LAYERS,
    PREDICTOR_WIDTH,
    WIDTH,
    published_2024,
    published_2025,
)
from safetensors.numpy import save_file

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import M2D_LOG_MEL
from spatial_clap_jax.models.m2d import PredictorConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.pretrained.m2d_clap import (
    is_m2d_clap,
    m2d_clap_of,
    m2d_clap_tensors,
    pretraining_entries,
    pretraining_shapes,
    projector_entries,
    projector_shapes,
    published_name,
    vit_entries,
    vit_shapes,
)
from spatial_clap_jax.pretrained.read import read_audio_tower, read_text_tower, read_weights

NAME = "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025/checkpoint-30.pth"
POOLER = "text_encoder.text_encoder.pooler.dense"


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
        assert got[name].shape == array.shape, name
        assert got[name].dtype == array.dtype, name


def test_all_406_tensors_of_2024_go_both_ways():
    tensors = published_2024()
    assert len(tensors) == 406
    weights = m2d_clap_of(tensors, "M2D.pth")
    assert weights.audio.config == VitConfig(
        frames=608, width=WIDTH, layers=12, heads=1, mlp_ratio=4.0
    )
    assert weights.audio.mel == M2D_LOG_MEL
    assert weights.audio.normalisation == NORMALISATION
    assert (weights.projector, weights.sentence_width, weights.text) == ("mlp", None, None)
    assert weights.predictor == PredictorConfig(PREDICTOR_WIDTH, PREDICTOR_LAYERS, 1)
    told = sum(theirs.count(" + ") + 1 for _, theirs, _ in weights.report.taken)
    assert told + len(weights.report.left) == 406
    assert set(dict(weights.report.left)) == {"pos_embed", "decoder_pos_embed", "norm_stats"}
    assert_same(m2d_clap_tensors(weights), tensors)


def test_all_166_tensors_of_2025_and_its_text_encoder_go_both_ways():
    tensors = published_2025()
    audio = [name for name in tensors if name.startswith("backbone.")]
    assert len(audio) == 166
    weights = m2d_clap_of(tensors, NAME)
    assert weights.audio.config.frames == 1001
    assert (weights.projector, weights.predictor) == ("token", None)
    assert weights.text is not None
    text = weights.text.config
    assert (text.pooling, text.position_offset, text.max_tokens) == ("first", 0, 24)
    assert text.layer_norm_epsilon == 1e-12
    told = sum(theirs.count(" + ") + 1 for _, theirs, _ in weights.report.taken)
    assert told + len(weights.report.left) == len(tensors)
    # The pooler, of which no text is embedded, is the one thing that does not come back.
    written = m2d_clap_tensors(weights)
    for part in ("weight", "bias"):
        name = f"{POOLER}.{part}"
        assert not written[name].any()
        assert written.pop(name).shape == tensors.pop(name).shape
    assert_same(written, tensors)
    assert published_name(weights) == NAME.split("-2025")[0]


def test_the_arrays_of_true_width_are_as_many_and_as_large_as_published():
    config, predictor = VitConfig(), PredictorConfig()
    content = vit_shapes(config)
    entries = {"content": vit_entries(config), "training": pretraining_entries(config, predictor)}
    training = pretraining_shapes(config, predictor)
    assert {entry.ours for entry in entries["content"]} == content.keys()
    assert {entry.ours for entry in entries["training"]} == training.keys()
    count = {name: len(found) for name, found in entries.items()}
    constants = len(("pos_embed", "norm_stats"))
    mlp, token = (len(projector_entries(kind)) for kind in ("mlp", "token"))
    decoder_positions, scale = 1, 1
    assert count["content"] + constants + token == 166
    whole = count["content"] + constants + count["training"] + decoder_positions + scale + mlp
    assert whole == 406
    assert content["params/block_11/attention/qkv/kernel"] == (768, 2304)
    assert content["params/patch/kernel"] == (256, 768)
    numbers = sum(math.prod(shape) for shape in projector_shapes("token", 768).values())
    assert numbers == 3_548_928


def test_an_encoder_alone_is_read_and_its_old_normalisation_is_known():
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in published_2025().items()
        if name.startswith("backbone.") and "audio_proj" not in name and "norm_stats" not in name
    }
    assert is_m2d_clap(tensors)
    weights = m2d_clap_of(tensors, "m2d.pth")
    assert (weights.projector, weights.text, weights.arrays) == (None, None, {})
    assert weights.audio.normalisation == (-7.1, 4.2)
    assert weights.audio.config.frames == 62 * 16
    assert "normalisation" in dict(weights.report.made)


def test_a_projection_of_sentences_comes_with_them():
    rng = np.random.default_rng(0)
    projection = {
        "text_proj.weight": rng.normal(size=(WIDTH, 20)).astype(np.float32),
        "text_proj.bias": rng.normal(size=WIDTH).astype(np.float32),
    }
    tensors = {**published_2024(), **projection}
    weights = m2d_clap_of(tensors, "m2d.pth")
    assert weights.sentence_width == 20
    assert weights.arrays["params/text_projection/kernel"].shape == (20, WIDTH)
    assert_same(m2d_clap_tensors(weights), tensors)


def test_files_and_folders_of_one_file_are_told_apart(tmp_path):
    folder = tmp_path / "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025"
    folder.mkdir()
    save_file(published_2025(layers=1), folder / "checkpoint-30.safetensors")
    for source in (folder, folder / "checkpoint-30.safetensors"):
        audio, text = read_audio_tower(source), read_text_tower(source)
        assert audio.config.frames == 1001
        assert audio.arrays["params/cls_token"].shape == (WIDTH,)
        assert text.arrays["params/tokens/embedding"].shape == (40, WIDTH)
    save_file(published_2024(layers=1), tmp_path / "m2d.safetensors")
    assert read_weights(tmp_path / "m2d.safetensors").projector == "mlp"
    with pytest.raises(InputError, match=r"m2d\.safetensors: has no text encoder, its texts are"):
        read_text_tower(tmp_path / "m2d.safetensors")


def changed(name, tensor):
    tensors = published_2024(layers=1)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor(tensors.get(name))
    return tensors


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blocks.0.attn.qkv.bias", None, r"m2d\.pth: lacks blocks\.0\.attn\.qkv\.bias; every"),
        ("target_norm.bias", None, r"lacks target_norm\.bias"),
        ("decoder_blocks.7.norm1.bias", None, r"lacks decoder_blocks\.7\.norm1\.bias"),
        ("head.weight", lambda _: np.ones((2, 2)), r"has head\.weight, which this architecture"),
        (
            "norm.weight",
            lambda x: x[:-1],
            r"norm\.weight has shape \[7\], which does not fit params/norm/scale \[8\]",
        ),
        ("cls_token", lambda x: x[0], r"cls_token has shape \[1, 8\], which does not fit"),
        ("norm.bias", lambda x: x * np.nan, r"norm\.bias holds NaN or infinite numbers"),
        ("pos_embed", lambda x: x + 0.01, r"pos_embed: holds other positions than the fixed"),
        (
            "pos_embed",
            lambda x: x[:, :-1],
            r"pos_embed: must be a table of positions \[1, \d+, 8\]",
        ),
        ("decoder_pos_embed", None, r"decoder_pos_embed: must be a table .*, and the file lacks"),
        ("decoder_pos_embed", lambda x: x * np.nan, r"decoder_pos_embed: holds other positions"),
        ("norm_stats", lambda x: -x, r"norm_stats: \[.*\]; it must be a mean and a standard"),
        ("blocks.0.mlp.fc1.weight", None, r"m2d\.pth: the shape of its ViT cannot be told"),
        ("decoder_blocks.0.mlp.fc1.weight", None, r"the shape of its decoder cannot be told"),
    ],
)
def test_a_damaged_file_is_refused_by_name(name, tensor, message):
    with pytest.raises(InputError, match=message):
        m2d_clap_of(changed(name, tensor), "m2d.pth")
