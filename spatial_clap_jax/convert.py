"""Published weights into folders of ours: `spatial-clap convert`.

OUT/safetensors/    a whole model: `spatial_clap_jax.load(OUT)`
OUT/text-encoder/   a text encoder alone: `spatial_clap_jax.load_text(OUT)`
"""

import dataclasses
import importlib.metadata
import platform
from pathlib import Path

from safetensors.numpy import save_file

from spatial_clap_jax import __version__
from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import write_model
from spatial_clap_jax.folders import check_place, write_folder
from spatial_clap_jax.model_card import text_card
from spatial_clap_jax.pretrained.mapping import Report, nested
from spatial_clap_jax.pretrained.read import read_weights
from spatial_clap_jax.pretrained.spatial_clap import SpatialClapWeights
from spatial_clap_jax.pretrained.towers import ClapWeights, TextTower, below
from spatial_clap_jax.stored import (
    CARD,
    FORMAT_VERSION,
    TENSORS,
    TEXT_ENCODER,
    TOKENIZER,
    TrainedModel,
)
from spatial_clap_jax.systems.clap import ClapConfig
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train.experiment import Experiment


def convert(
    source: str | Path, out: str | Path, tokenizer: str | Path | None = None
) -> tuple[list[Path], Report]:
    """Converts published weights into a folder that this library opens.

    Args:
      source: a folder of Hugging Face's (ClapModel, RoBERTa, BERT, sentence-transformers), or its
        name on the hub; a `.pt` or `.safetensors` of LAION-CLAP or Spatial-CLAP.
      out: folder to write in; made when missing.
      tokenizer: a tokenizer.json, or a folder with the files of one, for sources that bring none
        (a `.pt` wants that of roberta-base).

    Returns:
      The files written, and what became of every tensor.

    Raises:
      InputError: the source cannot be read, brings no tokenizer, or `out` holds something else.
    """
    weights = read_weights(source)
    held = weights.tokenizer if isinstance(weights, TextTower) else weights.text.tokenizer
    text = weights if isinstance(weights, TextTower) else weights.text
    if tokenizer is not None:
        held = _read_tokenizer(Path(tokenizer), text.config.max_tokens)
    if held is None:
        raise InputError(
            f"{source}: brings no tokenizer; give that of its text encoder by --tokenizer "
            "(roberta-base's for LAION-CLAP and Spatial-CLAP)."
        )
    text = dataclasses.replace(text, tokenizer=held)
    if isinstance(weights, TextTower):
        return _write_text(text, out), weights.report
    check_place(out, "safetensors")
    return write_model(_model(weights, held), out, "safetensors"), weights.report


def _model(weights: ClapWeights | SpatialClapWeights, tokenizer: Tokenizer) -> TrainedModel:
    audio, text = weights.audio, weights.text
    if isinstance(weights, ClapWeights):
        shape = ClapConfig(
            sample_rate_hz=audio.mel.sample_rate_hz,
            window_s=weights.window_s,
            padding=weights.padding,
            content=audio.config,
            content_mel=audio.mel,
            text=text.config,
            joint_width=weights.joint_width,
        )
    else:
        shape = SpatialClapConfig(
            content=audio.config,
            content_mel=audio.mel,
            text=text.config,
            fusion_width=weights.joint_width,
            joint_width=weights.joint_width,
        )
    name = Path(weights.report.source).name
    experiment = Experiment(name=name, model=shape)
    arrays = {**below(audio.arrays, "content"), **below(text.arrays, "text"), **weights.arrays}
    return TrainedModel(
        experiment=to_plain(experiment),
        system=dataclasses.replace(experiment, precision="float32").build_system(),
        variables=nested(arrays),
        tokenizer=tokenizer,
        step=0,
        provenance={"converted_from": weights.report.source},
    )


def _write_text(tower: TextTower, out: str | Path) -> list[Path]:
    name = Path(tower.report.source).name
    assert tower.tokenizer is not None
    tokenizer = tower.tokenizer.to_json()

    def fill(folder: Path) -> None:
        save_file(below(tower.arrays, "text"), folder / TENSORS)
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        (folder / CARD).write_text(text_card(name, tower), encoding="utf-8")

    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "experiment": {"model": {"text": to_plain(tower.config)}},
        "provenance": {"converted_from": tower.report.source},
        "exported_with": {
            "python": platform.python_version(),
            "spatial_clap_jax": __version__,
            "safetensors": importlib.metadata.version("safetensors"),
        },
    }
    return write_folder(out, TEXT_ENCODER, fill, manifest)


def _read_tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    found = (
        Tokenizer.from_folder(path, max_tokens)
        if path.is_dir()
        else Tokenizer.from_file(path, max_tokens)
    )
    if found is None:
        raise InputError(f"--tokenizer {path}: holds no tokenizer; give a tokenizer.json.")
    return found
