"""Trained models on disk: which folder holds one, what it says of itself, its weights.

A model lies in the folder of a run, or in one that `export` wrote; `inference` and `export` read
both through here.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from spatial_clap_jax.configs_io import describing, from_plain, refuse_outsized
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.pretrained.owl_vit import OWL_VIT
from spatial_clap_jax.small_files import json_of, unsealed
from spatial_clap_jax.systems.base import System, Trainable, Variables, in_use, reads_texts

# What an exported folder holds; `export` writes it.
FORMATS = ("stablehlo", "safetensors")
TEXT_ENCODER = "text-encoder"
FORMAT_VERSION = 1
MANIFEST, TOKENIZER, CARD = "model.json", "tokenizer.json", "README.md"
PROGRAMS = {"audio": "audio.stablehlo", "text": "text.stablehlo"}
TENSORS = "model.safetensors"
# An export of a SELD network: what its manifest says under 'task', and its only program.
EVENTS, TRACKS_PROGRAM = "events", "tracks.stablehlo"
_MANIFEST_KEYS = {
    "format": str,
    "format_version": int,
    "step": int,
    "weights_sha256": str,
    "preprocessing": dict,
    "files": dict,
    "experiment": dict,
}
# Samples: ten minutes at the highest rate of audio files.
LONGEST_WINDOW = 600 * 384_000
_PREPROCESSING_KEYS = ("sample_rate_hz", "channels", "window_samples", "max_tokens")


@dataclass(frozen=True)
class TrainedModel:
    """Weights, and all that rebuilds the model around them.

    Attributes:
      experiment: the experiment as plain JSON, see `configs_io`.
      system: built from it, computing in float32.
      variables: parameters and running statistics as NumPy arrays, the moving average where
        the run kept one; and what only a training needs, where it is there.
      tokenizer: of its texts; None where it has no text encoder.
      step: training steps behind it.
      provenance: the data's fingerprint, the versions of the training and what made its sentence
        embeddings, as far as known.
    """

    experiment: dict[str, Any]
    system: Trainable
    variables: Variables
    tokenizer: Tokenizer | None
    step: int
    provenance: dict[str, Any]

    @property
    def audio_text(self) -> System:
        """The system of an audio-text model.

        Raises:
          InputError: the model embeds nothing.
        """
        if not isinstance(self.system, System):
            raise InputError(
                f"{self.experiment['name']}: is a {type(self.system).__name__}, which locates "
                "events and embeds nothing; use `spatial-clap detect`, or give an audio-text model."
            )
        return self.system


def find_model(path: str | Path) -> Path:
    """The folder that holds the model which `path` names: itself, or the export inside it.

    Raises:
      InputError: it holds no model, or exports of different weights.
    """
    folder = Path(path).expanduser()
    # Not `Path.is_dir`, which raises for a name that is too long.
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "no such folder"
        raise InputError(f"{path}: {what}; give the folder of a run or of an export.")
    if (folder / "description.json").is_file() or (folder / MANIFEST).is_file():
        return folder
    inside = [folder / name for name in FORMATS if (folder / name / MANIFEST).is_file()]
    for name in (TEXT_ENCODER, OWL_VIT):
        if not inside and (folder / name / MANIFEST).is_file():
            return folder / name
    if not inside:
        raise InputError(
            f"{path}: holds neither a run (description.json) nor an export ({MANIFEST}); give "
            "the folder of a run or of an export."
        )
    weights = {read_manifest(place)["weights_sha256"] for place in inside}
    if len(weights) > 1:
        raise InputError(
            f"{path}: holds exports of different weights; give one of "
            f"{' and '.join(map(str, inside))}."
        )
    return inside[0]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an export says of itself, its keys checked; the files beside it are not looked at.

    Raises:
      InputError: model.json cannot be read, is none of ours, or is newer than this library.
    """
    path = folder / MANIFEST
    try:
        manifest = json_of(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({one_line(error)}); copy the export again."
        ) from error
    try:
        manifest = unsealed(manifest) if isinstance(manifest, dict) else manifest
    except ValueError as error:
        raise InputError(f"{path}: {error}; copy the export again.") from error
    wrong = [
        key
        for key, kind in _MANIFEST_KEYS.items()
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind)
    ]
    if not wrong:
        held = manifest["preprocessing"]
        wrong = [
            f"preprocessing.{key}" for key in _PREPROCESSING_KEYS if not _is_count(held.get(key))
        ]
        wrong += [] if _is_count(manifest["step"]) else ["step"]
    if isinstance(manifest, dict) and manifest.get("format") == OWL_VIT:
        raise InputError(
            f"{folder}: holds an OWL-ViT, which embeds no audio; spatial_clap_jax.load_detector "
            "opens it."
        )
    if wrong and (not isinstance(manifest, dict) or manifest.get("format") != TEXT_ENCODER):
        raise InputError(f"{path}: lacks {', '.join(wrong)}; copy the export again.")
    if manifest["format"] == TEXT_ENCODER:
        raise InputError(
            f"{folder}: holds a text encoder alone; spatial_clap_jax.load_text opens it, and "
            "train takes it as --init.text."
        )
    if manifest["format"] not in FORMATS or manifest["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{path}: is of format {manifest['format']!r}, version {manifest['format_version']}; "
            f"this library reads {' and '.join(FORMATS)} up to version {FORMAT_VERSION}: update it."
        )
    return manifest


def described_experiment(folder: Path) -> dict[str, Any]:
    """The plain experiment of the model in a folder, looked up without reading its weights.

    Args:
      folder: see `find_model`.

    Raises:
      InputError: what describes the model cannot be read.
    """
    from spatial_clap_jax.train.description import read_description

    is_export = (folder / MANIFEST).is_file()
    found = (read_manifest(folder) if is_export else read_description(folder)).get("experiment")
    found = found if isinstance(found, dict) else {}
    return {**found, "model": found["model"] if isinstance(found.get("model"), dict) else {}}


def checked_manifest(folder: Path, step: int | None = None) -> dict[str, Any]:
    """`read_manifest`, and every file that it lists is what it was when it was written.

    Args:
      folder: of the export.
      step: what its step must be, if anything.

    Raises:
      InputError: a file is missing or changed (the model card may be), or the step is another.
    """
    manifest = read_manifest(folder)
    if step is not None and step != manifest["step"]:
        raise InputError(f"{folder}: holds step {manifest['step']}, not {step}; leave --step out.")
    programs = [TRACKS_PROGRAM] if manifest.get("task") == EVENTS else [*PROGRAMS.values()]
    needed = programs if manifest["format"] == "stablehlo" else [TENSORS]
    if manifest["preprocessing"]["max_tokens"]:
        needed.append(TOKENIZER)
    for name in needed:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: is missing from this export; copy the export again.")
        if sha256(path) != manifest["files"].get(name):
            raise InputError(
                f"{path}: its SHA-256 checksum is not the one in {MANIFEST}, so it is damaged or "
                "of another export; copy the export again."
            )
    return manifest


def sha256(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_trained(path: str | Path, step: int | None = None) -> TrainedModel:
    """Reads the weights of a run or of a safetensors export, and builds their system.

    Args:
      path: see `inference.load`.
      step: checkpoint of a run; the newest when None, what it drew before its first step when 0.

    Raises:
      InputError: there are no weights, they cannot be read, or they do not fit their system; step
        0 of a run that did not draw all of them.
    """
    folder = find_model(path)
    if (folder / MANIFEST).is_file():
        return _read_tensors(folder, checked_manifest(folder, step))
    from spatial_clap_jax.train.checkpoint import load_params
    from spatial_clap_jax.train.description import read_description

    description = read_description(folder)
    source = folder / "description.json"
    lacking = [key for key in ("experiment", "tokenizer", "max_tokens") if key not in description]
    if lacking:
        raise InputError(f"{source}: lacks {', '.join(lacking)}; restore the file.")
    system = _build_system(source, description["experiment"])
    if step == 0:
        trees: dict[str, Any] = {"variables": _first_draw(folder, system, description)}
    else:
        trees, step = load_params(folder, step, ("variables", "average"))
    averaged = jax.tree.leaves(trees.get("average", {}))
    variables = trees["average" if averaged else "variables"]
    tokenizer = None
    if reads_texts(system):
        with _naming(source):
            if not isinstance(description["tokenizer"], str) or not _is_count(
                description["max_tokens"]
            ):
                raise InputError("tokenizer is no text, or max_tokens no count; restore the file.")
            tokenizer = Tokenizer.from_json(description["tokenizer"], description["max_tokens"])
            _check_vocabulary(tokenizer, system)
    return TrainedModel(
        experiment=description["experiment"],
        system=system,
        # What only the training needs is not averaged.
        variables=_fitted(folder, system, flatten({**trees["variables"], **variables})),
        tokenizer=tokenizer,
        step=step,
        provenance={
            "data_fingerprint": description.get("data_fingerprint"),
            "trained_with": description.get("versions"),
            "sentences": _learnt_sentences(description.get("dataset")),
        },
    )


def _learnt_sentences(dataset: Any) -> dict[str, Any] | None:
    """Encoder and fingerprint of the sentence embeddings of a training; None without such."""
    held = dataset.get("sentences") if isinstance(dataset, dict) else None
    if not isinstance(held, dict):
        return None
    return {key: held.get(key) for key in ("encoder", "fingerprint")}


def _first_draw(folder: Path, system: Trainable, description: Mapping[str, Any]) -> Variables:
    """What a run drew before its first step, which is not in its checkpoints."""
    experiment = description["experiment"]
    init = experiment.get("init", {})
    given = [name for name in ("model", "audio", "text", "branch") if init.get(name)]
    if given:
        raise InputError(
            f"{folder}: step 0 is what a run draws, and this one started from --init.{given[0]} "
            f"{init[given[0]]}; give that."
        )
    return system.init(jax.random.key(experiment.get("seed", 0)))


def _read_tensors(folder: Path, manifest: dict[str, Any]) -> TrainedModel:
    if manifest["format"] != "safetensors":
        raise InputError(
            f"{folder}: holds compiled programs, out of which weights cannot be read; give the "
            "folder of the run or of its safetensors export."
        )
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / TENSORS)
    # NumPy has no name for some of its types.
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / TENSORS}: cannot be read ({one_line(error)}); copy the export again."
        ) from error
    system = _build_system(folder / MANIFEST, manifest["experiment"])
    provenance = manifest.get("provenance")
    max_tokens, tokenizer = manifest["preprocessing"]["max_tokens"], None
    if max_tokens:
        tokenizer = Tokenizer.from_file(folder / TOKENIZER, max_tokens)
        with _naming(folder / TOKENIZER):
            _check_vocabulary(tokenizer, system)
    return TrainedModel(
        experiment=manifest["experiment"],
        system=system,
        variables=_fitted(folder / TENSORS, system, tensors),
        tokenizer=tokenizer,
        step=manifest["step"],
        provenance=provenance if isinstance(provenance, dict) else {},
    )


def _check_vocabulary(tokenizer: Tokenizer, system: Any) -> None:
    """An id beyond the table of embeddings would be read as another, in silence."""
    known, longest = system.vocabulary, system.max_tokens
    if tokenizer.vocabulary_size > known or tokenizer.max_tokens > longest:
        raise InputError(
            f"{tokenizer.vocabulary_size} tokens in texts of {tokenizer.max_tokens}, and the model "
            f"knows {known} in texts of {longest}; give the files of one model."
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LONGEST_WINDOW


def _build_system(source: Path, experiment: dict[str, Any]) -> Trainable:
    from spatial_clap_jax.train.experiment import Experiment

    described = experiment.get("model") if isinstance(experiment, dict) else None
    refuse_outsized(described, source)
    with _naming(source):
        built = from_plain(Experiment, experiment)
    with describing(source):
        system = replace(built, precision="float32").build_trainable()
    _refuse_long_windows(source, system)
    return system


def _refuse_long_windows(source: Path, system: Any) -> None:
    """Recordings are filled up to the window, so that none may be longer than memory."""
    samples = getattr(system, "window_samples", 0)
    if not 0 <= samples <= LONGEST_WINDOW:
        raise InputError(
            f"{source}: a window of {samples} samples; it must lie within 1 and {LONGEST_WINDOW}: "
            "restore the file."
        )


def flatten(tree: Any) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Arrays of nested dicts by their '/'-joined path."""
    return {path: np.asarray(leaf) for path, leaf in _leaves(tree)}


def _fitted(
    source: Path, system: Trainable, arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> Variables:
    """The arrays as the tree that the system wants, each of its shape and dtype."""
    with describing(source):
        shapes = jax.eval_shape(system.init, jax.random.key(0))
    there = {path.split("/")[0] for path in arrays}
    # What only a training needs may be left out, but not in part.
    shapes = in_use(shapes) | {name: tree for name, tree in shapes.items() if name in there}
    wanted = {path: (leaf.shape, leaf.dtype) for path, leaf in _leaves(shapes)}
    held = {path: (array.shape, array.dtype) for path, array in arrays.items()}
    for path in sorted(wanted.keys() | held.keys()):
        if wanted.get(path) != held.get(path):
            raise InputError(
                f"{source}: {path} is {_kind(held.get(path))} there and "
                f"{_kind(wanted.get(path))} in the model that it describes; give a whole copy "
                "of one run or export."
            )
    treedef = jax.tree.structure(shapes)
    return jax.tree.unflatten(treedef, [arrays[path] for path, _ in _leaves(shapes)])


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _kind(described: tuple[tuple[int, ...], Any] | None) -> str:
    return "absent" if described is None else f"{described[1]}{list(described[0])}"


@contextlib.contextmanager
def _naming(source: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def one_line(error: Exception) -> str:
    """The text of an error, shortened, for a message of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
