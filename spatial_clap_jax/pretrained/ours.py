"""Encoders of models that this library wrote: `export --format safetensors` and `convert`.

Only `model.json` and `model.safetensors` are looked at, so that a part can be taken out of any
system that has one under the name of `content`, `text` or `branch`.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clap_jax.configs_io import describing, from_plain, refuse_outsized
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.pretrained.files import read_json, read_tensors
from spatial_clap_jax.pretrained.hf_text import text_shapes
from spatial_clap_jax.pretrained.htsat import htsat_shapes
from spatial_clap_jax.pretrained.m2d_clap import vit_shapes
from spatial_clap_jax.pretrained.mapping import Entry, Left, Report, Taking, Tensors
from spatial_clap_jax.pretrained.towers import AudioTower, TextTower, inside
from spatial_clap_jax.small_files import unsealed

# What the systems with a choice of content encoders call its front end and normalisation.
_CONTENT_FIELDS = ("content_mel", "content_normalisation")
MANIFEST, TENSORS, TOKENIZER = "model.json", "model.safetensors", "tokenizer.json"
_NESTED = ("safetensors", "text-encoder")


def find_export(source: str | Path) -> Path | None:
    """The folder of weights that this library wrote, None where `source` is no such folder.

    Raises:
      InputError: it is a run, whose checkpoints are not read here, or holds programs alone.
    """
    folder = Path(source).expanduser()
    if (folder / "description.json").is_file():
        raise InputError(
            f"{source}: is the folder of a run; spatial-clap export {source} --format safetensors "
            "--out DIR, and give DIR."
        )
    for place in (folder, *(folder / name for name in _NESTED)):
        if (place / MANIFEST).is_file() and (place / TENSORS).is_file():
            return place
    if (folder / MANIFEST).is_file() or (folder / "stablehlo" / MANIFEST).is_file():
        raise InputError(
            f"{source}: holds compiled programs, out of which weights cannot be read; export the "
            "run with --format safetensors."
        )
    return None


def read_exported_audio(folder: Path) -> AudioTower:
    """The content encoder of an export.

    Raises:
      InputError: it has none, or another than HTSAT or ViT.
    """
    return audio_tower_of(str(folder), _model(folder), read_tensors(folder / TENSORS))


def audio_tower_of(source: str, model: Mapping[str, Any], arrays: Tensors) -> AudioTower:
    """The content encoder of a model that this library trained.

    Args:
      source: where it comes from, for messages and the report.
      model: what its experiment says of the model, as plain JSON.
      arrays: all its variables by path.

    Raises:
      InputError: it has none, or another than HTSAT or ViT.
    """
    # A field that may hold several kinds says which.
    content = model.get("content")
    content = dict(content) if isinstance(content, dict) else {}
    is_m2d = model.get("kind") == "M2dClapConfig"
    kind = content.pop("kind", "VitConfig" if is_m2d else "HtsatConfig")
    if not content or kind not in ("HtsatConfig", "VitConfig"):
        raise InputError(
            f"{source}: its content encoder is {kind if content else 'absent'}; only an HTSAT or a "
            "ViT can be taken: give a model with one."
        )
    front_end, scaling = ("mel", "normalisation") if is_m2d else _CONTENT_FIELDS
    if not isinstance(model.get(front_end), dict):
        raise InputError(f"{source}: describes no {front_end}; copy it again.")
    refuse_outsized(model, source)
    mel = from_plain(LogMelConfig, model[front_end])
    if kind == "VitConfig":
        vit = from_plain(VitConfig, content)
        with describing(source):
            shapes = vit_shapes(vit)
            mean, deviation = map(float, model.get(scaling) or (0.0, 1.0))
        taken, report = take_part(source, arrays, "content", shapes)
        return AudioTower(vit, mel, taken, report, (mean, deviation))
    htsat = from_plain(HtsatConfig, content)
    with describing(source):
        shapes = htsat_shapes(htsat)
    taken, report = take_part(source, arrays, "content", shapes)
    return AudioTower(htsat, mel, taken, report)


def read_exported_text(folder: Path) -> TextTower:
    """The text encoder of an export, with its tokenizer.

    Raises:
      InputError: it has none, or its tokenizer is gone.
    """
    text = _model(folder).get("text")
    plain = dict(text) if isinstance(text, dict) else {"kind": None}
    # Labels or cached sentences may stand in its place; of old exports it was the only kind.
    if plain.pop("kind", TextConfig.__name__) != TextConfig.__name__:
        raise InputError(f"{folder}: has no text encoder; give the export of a model with one.")
    refuse_outsized(plain, folder / MANIFEST)
    config = from_plain(TextConfig, plain)
    with describing(folder / MANIFEST):
        shapes = text_shapes(config)
    tensors = read_tensors(folder / TENSORS)
    arrays, report = take_part(str(folder), tensors, "text", shapes)
    tokenizer = Tokenizer.from_folder(folder, config.max_tokens)
    if tokenizer is None and TOKENIZER in (read_json(folder / MANIFEST).get("files") or ()):
        raise InputError(
            f"{folder / TOKENIZER}: is missing from this export; copy the export again."
        )
    return TextTower(config, arrays, tokenizer, report)


def read_exported(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The experiment of an export as plain JSON, and all its variables by path.

    Raises:
      InputError: it cannot be read, or describes no model.
    """
    _model(folder)
    return read_json(folder / MANIFEST)["experiment"], read_tensors(folder / TENSORS)


def take_part(
    source: str, arrays: Tensors, part: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], Report]:
    """One part of a model out of its variables, as those of a module by itself.

    Args:
      source: where they come from, for messages and the report.
      arrays: all variables by path.
      part: its name in the model.
      shapes: of every array of the part, by its path inside.

    Returns:
      The arrays, and what became of all of them.

    Raises:
      InputError: an array is missing, has another shape or holds NaN or infinity.
    """
    # What a target network has under the part's name is no part of the model that is used.
    is_own = lambda path: path.split("/")[1:2] == [part] and not path.startswith("target/")  # noqa: E731
    own = inside({path: array for path, array in arrays.items() if is_own(path)}, part)
    rest = {f"other/{path}": array for path, array in arrays.items() if not is_own(path)}
    taking = Taking(source, {**own, **rest})
    taken = taking.take([Entry(path, (path,)) for path in shapes], shapes)
    return taken, taking.finish([Left(r"other/.*", "other parts of the model")])


def _check_whole(folder: Path, manifest: Any) -> None:
    """Refuses a manifest, weights or a tokenizer that differ from what was noted when written."""
    held = manifest if isinstance(manifest, dict) else {}
    try:
        noted = unsealed(held).get("files")
    except ValueError as error:
        raise InputError(f"{folder / MANIFEST}: {error}; copy the export again.") from error
    for name in (TENSORS, TOKENIZER):
        if not isinstance(noted, dict) or name not in noted or not (folder / name).is_file():
            continue
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != noted[name]:
            raise InputError(
                f"{folder / name}: its SHA-256 checksum is not the one in {MANIFEST}, so it is "
                "damaged or of another export; copy the export again."
            )


def _model(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    _check_whole(folder, manifest)
    experiment = manifest.get("experiment") if isinstance(manifest, dict) else None
    model = experiment.get("model") if isinstance(experiment, dict) else None
    if not isinstance(model, dict):
        raise InputError(f"{folder / MANIFEST}: describes no model; copy the export again.")
    return model
