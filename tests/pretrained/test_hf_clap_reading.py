"""What a `ClapModel` folder's configuration and extractor say, and what they may leave out."""

import json
from pathlib import Path

import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import CLAP_FUSION_LOG_MEL, LAION_CLAP_LOG_MEL
from spatial_clap_jax.models.htsat import htsat_tiny
from spatial_clap_jax.pretrained import hf_clap as module
from spatial_clap_jax.pretrained.files import Source
from spatial_clap_jax.pretrained.hf_clap import read_hf_clap

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytestmark = pytest.mark.parity

from clap_files import hf_clap  # noqa: E402

FRONT_END = {"sampling_rate": 48_000, "frequency_min": 50, "padding": "repeatpad"}


@pytest.fixture
def folder(tmp_path):
    hf_clap().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes) -> Path:
    """Changes parts of `config.json`; ... takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            value = {k: v for k, v in (config[key] | value).items() if v is not ...}
        config[key] = value
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return folder


def extractor(folder: Path, **settings) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_the_whole_of_a_folder(folder):
    weights = read_hf_clap(folder)
    assert (weights.joint_width, weights.window_s, weights.padding) == (24, 10.0, "repeat")
    assert weights.audio.mel == LAION_CLAP_LOG_MEL
    assert weights.text.tokenizer is None
    assert weights.audio.config.width == 128
    assert weights.arrays["params/logit_scale_audio"].shape == ()
    assert {why for _, why in weights.report.left} == {"counters", "indices"}
    state = hf_clap().state_dict()
    np.testing.assert_array_equal(
        weights.arrays["params/text_projection/hidden/kernel"],
        state["text_projection.linear1.weight"].numpy().T,
    )
    assert weights.arrays["params/logit_scale_text"] == state["logit_scale_t"].numpy()


def test_what_a_configuration_may_leave_out():
    """The defaults are those of transformers' own classes."""
    config = transformers.ClapConfig().to_dict()
    for ours, theirs in [
        (module._AUDIO_DEFAULTS, config["audio_config"]),
        (module._TEXT_DEFAULTS, config["text_config"]),
    ]:
        for key, value in ours.items():
            held = theirs[key]
            assert (list(held) if isinstance(held, tuple) else held) == value, key
    assert config["projection_dim"] == 512
    assert config["projection_hidden_act"] == "relu"
    read = module._htsat_config(module._AUDIO_DEFAULTS, "a")
    assert (read.width, read.depths, read.heads) == (768, (2, 2, 6, 2), htsat_tiny().heads)


def test_keys_that_equal_their_defaults_may_be_left_out(folder):
    whole = read_hf_clap(folder)
    left_out = {"window_size": ..., "spec_size": ..., "patch_stride": ..., "qkv_bias": ...}
    text = {"type_vocab_size": ..., "pad_token_id": ..., "hidden_act": ..., "model_type": ...}
    bare = read_hf_clap(
        rewrite(folder, audio_config=left_out, text_config=text, projection_hidden_act=...)
    )
    assert (bare.audio.config, bare.text.config) == (whole.audio.config, whole.text.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip"}, r"model_type 'clip' is not 'clap'; give a ClapModel folder"),
        ({"model_type": ...}, r"model_type None is not 'clap'"),
        ({"projection_hidden_act": "gelu"}, r"projection_hidden_act is 'gelu', our proj.* 'relu'"),
        ({"audio_config": {"hidden_act": "relu"}}, r"audio_config\.hidden_act is 'relu', our HTS"),
        (
            {"audio_config": {"qkv_bias": False}},
            r"audio_config\.qkv_bias is False, our HTSAT has T",
        ),
        ({"audio_config": {"patch_stride": [4, 2]}}, r"patch_size 4, patch_stride \[4, 2\]"),
        ({"audio_config": {"patch_stride": 2}}, r"patch_size 4, patch_stride 2, fusion_type None;"),
        ({"audio_config": {"fusion_type": "channel_map"}}, r"fusion_type 'channel_map'; our HTSAT"),
        ({"audio_config": {"window_size": 7}}, r"HtsatConfig\.window: 7 does not divide the grid"),
        (
            {"audio_config": {"num_attention_heads": [2, 2]}},
            r"HtsatConfig\.heads: \(2, 2\) names 2",
        ),
        ({"audio_config": {"enable_fusion": True}}, r"lacks audio_model\..*mel_conv2d\.weight"),
        ({"audio_config": {"depths": [1, 1, 1, 1]}}, r"has audio_model\..*layers\.2\.blocks\.1\."),
        (
            {"text_config": {"hidden_act": "gelu_new"}},
            r"text_config: hidden_act is 'gelu_new', our",
        ),
        ({"text_config": {"model_type": "t5"}}, r"text_config: model_type 't5' is none of"),
        ({"text_config": {"vocab_size": 61}}, r"text_model\..*word_embeddings\.weight has shape"),
        ({"projection_dim": 25}, r"audio_projection\.linear1\.weight has shape \[24, 128\], which"),
    ],
)
def test_other_models_are_refused(folder, changes, message):
    with pytest.raises(InputError, match=message):
        read_hf_clap(rewrite(folder, **changes))


def test_a_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="model_type None is not 'clap'"):
        read_hf_clap(folder)


def front_end(folder, fused=False):
    audio = module._htsat_config(module._AUDIO_DEFAULTS | {"enable_fusion": fused}, "a")
    return module._front_end(Source("a", folder), audio)


def test_the_front_end_is_the_extractors(tmp_path):
    extractor(tmp_path, **FRONT_END | {"frequency_min": 0, "padding": "pad", "max_length_s": 7})
    mel, window_s, padding = front_end(tmp_path)
    assert (mel.low_hz, mel.high_hz, window_s, padding) == (0.0, 14_000.0, 7.0, "zeros")
    extractor(tmp_path, **FRONT_END, hop_length=320, fft_window_size=2048, frequency_max=12_000)
    mel, window_s, padding = front_end(tmp_path)
    assert (mel.hop, mel.n_fft, mel.low_hz, mel.high_hz) == (320, 2048, 50.0, 12_000.0)
    assert (window_s, padding) == (10.0, "repeat")


@pytest.mark.parametrize("fused", [False, True])
def test_the_front_end_that_transformers_writes(tmp_path, fused):
    """And that of the released models where a folder brings none."""
    expected = CLAP_FUSION_LOG_MEL if fused else LAION_CLAP_LOG_MEL
    assert front_end(tmp_path, fused) == (expected, 10.0, "repeat")
    truncation = "fusion" if fused else "rand_trunc"
    theirs = transformers.ClapFeatureExtractor(truncation=truncation, frequency_min=50)
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    assert front_end(tmp_path, fused) == (expected, 10.0, "repeat")
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    settings |= {"max_length_s": 5}
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
    assert front_end(tmp_path, fused) == (expected, 5.0, "repeat")


def test_fusion_and_truncation_must_agree(tmp_path):
    extractor(tmp_path, **FRONT_END, truncation="fusion")
    message = r"truncation 'fusion' and padding 'repeatpad'; a not fused model takes 'rand_trunc'"
    with pytest.raises(InputError, match=message):
        front_end(tmp_path)
    assert front_end(tmp_path, fused=True)[0] == CLAP_FUSION_LOG_MEL
    extractor(tmp_path, **FRONT_END, truncation="rand_trunc")
    assert front_end(tmp_path)[0] == LAION_CLAP_LOG_MEL
    with pytest.raises(InputError, match=r"truncation 'rand_trunc' .*; a fused model takes 'fusi"):
        front_end(tmp_path, fused=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": "repeat"}, r"padding 'repeat'; a not fused model takes .* 'repeatpad' or 'pa"),
        ({"feature_size": 128}, r"the extractor gives 128 mel bins and the encoder takes 64; its"),
        ({"frequency_max": 30_000}, r"high_hz 30000: need 0 <= low_hz < high_hz <= 24000"),
    ],
)
def test_other_front_ends_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        front_end(extractor(tmp_path, **FRONT_END | settings))
