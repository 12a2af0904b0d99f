"""Any source of weights, told apart by what it holds."""

from pathlib import Path

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.pretrained.files import Source, open_source
from spatial_clap_jax.pretrained.hf_clap import read_hf_clap
from spatial_clap_jax.pretrained.hf_text import read_hf_text
from spatial_clap_jax.pretrained.laion_clap import laion_clap_of
from spatial_clap_jax.pretrained.m2d_clap import M2dClapWeights, is_m2d_clap, m2d_clap_of
from spatial_clap_jax.pretrained.ours import find_export, read_exported_audio, read_exported_text
from spatial_clap_jax.pretrained.owl_vit import OwlVitWeights, is_owl_vit, read_owl_vit
from spatial_clap_jax.pretrained.spatial_clap import (
    SpatialClapWeights,
    is_spatial_clap,
    spatial_clap_of,
)
from spatial_clap_jax.pretrained.towers import AudioTower, ClapWeights, TextTower

Weights = ClapWeights | SpatialClapWeights | M2dClapWeights | TextTower | OwlVitWeights


def read_weights(source: str | Path) -> Weights:
    """Reads published weights, whichever they are.

    Args:
      source: a folder of Hugging Face's (ClapModel, RoBERTa, BERT, sentence-transformers,
        OwlViTForObjectDetection) or its name on the hub; a `.pt`, `.pth` or `.safetensors` of
        LAION-CLAP, Spatial-CLAP, M2D-CLAP or M2D, or a folder with one such file.

    Raises:
      InputError: it is none of these, or a tensor is missing, unknown or does not fit.
    """
    opened = _with_its_file(open_source(source))
    if opened.file is not None:
        tensors, name = opened.tensors(), opened.name
        if is_m2d_clap(tensors):
            return m2d_clap_of(tensors, name)
        read = spatial_clap_of if is_spatial_clap(tensors) else laion_clap_of
        return read(tensors, name)
    config = opened.json("config.json")
    if isinstance(config, dict) and config.get("model_type") == "clap":
        return read_hf_clap(source)
    if is_owl_vit(config):
        return read_owl_vit(source)
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
    if isinstance(weights, TextTower | OwlVitWeights):
        what = "a text encoder" if isinstance(weights, TextTower) else "an OWL-ViT"
        raise InputError(f"{source}: is {what}; give a CLAP for the audio side.")
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
    if isinstance(weights, OwlVitWeights):
        raise InputError(f"{source}: is an OWL-ViT; give a CLAP or a text encoder.")
    text = weights if isinstance(weights, TextTower) else weights.text
    if text is None:
        raise InputError(
            f"{source}: has no text encoder, its texts are embedded by another model; give that "
            "model's folder."
        )
    return text


def _with_its_file(opened: Source) -> Source:
    """The one file of weights of a folder that has no config.json, or what was given."""
    if opened.folder is None or (opened.folder / "config.json").is_file():
        return opened
    suffixes = (".pth", ".pt", ".safetensors")
    files = [path for path in opened.folder.iterdir() if path.suffix in suffixes]
    return Source(str(files[0]), None, files[0]) if len(files) == 1 else opened
