"""LAION's own files give, bit for bit, what the same model gives in transformers' form."""

import dataclasses

import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import CLAP_FUSION_LOG_MEL, LAION_CLAP_LOG_MEL
from spatial_clap_jax.pretrained.hf_clap import read_hf_clap
from spatial_clap_jax.pretrained.laion_clap import read_laion_clap
from spatial_clap_jax.pretrained.read import read_audio_tower, read_text_tower, read_weights
from spatial_clap_jax.pretrained.towers import ClapWeights

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytestmark = pytest.mark.parity

from clap_files import hf_clap, laion_heads, laion_names  # noqa: E402


def without_rates(weights: ClapWeights):
    """Both shapes; a state dict does not tell rates of dropout."""
    audio = dataclasses.replace(weights.audio.config, drop_path=0.0, attention_dropout=0.0)
    text = dataclasses.replace(weights.text.config, dropout=0.0, attention_dropout=0.0)
    return audio, text


def assert_same_weights(laion: ClapWeights, hugging_face: ClapWeights):
    for got, expected in [
        (laion.audio.arrays, hugging_face.audio.arrays),
        (laion.text.arrays, hugging_face.text.arrays),
        (laion.arrays, hugging_face.arrays),
    ]:
        assert got.keys() == expected.keys()
        for path, array in got.items():
            assert array.dtype == np.float32
            assert array.shape == expected[path].shape
            assert array.tobytes() == expected[path].tobytes(), path
    assert without_rates(laion) == without_rates(hugging_face)
    assert laion.audio.mel == hugging_face.audio.mel
    for name in ("joint_width", "window_s", "padding"):
        assert getattr(laion, name) == getattr(hugging_face, name)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fused"])
def released(request, tmp_path_factory):
    """A folder of transformers', the same model in LAION's file, and its state dict."""
    folder = tmp_path_factory.mktemp("clap")
    model = hf_clap(request.param, seed=int(request.param))
    model.save_pretrained(folder / "hf")
    state = laion_heads(laion_names(model.state_dict()))
    content = {
        "epoch": 45,
        "name": "630k-best",
        "state_dict": state,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{}]},
        "top": np.float64(0.5),
    }
    torch.save(content, folder / "laion.pt")
    return folder, state, request.param


def test_both_forms_give_the_same_arrays(released):
    folder, _, fused = released
    laion, hugging_face = read_laion_clap(folder / "laion.pt"), read_hf_clap(folder / "hf")
    assert_same_weights(laion, hugging_face)
    assert laion.audio.config.fusion == fused
    assert laion.audio.mel == (CLAP_FUSION_LOG_MEL if fused else LAION_CLAP_LOG_MEL)
    assert (laion.joint_width, laion.window_s, laion.padding) == (24, 10.0, "repeat")
    assert laion.text.tokenizer is None
    assert laion.text.config.pooling == "pooler"
    # HTSAT's mlp and text's table are no matrices of equal sides, so that nothing is turned twice.
    assert laion.audio.arrays["params/stage_0_block_0/mlp/up/kernel"].shape == (16, 32)
    assert laion.text.arrays["params/tokens/embedding"].shape == (60, 64)


def test_the_report_accounts_for_every_tensor(released):
    folder, state, _ = released
    report = read_laion_clap(folder / "laion.pt").report
    taken = [name for _, names, _ in report.taken for name in names.split(" + ")]
    left = [name for name, _ in report.left]
    assert sorted(taken + left) == sorted(name.removeprefix("module.") for name in state)
    reasons = dict(report.left)
    assert reasons["audio_branch.logmel_extractor.melW"] == "front end, ours is equal"
    assert reasons["audio_branch.tscam_conv.weight"] == "class heads"
    assert reasons["audio_branch.layers.2.blocks.1.attn_mask"] == "masks"
    assert reasons["audio_branch.bn0.num_batches_tracked"] == "counters"
    assert reasons["text_branch.embeddings.position_ids"] == "indices"
    assert reasons["text_transform.sequential.3.bias"] == "heads of another loss"
    assert not report.made


def test_as_safetensors_and_without_module(released):
    from safetensors.torch import save_file

    folder, state, _ = released
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for name, tensors in [("a", state), ("b", plain)]:
        save_file(tensors, folder / f"{name}.safetensors")
        weights = read_laion_clap(folder / f"{name}.safetensors")
        assert_same_weights(weights, read_hf_clap(folder / "hf"))


def test_any_reader_finds_it(released):
    folder, _, _ = released
    weights = read_weights(folder / "laion.pt")
    assert isinstance(weights, ClapWeights)
    expected = read_hf_clap(folder / "hf")
    assert_same_weights(weights, expected)
    audio, text = read_audio_tower(folder / "laion.pt"), read_text_tower(folder / "hf")
    assert audio.arrays.keys() == expected.audio.arrays.keys()
    assert text.arrays.keys() == expected.text.arrays.keys()


def test_a_smaller_image_is_told_by_a_mask(tmp_path):
    model = hf_clap(spec_size=128, depths=[2, 2], num_attention_heads=[2, 2], hidden_size=32)
    model.save_pretrained(tmp_path / "hf")
    state = laion_names(model.state_dict())
    del state["module.audio_branch.layers.2.blocks.1.attn_mask"]
    state["module.audio_branch.layers.0.blocks.1.attn_mask"] = torch.zeros(16, 64, 64)
    torch.save(state, tmp_path / "a.pt")
    weights = read_laion_clap(tmp_path / "a.pt")
    assert weights.audio.config.spec_size == 128
    assert_same_weights(weights, read_hf_clap(tmp_path / "hf"))


@pytest.fixture(scope="module")
def state():
    return laion_names(hf_clap().state_dict())


def refused(folder, state, message):
    torch.save({"state_dict": state}, folder / "a.pt")
    with pytest.raises(InputError, match=message):
        read_laion_clap(folder / "a.pt")


MEL = "module.audio_branch.logmel_extractor.melW"


def test_another_front_end_is_refused(tmp_path, state):
    changed = state[MEL].clone()
    changed[100, 10] += 1e-4
    for mel in (changed, state[MEL].T, state[MEL][:, :32]):
        refused(
            tmp_path,
            state | {MEL: mel.contiguous()},
            r"its mel bands are not LAION-CLAP's \(64 of 50 to 14000 Hz at 48000 Hz\); give",
        )


def test_a_file_without_a_front_end_is_read(tmp_path, state):
    torch.save({name: value for name, value in state.items() if name != MEL}, tmp_path / "a.pt")
    assert read_laion_clap(tmp_path / "a.pt").audio.mel == LAION_CLAP_LOG_MEL


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["text_projection.2.bias", "logit_scale_t"], r"lacks text_projection\.2\.bias, logit_sc"),
        (["audio_projection.2.weight"], r"lacks audio_projection\.2\.weight; every weight"),
        (["text_branch.pooler.dense.weight"], r"lacks text_branch\.pooler\.dense\.weight;"),
        (
            ["audio_branch.layers.1.blocks.0.attn.qkv.bias", "audio_branch.norm.weight"],
            r"lacks audio_branch\.norm\.weight, audio_branch\.layers\.1\.blocks\.0\.attn\.qkv\.b",
        ),
        (["audio_branch.bn0.weight"], r"lacks audio_branch\.bn0\.weight, so it is no LAION-CLAP"),
        (
            ["text_branch.embeddings.word_embeddings.weight"],
            r"lacks text_branch\.embeddings\.word_embeddings\.weight, so it is no LAION-CLAP",
        ),
        (
            ["audio_branch.patch_embed.proj.weight"],
            r"shape of its HTSAT cannot be told \('audio_branch\.patch_embed\.proj\.weight' is mi",
        ),
        (
            ["audio_branch.layers.1.blocks.0.attn.relative_position_bias_table"],
            r"shape of its HTSAT cannot be told \('audio_branch\.layers\.1\.blocks\.0\.attn\.rel",
        ),
        (
            ["text_branch.embeddings.position_embeddings.weight"],
            r"shape of its text encoder cannot be told \('text_branch\.embeddings\.position_em",
        ),
    ],
)
def test_missing_tensors_are_listed(tmp_path, state, missing, message):
    rest = {key: value for key, value in state.items() if key[len("module.") :] not in missing}
    assert len(rest) == len(state) - len(missing)
    refused(tmp_path, rest, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("module.audio_branch.zeta", r": has audio_branch\.zeta, which this architecture does n"),
        ("module.text_branch.lm_head.weight", r": has text_branch\.lm_head\.weight, which"),
        ("module.audio_branch.ahead.weight", r": has audio_branch\.ahead\.weight, which"),
        ("logit_scale_a", r": another tensor is called logit_scale_a too; remove one"),
    ],
)
def test_unexpected_tensors_are_listed(tmp_path, state, name, message):
    refused(tmp_path, state | {name: torch.ones(())}, message)


def test_a_text_encoder_alone_is_refused(tmp_path):
    refused(
        tmp_path,
        {"embeddings.word_embeddings.weight": torch.ones(2, 2)},
        r"lacks audio_branch\.bn0\.weight, so it is no LAION-CLAP of HTSAT and RoBERTa; give",
    )
