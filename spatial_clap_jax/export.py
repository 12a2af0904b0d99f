"""What others load: a trained model as compiled programs, or as plain tensors.

    OUT/stablehlo/     audio.stablehlo text.stablehlo  model.json tokenizer.json README.md
    OUT/safetensors/   model.safetensors               model.json tokenizer.json README.md
    OUT/hf-clap/       model.safetensors config.json preprocessor_config.json tokenizer.json ...
    OUT/m2d-clap/      m2d_clap_vit_base-80x1001p16x16p16k....safetensors            ...

The programs hold weights and front end, take any batch size, and run wherever JAX does, without
this library. The tensors are for those who build on the model: `spatial_clap_jax.load` rebuilds it
from the experiment in model.json. The last two are for other programs: a `ClapModel` folder for
transformers, and the state dict of the public M2D-CLAP.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Shaped
from safetensors.numpy import save_file

from spatial_clap_jax import __version__
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.event_export import write_locator
from spatial_clap_jax.folders import HF_CLAP, M2D_CLAP, check_place, write_folder
from spatial_clap_jax.inference import embedding_functions
from spatial_clap_jax.model_card import CHANNEL_NAMES, model_card
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.pretrained.hf_clap import hf_clap_configs, hf_clap_tensors
from spatial_clap_jax.pretrained.m2d_clap import (
    M2dClapWeights,
    m2d_clap_tensors,
    published_name,
)
from spatial_clap_jax.pretrained.mapping import Report
from spatial_clap_jax.pretrained.towers import AudioTower, ClapWeights, TextTower, inside
from spatial_clap_jax.stored import (
    CARD,
    FORMAT_VERSION,
    FORMATS,
    PROGRAMS,
    TENSORS,
    TOKENIZER,
    TrainedModel,
    flatten,
    read_trained,
)
from spatial_clap_jax.systems.attributes import AttributeRegression
from spatial_clap_jax.systems.base import System
from spatial_clap_jax.systems.clap import Clap
from spatial_clap_jax.systems.m2d_clap import M2dClap
from spatial_clap_jax.systems.seld import Seld
from spatial_clap_jax.systems.spatial_clap import SpatialClap

PLATFORMS = ("cpu", "cuda", "tpu")
Format = Literal["stablehlo", "safetensors", "hf-clap", "m2d-clap"]


def export(run: str | Path, out: str | Path, format: Format, step: int | None = None) -> list[Path]:
    """Writes a trained model into `out/{format}`, whole or not at all.

    An earlier export of the same format is replaced; `out` may hold other things, which stay.

    Args:
      run: folder of a run (its moving average is exported where it kept one), or of a
        safetensors export.
      out: folder to write in; made when missing.
      format: 'stablehlo' (programs of raw waveforms and of token ids, for cpu, cuda and tpu),
        'safetensors' (weights), 'hf-clap' (content and text encoder as a `ClapModel`), or
        'm2d-clap' (an M2D-CLAP's tensors as its public code names them).
      step: checkpoint of a run; the newest when None.

    Returns:
      The files written.

    Raises:
      InputError: no such format, no model in `run`, a model that the format cannot hold, or
        `out/{format}` holds what is not an earlier export.
    """
    if format not in (*FORMATS, HF_CLAP, M2D_CLAP):
        known = ", ".join((*FORMATS, HF_CLAP, M2D_CLAP))
        raise InputError(f"--format {format}: unknown; choose one of {known}.")
    check_place(out, format)
    return write_model(read_trained(run, step), out, format)


def write_model(model: TrainedModel, out: str | Path, format: Format) -> list[Path]:
    """Writes a model as `export` does; see there."""
    if isinstance(model.system, Seld):
        return write_locator(model, out, format, _common_manifest, PLATFORMS)
    width = _embedding_width(model)
    if format == HF_CLAP:
        weights = clap_weights(model)
        configs, tensors = hf_clap_configs(weights), hf_clap_tensors(weights)
        name = TENSORS
    elif format == M2D_CLAP:
        weights = m2d_clap_weights(model)
        configs, tensors = {}, m2d_clap_tensors(weights)
        name = f"{published_name(weights)}.safetensors"
    elif format == "stablehlo":
        _refuse_partial(model.audio_text)

    def fill(folder: Path) -> None:
        if format in (HF_CLAP, M2D_CLAP):
            # transformers wants to know whose layout the tensors have.
            save_file(tensors, folder / name, metadata={"format": "pt"})
            for config, content in configs.items():
                text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
                (folder / config).write_text(text + "\n", encoding="utf-8")
        elif format == "stablehlo":
            _write_programs(model, folder)
        else:
            save_file(flatten(model.variables), folder / TENSORS)
        if model.tokenizer is not None:
            (folder / TOKENIZER).write_text(model.tokenizer.to_json(), encoding="utf-8")
        (folder / CARD).write_text(model_card(model, format, width), encoding="utf-8")

    return write_folder(out, format, fill, _manifest(model, format, width))


def clap_weights(model: TrainedModel) -> ClapWeights:
    """The model as a CLAP: its content and text encoder, and projections into the joint space.

    A Spatial-CLAP has no projection of the content alone: what its fusion makes of it when the
    spatial encoder gives zeros stands for one.

    Raises:
      InputError: the content encoder is no HTSAT, or the projections are not square inside.

    Reference: the zeros are our choice.
    """
    system, arrays = model.audio_text, flatten(model.variables)
    if not isinstance(system, Clap | SpatialClap):
        raise InputError(
            f"hf-clap: ClapModel is monaural, and of {type(system).__name__} no monaural part "
            "would be left that was trained as one; take another --format."
        )
    config, content = system.config, system.config.content
    if not isinstance(config.text, TextConfig):
        raise _told_labels("hf-clap")
    if not isinstance(content, HtsatConfig):
        raise InputError(
            f"hf-clap: the content encoder is {type(content).__name__}, ClapModel's is an HTSAT; "
            "train with one, as `base` does, or take another --format."
        )
    if isinstance(system, SpatialClap):
        if system.config.fusion_width != config.joint_width:
            raise InputError(
                f"hf-clap: the projections are {system.config.fusion_width} wide inside and give "
                f"{config.joint_width}, ClapModel's have one width; train with "
                "--model.fusion-width and --model.joint-width equal."
            )
        heads = _fusion_without_place(arrays, content.width)
    else:
        names = ("audio_projection/", "text_projection/", "logit_scale_audio", "logit_scale_text")
        heads = {
            path: array
            for path, array in arrays.items()
            if path.removeprefix("params/").startswith(names)
        }
    report = Report(model.experiment["name"])
    return ClapWeights(
        audio=AudioTower(content, config.content_mel, inside(arrays, "content"), report),
        text=TextTower(config.text, inside(arrays, "text"), model.tokenizer, report),
        arrays=heads,
        joint_width=config.joint_width,
        window_s=config.window_s,
        padding=system.padding,
        report=report,
    )


def m2d_clap_weights(model: TrainedModel) -> M2dClapWeights:
    """The model as the public M2D-CLAP; a head of categories has no place in it and is left out.

    Raises:
      InputError: another system, or a joint space of another width than the encoder's.
    """
    system, arrays = model.audio_text, flatten(model.variables)
    if not isinstance(system, M2dClap):
        raise InputError(
            f"m2d-clap: the model is {type(system).__name__}, no M2D-CLAP; take another --format."
        )
    config = system.config
    if config.contrast_weight and config.joint_width != config.content.width:
        raise InputError(
            f"m2d-clap: the joint space is {config.joint_width} wide and the encoder "
            f"{config.content.width}, the public model's have one width; train with "
            "--model.joint-width of that."
        )
    # Where the target was left in its run, the predictor is of no use.
    predictor = config.predictor if any(path.startswith("target/") for path in arrays) else None
    parts = ["audio_projection/", "text_projection/", "logit_scale"]
    parts += ["predictor/"] if predictor else []
    heads = {
        path: array
        for path, array in arrays.items()
        if path.startswith("target/") or path.removeprefix("params/").startswith(tuple(parts))
    }
    report = Report(model.experiment["name"])
    params = {path: array for path, array in arrays.items() if path.startswith("params/")}
    text, has_clap = config.text, bool(config.contrast_weight)
    tower = None
    if has_clap and isinstance(text, TextConfig):
        tower = TextTower(text, inside(params, "text"), None, report)
    return M2dClapWeights(
        audio=AudioTower(
            config.content,
            config.mel,
            inside(params, "content"),
            report,
            config.normalisation or (0.0, 1.0),
        ),
        text=tower,
        projector=config.projector if has_clap else None,
        sentence_width=text.width if has_clap and text.width != config.joint_width else None,
        predictor=predictor,
        arrays=heads,
        report=report,
    )


def _fusion_without_place(arrays: dict[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    heads = {
        path.replace("fusion", "audio_projection"): array
        for path, array in arrays.items()
        if path.startswith(("params/fusion/", "params/text_projection/"))
    }
    first = "params/audio_projection/hidden/kernel"
    heads[first] = np.ascontiguousarray(heads[first][:width])
    scale = arrays["params/logit_scale"]
    return {**heads, "params/logit_scale_audio": scale, "params/logit_scale_text": scale}


def _refuse_partial(system: System) -> None:
    if isinstance(system, AttributeRegression):
        raise InputError(
            "--format stablehlo: pre-trained spatial attributes have no text program; take "
            "--format safetensors, or the run itself, for --init.branch."
        )
    if isinstance(system, SpatialClap) and not system.reads:
        raise _told_labels("stablehlo")
    if isinstance(system, Clap) and system.config.content.fusion:
        raise InputError(
            "--format stablehlo: a fused CLAP embeds a long recording as a whole, which a program "
            "of one length cannot; take --format safetensors."
        )
    if isinstance(system, M2dClap):
        raise InputError(
            "--format stablehlo: an M2D-CLAP embeds a recording of any length as a whole, which a "
            "program of one length cannot; take --format safetensors."
        )


def _told_labels(format: str) -> InputError:
    return InputError(
        f"--format {format}: this Spatial-CLAP was told labels and has no text side; take --format "
        "safetensors, or the run itself, for --init.model."
    )


def _write_programs(model: TrainedModel, folder: Path) -> None:
    system = model.audio_text
    audio, text = embedding_functions(system)
    # Weights held by NumPy would change the arithmetic of models, for one by float64.
    variables = jax.tree.map(jnp.asarray, model.variables)
    (b,) = jax_export.symbolic_shape("b")
    tokens = (b, system.max_tokens)
    programs = {
        "audio": (
            lambda batch: audio(variables, batch),
            (jax.ShapeDtypeStruct((b, system.channels, system.window_samples), jnp.float32),),
        ),
        "text": (
            lambda ids, mask: text(variables, ids, mask),
            (jax.ShapeDtypeStruct(tokens, jnp.int32), jax.ShapeDtypeStruct(tokens, jnp.bool_)),
        ),
    }
    for name, (function, arguments) in programs.items():
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
        (folder / PROGRAMS[name]).write_bytes(exported.serialize())


def _manifest(model: TrainedModel, format: str, width: int) -> dict[str, Any]:
    """What the folder of an audio-text model says of itself, but for its files."""
    system, tokenizer = model.audio_text, model.tokenizer
    preprocessing = {
        "sample_rate_hz": system.sample_rate_hz,
        "channels": system.channels,
        "channel_order": CHANNEL_NAMES.get(system.channels),
        "window_samples": system.window_samples,
        "full_scale": 1.0,
        "padding": system.padding,
        "max_tokens": system.max_tokens if tokenizer else 0,
        "begin_id": tokenizer and tokenizer.begin_id,
        "end_id": tokenizer and tokenizer.end_id,
        "pad_id": tokenizer and tokenizer.pad_id,
    }
    return {
        **_common_manifest(model, preprocessing),
        "embedding_width": width,
        "calling_convention": _calling_convention(model, width) if format == "stablehlo" else None,
    }


def _common_manifest(model: TrainedModel, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": model.experiment["name"],
        "step": model.step,
        "preprocessing": dict(preprocessing),
        "weights_sha256": _weights_sha256(flatten(model.variables)),
        "provenance": model.provenance,
        "exported_with": {
            "python": platform.python_version(),
            "spatial_clap_jax": __version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        },
        # The tokenizer lies beside; the path that it once came from says nothing to others.
        "experiment": {**model.experiment, "tokenizer": None},
    }


def _embedding_width(model: TrainedModel) -> int:
    system = model.audio_text
    batch = jax.ShapeDtypeStruct((1, system.channels, system.window_samples), jnp.float32)
    return jax.eval_shape(system.embed_audio, model.variables, batch).shape[1]


def _calling_convention(model: TrainedModel, width: int) -> dict[str, Any]:
    system = model.audio_text
    waveform = ["b", system.channels, system.window_samples]
    tokens = ["b", system.max_tokens]
    result = {"embedding": {"dtype": "float32", "shape": ["b", width], "norm": 1.0}}
    return {
        "platforms": list(PLATFORMS),
        "audio": {
            "file": PROGRAMS["audio"],
            "inputs": {"waveform": {"dtype": "float32", "shape": waveform}},
            "outputs": result,
        },
        "text": {
            "file": PROGRAMS["text"],
            "inputs": {
                "tokens": {"dtype": "int32", "shape": tokens},
                "mask": {"dtype": "bool", "shape": tokens},
            },
            "outputs": result,
        },
    }


def _weights_sha256(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> str:
    """One checksum of all weights, by which exports of the same ones are known."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
