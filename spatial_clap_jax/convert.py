"""Published weights into folders of ours: `spatial-clap convert`.

OUT/safetensors/    a whole model: `spatial_clap_jax.load(OUT)`
OUT/text-encoder/   a text encoder alone: `spatial_clap_jax.load_text(OUT)`
OUT/owl-vit/        an OWL-ViT: `spatial_clap_jax.load_detector(OUT)`
"""

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from spatial_clap_jax import __version__
from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import write_model
from spatial_clap_jax.folders import check_place, write_folder
from spatial_clap_jax.model_card import owl_vit_card, text_card
from spatial_clap_jax.models.m2d import PredictorConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.pretrained.m2d_clap import M2dClapWeights
from spatial_clap_jax.pretrained.mapping import Report, nested
from spatial_clap_jax.pretrained.owl_vit import OWL_VIT, OwlVitWeights
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
from spatial_clap_jax.systems.m2d_clap import CachedSentences, M2dClapConfig
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train.experiment import Experiment


def convert(
    source: str | Path, out: str | Path, tokenizer: str | Path | None = None
) -> tuple[list[Path], Report]:
    """Converts published weights into a folder that this library opens.

    Args:
      source: a folder of Hugging Face's (ClapModel, RoBERTa, BERT, sentence-transformers,
        OwlViTForObjectDetection), or its name on the hub; a `.pt`, `.pth` or `.safetensors` of
        LAION-CLAP, Spatial-CLAP or M2D-CLAP.
      out: folder to write in; made when missing.
      tokenizer: a tokenizer.json, or a folder with the files of one, for sources that bring none
        (LAION-CLAP and Spatial-CLAP want that of roberta-base, M2D-CLAP of 2025 that of
        bert-base-uncased).

    Returns:
      The files written, and what became of every tensor.

    Raises:
      InputError: the source cannot be read, brings no tokenizer, or `out` holds something else.
    """
    weights = read_weights(source)
    if isinstance(weights, OwlVitWeights):
        return _write_owl_vit(weights, out, tokenizer), weights.report
    text = weights if isinstance(weights, TextTower) else weights.text
    held = None
    if text is not None:
        held = _read_tokenizer(tokenizer, text.config.max_tokens) if tokenizer else text.tokenizer
        if held is None:
            raise InputError(
                f"{source}: brings no tokenizer; give that of its text encoder by --tokenizer "
                "(roberta-base's for LAION-CLAP and Spatial-CLAP, bert-base-uncased's for "
                "M2D-CLAP)."
            )
        text = dataclasses.replace(text, tokenizer=held)
    elif tokenizer is not None:
        raise InputError(f"--tokenizer {tokenizer}: {source} has no text encoder; leave it out.")
    if isinstance(weights, TextTower):
        assert text is not None
        return _write_text(text, out), weights.report
    check_place(out, "safetensors")
    return write_model(_model(weights, held), out, "safetensors"), weights.report


def _model(
    weights: ClapWeights | SpatialClapWeights | M2dClapWeights, tokenizer: Tokenizer | None
) -> TrainedModel:
    audio = weights.audio
    arrays = {**below(audio.arrays, "content"), **weights.arrays}
    if isinstance(weights, M2dClapWeights):
        shape = _m2d_clap(weights)
        if weights.projector is not None:
            # Stage 2, of which the files of 2025 are, begins with it; cosines do without.
            arrays.setdefault("params/logit_scale", np.log(np.float32(100)))
    elif isinstance(weights, ClapWeights):
        shape = ClapConfig(
            sample_rate_hz=audio.mel.sample_rate_hz,
            window_s=weights.window_s,
            padding=weights.padding,
            content=weights.htsat,
            content_mel=audio.mel,
            text=weights.text.config,
            joint_width=weights.joint_width,
        )
    else:
        shape = SpatialClapConfig(
            content=audio.config,
            content_mel=audio.mel,
            text=weights.text.config,
            fusion_width=weights.joint_width,
            joint_width=weights.joint_width,
        )
    if weights.text is not None:
        arrays |= below(weights.text.arrays, "text")
    name = Path(weights.report.source).name
    experiment = Experiment(name=name, model=shape)
    return TrainedModel(
        experiment=to_plain(experiment),
        system=dataclasses.replace(experiment, precision="float32").build_system(),
        variables=nested(arrays),
        tokenizer=tokenizer,
        step=0,
        provenance={"converted_from": weights.report.source},
    )


def _m2d_clap(weights: M2dClapWeights) -> M2dClapConfig:
    """The system of an M2D-CLAP, set to go on as it was trained."""
    audio, mel = weights.audio, weights.audio.mel
    content = audio.config
    assert isinstance(content, VitConfig)
    if weights.projector is None and weights.predictor is None:
        raise InputError(
            f"{weights.report.source}: holds an encoder alone, which makes no model; a training "
            "takes it as --init.audio."
        )
    joins = weights.projector is not None
    return M2dClapConfig(
        sample_rate_hz=mel.sample_rate_hz,
        window_s=(content.frames - 1) * mel.hop / mel.sample_rate_hz,
        crop_frames=None,
        content=content,
        mel=mel,
        normalisation=audio.normalisation,
        mask_ratio=0.0 if weights.predictor is None else 0.7,
        predictor=weights.predictor or PredictorConfig(),
        contrast_weight=0.0 if not joins else 1.0 if weights.predictor is None else 0.01,
        projector=weights.projector or "mlp",
        joint_width=content.width,
        text=weights.text.config
        if weights.text is not None
        else CachedSentences(weights.sentence_width or content.width),
    )


def _write_text(tower: TextTower, out: str | Path) -> list[Path]:
    name = Path(tower.report.source).name
    assert tower.tokenizer is not None
    tokenizer = tower.tokenizer.to_json()

    def fill(folder: Path) -> None:
        save_file(below(tower.arrays, "text"), folder / TENSORS)
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        (folder / CARD).write_text(text_card(name, tower), encoding="utf-8")

    described = {"experiment": {"model": {"text": to_plain(tower.config)}}}
    return write_folder(out, TEXT_ENCODER, fill, {**_manifest(tower.report), **described})


def _write_owl_vit(weights: OwlVitWeights, out: str | Path, given: str | Path | None) -> list[Path]:
    if given is not None:
        tokenizer = _read_tokenizer(given, weights.config.text.max_tokens)
        weights = dataclasses.replace(weights, tokenizer=tokenizer)
    tokenizer = weights.tokenizer

    def fill(folder: Path) -> None:
        save_file(weights.arrays, folder / TENSORS)
        if tokenizer is not None:
            (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
        name = Path(weights.report.source).name
        (folder / CARD).write_text(owl_vit_card(name, weights), encoding="utf-8")

    described = {"config": to_plain(weights.config)}
    return write_folder(out, OWL_VIT, fill, {**_manifest(weights.report), **described})


def _manifest(report: Report) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": Path(report.source).name,
        "provenance": {"converted_from": report.source},
        "exported_with": {
            "python": platform.python_version(),
            "spatial_clap_jax": __version__,
            "safetensors": importlib.metadata.version("safetensors"),
        },
    }


def _read_tokenizer(given: str | Path, max_tokens: int) -> Tokenizer:
    path = Path(given)
    found = (
        Tokenizer.from_folder(path, max_tokens)
        if path.is_dir()
        else Tokenizer.from_file(path, max_tokens)
    )
    if found is None:
        raise InputError(f"--tokenizer {path}: holds no tokenizer; give a tokenizer.json.")
    return found
