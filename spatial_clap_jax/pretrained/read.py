"""Any source of weights, told apart by what it holds."""

from pathlib import Path

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.pretrained.files import open_source
from spatial_clap_jax.pretrained.hf_clap import read_hf_clap
from spatial_clap_jax.pretrained.hf_text import read_hf_text
from spatial_clap_jax.pretrained.laion_clap import laion_clap_of
from spatial_clap_jax.pretrained.ours import find_export, read_exported_audio, read_exported_text
from spatial_clap_jax.pretrained.spatial_clap import (
    SpatialClapWeights,
    is_spatial_clap,
    spatial_clap_of,
)
from spatial_clap_jax.pretrained.towers import AudioTower, ClapWeights, TextTower


def read_weights(source: str | Path) -> ClapWeights | SpatialClapWeights | TextTower:
    """Reads published weights, whichever they are.

    Args:
      source: a folder of Hugging Face's (ClapModel, RoBERTa, BERT, sentence-transformers) or its
        name on the hub; a `.pt` or `.safetensors` of LAION-CLAP or Spatial-CLAP.

    Raises:
      InputError: it is none of these, or a tensor is missing, unknown or does not fit.
    """
    opened = open_source(source)
    if opened.file is not None:
        tensors = opened.tensors()
        read = spatial_clap_of if is_spatial_clap(tensors) else laion_clap_of
        return read(tensors, str(source))
    config = opened.json("config.json")
    if isinstance(config, dict) and config.get("model_type") == "clap":
        return read_hf_clap(source)
    return read_hf_text(source)


def read_audio_tower(source: str | Path) -> AudioTower:
    """The content encoder of published weights, or of a model that this library wrote.

    Raises:
      InputError: `source` has none, or cannot be read.
    """
    export = find_export(source)
    if export is not None:
        return read_exported_audio(export)
    weights = read_weights(source)
    if isinstance(weights, TextTower):
        raise InputError(f"{source}: is a text encoder; give a CLAP for the audio side.")
    return weights.audio


def read_text_tower(source: str | Path) -> TextTower:
    """The text encoder of published weights, or of a model that this library wrote.

    Raises:
      InputError: `source` has none, or cannot be read.
    """
    export = find_export(source)
    if export is not None:
        return read_exported_text(export)
    weights = read_weights(source)
    return weights if isinstance(weights, TextTower) else weights.text
