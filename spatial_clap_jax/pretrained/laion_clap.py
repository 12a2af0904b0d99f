"""LAION-CLAP's own `.pt` files: the model of `hf_clap` under its first names.

A file holds no configuration; the shape is read off the tensors.

Reference: the names of LAION-AI/CLAP (`htsat.py`, `model.py`).
"""

import re
from pathlib import Path

import numpy as np

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import (
    CLAP_FUSION_LOG_MEL,
    LAION_CLAP_LOG_MEL,
    LogMelConfig,
    mel_filterbank,
)
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.pretrained.files import count_numbered, open_source
from spatial_clap_jax.pretrained.hf_clap import head_entries, head_shapes
from spatial_clap_jax.pretrained.hf_text import (
    TEXT_LEFT,
    current_name,
    text_entries,
    text_shapes,
)
from spatial_clap_jax.pretrained.htsat import HTSAT_LEFT, LAION, htsat_entries, htsat_shapes
from spatial_clap_jax.pretrained.mapping import Left, Taking, Tensors, renamed
from spatial_clap_jax.pretrained.towers import AudioTower, ClapWeights, TextTower

# The front end is frozen there, and a layer of the model.
LAION_AUDIO_LEFT = (
    *HTSAT_LEFT,
    Left(r".*(spectrogram_extractor|logmel_extractor)\..*", "front end, ours is equal"),
)
_LEFT = (
    *TEXT_LEFT,
    *LAION_AUDIO_LEFT,
    Left(r"(audio|text)_transform\..*", "heads of another loss"),
)
_WIDTH_OF_A_HEAD = 64
_ROBERTA_OFFSET = 2


def read_laion_clap(source: str | Path) -> ClapWeights:
    """Reads a checkpoint of LAION-CLAP's training code: HTSAT, RoBERTa, projections, scales.

    Args:
      source: a `.pt` file (needs PyTorch), or its state dict as `.safetensors`.

    Returns:
      The whole CLAP, without a tokenizer: it is that of roberta-base, which the file has not.

    Raises:
      InputError: a tensor is missing, unknown or does not fit, or its front end is not ours.
    """
    return laion_clap_of(open_source(source).tensors(), str(source))


def laion_clap_of(tensors: Tensors, source: str) -> ClapWeights:
    """`read_laion_clap` of tensors that are read already; `source` names them in errors."""
    tensors = renamed(tensors, _plain_name)
    for name in ("audio_branch.bn0.weight", "text_branch.embeddings.word_embeddings.weight"):
        if name not in tensors:
            raise InputError(
                f"{source}: lacks {name}, so it is no LAION-CLAP of HTSAT and RoBERTa; give one "
                "of these."
            )
    audio = htsat_shape(tensors, "audio_branch.", source)
    text = roberta_shape(tensors, "text_branch.", source)
    mel = laion_front_end(tensors, "audio_branch.", audio, source)
    taking = Taking(source, tensors)
    audio_arrays = taking.take(htsat_entries(audio, "audio_branch.", LAION), htsat_shapes(audio))
    text_arrays = taking.take(text_entries(text, "text_branch."), text_shapes(text))
    joint = int(np.shape(tensors.get("audio_projection.2.weight", ((0,),)))[0])
    arrays = taking.take(head_entries("0", "2"), head_shapes(audio.width, text.width, joint))
    report = taking.finish(_LEFT)
    return ClapWeights(
        audio=AudioTower(audio, mel, audio_arrays, report),
        text=TextTower(text, text_arrays, None, report),
        arrays=arrays,
        joint_width=joint,
        window_s=10.0,
        padding="repeat",
        report=report,
    )


def htsat_shape(tensors: Tensors, prefix: str, source: str) -> HtsatConfig:
    """The shape of an HTSAT under LAION's names, read off its tensors.

    Args:
      tensors: of a state dict.
      prefix: what stands before the encoder's names, with its dot.
      source: for errors.

    Raises:
      InputError: a tensor that tells of the shape is missing.
    """
    try:
        block = f"{prefix}layers.0.blocks.0."
        embed_dim, _, patch, _ = tensors[f"{prefix}patch_embed.proj.weight"].shape
        stages = count_numbered(tensors, rf"{re.escape(prefix)}layers\.(\d+)\.")
        tables = [
            tensors[f"{prefix}layers.{stage}.blocks.0.{LAION.position_bias}"]
            for stage in range(stages)
        ]
        masks = [name for name in tensors if name.startswith(prefix) and "attn_mask" in name]
        window = (round(len(tables[0]) ** 0.5) + 1) // 2
        # A mask of the first stage has one row a window of the grid.
        first = [tensors[name] for name in masks if name.startswith(f"{prefix}layers.0.")]
        side = round(len(first[0]) ** 0.5) * window if first else HtsatConfig().side(0)
        reduce = f"{prefix}patch_embed.fusion_model.local_att.0.weight"
        fusion = reduce in tensors
        return HtsatConfig(
            spec_size=side * patch,
            mels=len(tensors[f"{prefix}{LAION.input_norm}.weight"]),
            patch=patch,
            embed_dim=embed_dim,
            depths=tuple(
                count_numbered(tensors, rf"{re.escape(prefix)}layers\.{stage}\.blocks\.(\d+)\.")
                for stage in range(stages)
            ),
            heads=tuple(table.shape[1] for table in tables),
            window=window,
            mlp_ratio=len(tensors[f"{block}{LAION.up}.weight"]) / embed_dim,
            fusion=fusion,
            fusion_reduction=embed_dim // len(tensors[reduce]) if fusion else 4,
        )
    except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{source}: the shape of its HTSAT cannot be told ({error} is missing or odd); give a "
            "whole checkpoint."
        ) from error


def roberta_shape(tensors: Tensors, prefix: str, source: str) -> TextConfig:
    """The shape of a RoBERTa under Hugging Face's names, read off its tensors.

    Args:
      tensors: of a state dict.
      prefix: what stands before the encoder's names, with its dot.
      source: for errors.

    Raises:
      InputError: a tensor that tells of the shape is missing.
    """
    try:
        vocabulary, width = tensors[f"{prefix}embeddings.word_embeddings.weight"].shape
        rows = len(tensors[f"{prefix}embeddings.position_embeddings.weight"])
        types = len(tensors[f"{prefix}embeddings.token_type_embeddings.weight"])
        mlp_width = len(tensors[f"{prefix}encoder.layer.0.intermediate.dense.weight"])
        layers = count_numbered(tensors, rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.")
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{source}: the shape of its text encoder cannot be told ({error} is missing or odd); "
            "give a whole checkpoint."
        ) from error
    return TextConfig(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        # No tensor tells the heads; every RoBERTa that was published has them this wide.
        heads=max(width // _WIDTH_OF_A_HEAD, 1),
        mlp_width=mlp_width,
        max_tokens=rows - _ROBERTA_OFFSET,
        positions="absolute",
        position_offset=_ROBERTA_OFFSET,
        token_types=types,
        pooling="pooler",
        layer_norm_epsilon=1e-5,
    )


def laion_front_end(tensors: Tensors, prefix: str, audio: HtsatConfig, source: str) -> LogMelConfig:
    """LAION's front end, compared with the one in the file where there is one.

    Raises:
      InputError: the file's mel bands are others.
    """
    mel = CLAP_FUSION_LOG_MEL if audio.fusion else LAION_CLAP_LOG_MEL
    # A fused model has the layer too, but is trained on what a loader computed.
    held = tensors.get(f"{prefix}logmel_extractor.melW")
    if held is None or audio.fusion:
        return mel
    ours = mel_filterbank(
        mel.sample_rate_hz, mel.n_fft, mel.mels, mel.low_hz, mel.high_hz, mel.norm, mel.scale
    )
    if held.shape != ours.shape or not np.allclose(held, ours, atol=1e-6):
        raise InputError(
            f"{source}: its mel bands are not LAION-CLAP's ({mel.mels} of {mel.low_hz:g} to "
            f"{mel.high_hz:g} Hz at {mel.sample_rate_hz} Hz); give a model with that front end."
        )
    return mel


def _plain_name(name: str) -> str:
    return current_name(name.removeprefix("module."))
