"""Hugging Face's `ClapModel` folders: read as ours, and written so that `ClapModel` loads them.

Reference: transformers' `modeling_clap.py` and `feature_extraction_clap.py` for names and
  defaults.
"""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spatial_clap_jax.configs_io import describing, refuse_outsized
from spatial_clap_jax.data.audio import HIGHEST_RATE_HZ, LOWEST_RATE_HZ
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import CLAP_FUSION_LOG_MEL, LAION_CLAP_LOG_MEL, LogMelConfig
from spatial_clap_jax.models.htsat import HtsatConfig, relative_position_index
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.pretrained.files import Source, open_source
from spatial_clap_jax.pretrained.hf_text import (
    TEXT_LEFT,
    read_tokenizer,
    text_config,
    text_entries,
    text_shapes,
)
from spatial_clap_jax.pretrained.htsat import (
    HTSAT_LEFT,
    HUGGING_FACE,
    htsat_entries,
    htsat_shapes,
)
from spatial_clap_jax.pretrained.mapping import Entry, Taking, mlp, mlp_shapes, write_entries
from spatial_clap_jax.pretrained.towers import AudioTower, ClapWeights, TextTower

AUDIO_PREFIX, TEXT_PREFIX = "audio_model.audio_encoder.", "text_model."
# What a `config.json` may leave out, since it equals the class's default.
_TEXT_DEFAULTS = {
    "model_type": "clap_text_model",
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
}
_AUDIO_DEFAULTS: dict[str, Any] = {
    "window_size": 8,
    "num_mel_bins": 64,
    "spec_size": 256,
    "hidden_act": "gelu",
    "patch_size": 4,
    "patch_stride": [4, 4],
    "depths": [2, 2, 6, 2],
    "num_attention_heads": [4, 8, 16, 32],
    "enable_fusion": False,
    "fusion_type": None,
    "patch_embed_input_channels": 1,
    "flatten_patch_embeds": True,
    "patch_embeds_hidden_size": 96,
    "enable_patch_layer_norm": True,
    "drop_path_rate": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "qkv_bias": True,
    "mlp_ratio": 4.0,
    "aff_block_r": 4,
    "layer_norm_eps": 1e-5,
}
# Habits of which our HTSAT has only this one.
_AUDIO_FIXED = (
    "hidden_act",
    "patch_embed_input_channels",
    "flatten_patch_embeds",
    "enable_patch_layer_norm",
    "qkv_bias",
    "layer_norm_eps",
)
# The released extractors' settings, for folders that bring none.
_EXTRACTOR_DEFAULTS: dict[str, Any] = {
    "feature_size": 64,
    "sampling_rate": 48_000,
    "hop_length": 480,
    "fft_window_size": 1024,
    "frequency_min": 50,
    "frequency_max": 14_000,
    "max_length_s": 10,
    "padding": "repeatpad",
}


def read_hf_clap(source: str | Path) -> ClapWeights:
    """Reads a whole CLAP: both encoders, both projections, both scales, front end, tokenizer.

    Args:
      source: a `ClapModel` folder, fused or not, or its name on the hub.

    Raises:
      InputError: it is another architecture, or a tensor is missing, unknown or does not fit.
    """
    opened = open_source(source)
    config = opened.json("config.json")
    if not isinstance(config, dict) or config.get("model_type") != "clap":
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise InputError(f"{source}: model_type {kind!r} is not 'clap'; give a ClapModel folder.")
    if config.get("projection_hidden_act", "relu") != "relu":
        raise InputError(
            f"{source}: projection_hidden_act is {config['projection_hidden_act']!r}, our "
            "projections have 'relu' only; give a model of that kind."
        )
    sizes = {"projection_dim", *_AUDIO_DEFAULTS, *_TEXT_DEFAULTS}
    refuse_outsized(config, f"{source}: config.json", sizes)
    with describing(f"{source}: config.json"):
        audio = _htsat_config(_AUDIO_DEFAULTS | (config.get("audio_config") or {}), str(source))
        text = text_config(
            _TEXT_DEFAULTS | (config.get("text_config") or {}), "pooler", f"{source}: text_config"
        )
        joint = operator.index(config.get("projection_dim", 512))
        shapes = htsat_shapes(audio), text_shapes(text), head_shapes(audio.width, text.width, joint)
    with describing(f"{source}: preprocessor_config.json"):
        mel, window_s, padding = _front_end(opened, audio)
    taking = Taking(str(source), opened.tensors())
    audio_arrays = taking.take(htsat_entries(audio, AUDIO_PREFIX, HUGGING_FACE), shapes[0])
    text_arrays = taking.take(text_entries(text, TEXT_PREFIX), shapes[1])
    arrays = taking.take(head_entries("linear1", "linear2"), shapes[2])
    report = taking.finish([*TEXT_LEFT, *HTSAT_LEFT])
    return ClapWeights(
        audio=AudioTower(audio, mel, audio_arrays, report),
        text=TextTower(text, text_arrays, read_tokenizer(opened, text.max_tokens), report),
        arrays=arrays,
        joint_width=joint,
        window_s=window_s,
        padding=padding,
        report=report,
    )


def hf_clap_tensors(weights: ClapWeights) -> dict[str, np.ndarray]:
    """The state dict of the `ClapModel` that computes what `weights` does, its buffers included.

    Raises:
      InputError: `ClapModel` has no such text encoder.
    """
    audio, text = weights.htsat, weights.text.config
    _check_text_fits(text)
    tensors = {
        **write_entries(htsat_entries(audio, AUDIO_PREFIX, HUGGING_FACE), weights.audio.arrays),
        **write_entries(text_entries(text, TEXT_PREFIX), weights.text.arrays),
        **write_entries(head_entries("linear1", "linear2"), weights.arrays),
    }
    positions = text.max_tokens + text.position_offset
    tensors[f"{TEXT_PREFIX}embeddings.position_ids"] = np.arange(positions)[None]
    tensors[f"{TEXT_PREFIX}embeddings.token_type_ids"] = np.zeros((1, positions), np.int64)
    counters = [name for name in tensors if name.endswith(".running_mean")]
    for name in counters:
        counter = name.replace("running_mean", "num_batches_tracked")
        tensors[counter] = np.array(0, np.int64)
    tables = [name for name in tensors if name.endswith("relative_position_bias_table")]
    for name in tables:
        index = relative_position_index(audio.window).astype(np.int64)
        tensors[name.replace("bias_table", "index")] = index
    return tensors


def hf_clap_configs(weights: ClapWeights) -> dict[str, dict[str, Any]]:
    """The JSON files that stand beside the tensors, by name.

    Raises:
      InputError: `ClapModel` has no such text encoder.
    """
    audio, text, mel = weights.htsat, weights.text.config, weights.audio.mel
    _check_text_fits(text)
    tokenizer = weights.text.tokenizer
    config = {
        "architectures": ["ClapModel"],
        "model_type": "clap",
        "projection_dim": weights.joint_width,
        "projection_hidden_act": "relu",
        "audio_config": {
            **_AUDIO_DEFAULTS,
            "model_type": "clap_audio_model",
            "spec_size": audio.spec_size,
            "num_mel_bins": audio.mels,
            "patch_size": audio.patch,
            "patch_stride": [audio.patch, audio.patch],
            "patch_embeds_hidden_size": audio.embed_dim,
            "hidden_size": audio.width,
            "depths": list(audio.depths),
            "num_attention_heads": list(audio.heads),
            "window_size": audio.window,
            "mlp_ratio": audio.mlp_ratio,
            "attention_probs_dropout_prob": audio.attention_dropout,
            "drop_path_rate": audio.drop_path,
            "enable_fusion": audio.fusion,
            "aff_block_r": audio.fusion_reduction,
            "projection_dim": weights.joint_width,
        },
        "text_config": {
            "model_type": "clap_text_model",
            "vocab_size": text.vocabulary,
            "hidden_size": text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "intermediate_size": text.mlp_width,
            "hidden_act": "gelu",
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.attention_dropout,
            "max_position_embeddings": text.max_tokens + text.position_offset,
            "type_vocab_size": text.token_types,
            "layer_norm_eps": text.layer_norm_epsilon,
            "pad_token_id": text.position_offset - 1,
            "bos_token_id": tokenizer.begin_id if tokenizer else 0,
            "eos_token_id": tokenizer.end_id if tokenizer else 2,
            "projection_dim": weights.joint_width,
        },
    }
    extractor = {
        "feature_extractor_type": "ClapFeatureExtractor",
        "processor_class": "ClapProcessor",
        "feature_size": mel.mels,
        "sampling_rate": mel.sample_rate_hz,
        "hop_length": mel.hop,
        "fft_window_size": mel.n_fft,
        "frequency_min": mel.low_hz,
        "frequency_max": mel.high_hz,
        # The extractor multiplies it by the rate, and wants a whole number of samples.
        "max_length_s": _whole(weights.window_s),
        "truncation": "fusion" if audio.fusion else "rand_trunc",
        "padding": "repeatpad" if weights.padding == "repeat" else "pad",
    }
    files = {"config.json": config, "preprocessor_config.json": extractor}
    if tokenizer is not None:
        begin, end, pad = (
            tokenizer.backend.id_to_token(index)
            for index in (tokenizer.begin_id, tokenizer.end_id, tokenizer.pad_id)
        )
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "ClapProcessor",
            "bos_token": begin,
            "cls_token": begin,
            "eos_token": end,
            "sep_token": end,
            "pad_token": pad,
            "model_max_length": text.max_tokens,
        }
    return files


def _check_text_fits(text: TextConfig) -> None:
    if text.positions != "absolute" or text.pooling != "pooler" or not text.token_types:
        raise InputError(
            f"hf-clap: the text encoder has {text.positions} positions, pools by {text.pooling} "
            f"and has {text.token_types} token types; ClapModel's is a RoBERTa (absolute "
            "positions, pooler, token types): train with one, as `base` does."
        )
    if text.position_offset < 1:
        raise InputError(
            "hf-clap: the text encoder counts positions from 0, as BERT does; ClapModel's counts "
            "them from its padding id on, as RoBERTa does: train with one, as `base` does."
        )


def _whole(seconds: float) -> int:
    if seconds != round(seconds):
        raise InputError(
            f"hf-clap: the model takes {seconds:g} s, and ClapFeatureExtractor whole seconds only; "
            "train with a whole --model.window-s."
        )
    return round(seconds)


def head_entries(first: str, second: str) -> list[Entry]:
    """Entries of both projections and both scales.

    Args:
      first: their name of a projection's first layer.
      second: their name of its second layer.
    """
    names = ("audio_projection", "text_projection")
    return [
        *(e for name in names for e in mlp(name, f"{name}.{first}", f"{name}.{second}")),
        Entry("params/logit_scale_audio", ("logit_scale_a",)),
        Entry("params/logit_scale_text", ("logit_scale_t",)),
    ]


def head_shapes(audio: int, text: int, joint: int) -> dict[str, tuple[int, ...]]:
    """Shapes of both projections and both scales, by path.

    Args:
      audio: width of the audio encoder.
      text: width of the text encoder.
      joint: width of the joint space.
    """
    return {
        **mlp_shapes("audio_projection", audio, joint),
        **mlp_shapes("text_projection", text, joint),
        "params/logit_scale_audio": (),
        "params/logit_scale_text": (),
    }


def _htsat_config(config: Mapping[str, Any], source: str) -> HtsatConfig:
    for key in _AUDIO_FIXED:
        if config[key] != _AUDIO_DEFAULTS[key]:
            raise InputError(
                f"{source}: audio_config.{key} is {config[key]!r}, our HTSAT has "
                f"{_AUDIO_DEFAULTS[key]!r} only; give a model of that kind."
            )
    patch, strides = config["patch_size"], config["patch_stride"]
    sides = {*(patch if isinstance(patch, list) else [patch])}
    sides |= {*(strides if isinstance(strides, list) else [strides])}
    if len(sides) != 1 or config["fusion_type"] == "channel_map":
        raise InputError(
            f"{source}: audio_config has patch_size {patch}, patch_stride {strides}, fusion_type "
            f"{config['fusion_type']!r}; our HTSAT takes square patches side by side and fuses "
            "them by 'aff_2d': give a model of that kind."
        )
    try:
        return HtsatConfig(
            spec_size=config["spec_size"],
            mels=config["num_mel_bins"],
            patch=sides.pop(),
            embed_dim=config["patch_embeds_hidden_size"],
            depths=tuple(config["depths"]),
            heads=tuple(config["num_attention_heads"]),
            window=config["window_size"],
            mlp_ratio=float(config["mlp_ratio"]),
            attention_dropout=float(config["attention_probs_dropout_prob"]),
            drop_path=float(config["drop_path_rate"]),
            fusion=bool(config["enable_fusion"]),
            fusion_reduction=config["aff_block_r"],
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _front_end(
    source: Source, audio: HtsatConfig
) -> tuple[LogMelConfig, float, Literal["repeat", "zeros"]]:
    """The log-mel front end, the window in seconds, and what fills a shorter clip."""
    given = source.json("preprocessor_config.json") or {}
    # Newer folders keep the extractor's settings in the processor's file.
    given = given or (source.json("processor_config.json") or {}).get("feature_extractor", {})
    held = _EXTRACTOR_DEFAULTS | given
    refuse_outsized(held, f"{source.name}: preprocessor_config.json", _EXTRACTOR_DEFAULTS)
    rate_hz = operator.index(held["sampling_rate"])
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ or not held["max_length_s"] > 0:
        raise InputError(
            f"{source.name}: preprocessor_config.json has sampling_rate {rate_hz} and max_length_s "
            f"{held['max_length_s']}; a rate within {LOWEST_RATE_HZ} and {HIGHEST_RATE_HZ} Hz and "
            "a length above 0 are needed: restore the file."
        )
    truncation = held.get("truncation", "fusion" if audio.fusion else "rand_trunc")
    if (truncation == "fusion") != audio.fusion or held["padding"] not in ("repeatpad", "pad"):
        raise InputError(
            f"{source.name}: preprocessor_config.json has truncation {truncation!r} and padding "
            f"{held['padding']!r}; a {'' if audio.fusion else 'not '}fused model takes "
            f"{'fusion' if audio.fusion else 'rand_trunc'!r} with 'repeatpad' or 'pad': correct it."
        )
    base = CLAP_FUSION_LOG_MEL if audio.fusion else LAION_CLAP_LOG_MEL
    mel = LogMelConfig(
        sample_rate_hz=rate_hz,
        n_fft=operator.index(held["fft_window_size"]),
        hop=operator.index(held["hop_length"]),
        mels=operator.index(held["feature_size"]),
        low_hz=float(held["frequency_min"]),
        high_hz=float(held["frequency_max"]),
        norm=base.norm,
        scale=base.scale,
    )
    if mel.mels != audio.mels:
        raise InputError(
            f"{source.name}: the extractor gives {mel.mels} mel bins and the encoder takes "
            f"{audio.mels}; its files must be of one model."
        )
    return mel, float(held["max_length_s"]), "repeat" if held["padding"] == "repeatpad" else "zeros"
