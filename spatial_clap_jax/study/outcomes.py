"""What the tests of one training found, query by query, as a file that a later start reads."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spatial_clap_jax.errors import InputError, not_read_now
from spatial_clap_jax.evaluate import Evaluation, Outcome
from spatial_clap_jax.shown import plain
from spatial_clap_jax.small_files import bytes_of, parsed_json
from spatial_clap_jax.train.description import write_atomically
from spatial_clap_jax.train.resuming import check_unchanged

FILE = "tests.npz"
# DEFLATE makes nothing smaller than this.
_DENSEST = 1100
# Differences that are named, and characters of each.
_LISTED, _LONGEST = 8, 100


@dataclass(frozen=True)
class SceneMap:
    """Scenes of one source, for a map.

    Attributes:
      audio: their embeddings.
      directions: their direction classes.
      categories: their categories.
    """

    audio: Float[np.ndarray, "n d"]
    directions: Int[np.ndarray, "n"]
    categories: list[str]


@dataclass(frozen=True)
class Findings:
    """One training under one condition.

    Attributes:
      outcomes: queries by score.
      confusion: of directions, by true (row) and chosen class; None without such scenes.
      map: embeddings of scenes of one source, where they were kept.
      changes: what had been done to the scenes (`Study.changes`).
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    confusion: Int[np.ndarray, "5 5"] | None = None
    map: SceneMap | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Evaluation, with_map: bool, changes: dict[str, Any]) -> Findings:
        """What is kept of an evaluation of scenes that were changed so."""
        part, kept = found.embedded.get(1), None
        if with_map and part is not None:
            first = part.starts[:-1]
            kept = SceneMap(
                part.audio[first].astype(np.float32),
                part.directions[:, 0],
                [categories[0] for categories in part.categories],
            )
        return cls(found.outcomes, found.direction_confusion, kept, changes)


def write_findings(folder: Path, identity: dict[str, Any], tested: dict[str, Findings]) -> None:
    """Writes the tests of one training by condition, wholly or not at all.

    Args:
      folder: of the training and its tests; made when missing.
      identity: of the training and its data, as JSON.
      tested: by condition.
    """
    arrays: dict[str, np.ndarray] = {}
    index: dict[str, Any] = {}
    for condition, test in tested.items():
        index[condition] = {name: outcome.chance for name, outcome in test.outcomes.items()}
        for name, outcome in test.outcomes.items():
            arrays[f"{condition}:{name}:hits"] = np.asarray(outcome.hits, bool)
            arrays[f"{condition}:{name}:cluster"] = np.asarray(outcome.cluster, np.int32)
        if test.confusion is not None:
            arrays[f"{condition}:confusion"] = test.confusion
        if test.map is not None:
            arrays[f"{condition}:map:audio"] = test.map.audio
            arrays[f"{condition}:map:directions"] = test.map.directions
            arrays[f"{condition}:map:categories"] = np.array(test.map.categories)
    changes = {condition: test.changes for condition, test in tested.items()}
    told = {"identity": identity, "chances": index, "changes": changes}
    arrays["index"] = np.array(json.dumps(told))
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, packed.getvalue())


def read_findings(folder: Path, identity: dict[str, Any] | None) -> dict[str, Findings]:
    """The tests of one training by condition; none where there is no file.

    Args:
      folder: of the training and its tests.
      identity: that they must have; None takes any.

    Raises:
      InputError: the file is damaged, or tells of another training or other data.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        content = bytes_of(path)
        _refuse_inflated(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        index = parsed_json(str(arrays["index"]))
        found = index["identity"]
        tested = {
            # What a file does not say of the scenes is asked again.
            condition: _tested(
                condition, chances, arrays, index.get("changes", {}).get(condition, {})
            )
            for condition, chances in index["chances"].items()
        }
    # Archives, array headers and JSON each have errors of their own.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise not_read_now(path, error) or InputError(
            f"{path}: is damaged ({reason}); remove it to have it made anew."
        ) from error
    if identity is not None:
        check_same_training(path, found, identity)
    return tested


def check_same_training(path: Path, found: Any, identity: dict[str, Any]) -> None:
    """Refuses what tells of another training, or of other data.

    As where a training goes on, what changes no result may differ, and a setting that the library
    did not have yet had the value that is now its default (`train.resuming`).

    Args:
      path: of the file that tells, for the message.
      found: what it tells of a training and its data.
      identity: what it is to tell.

    Raises:
      InputError: something differs; it is named.
    """
    told = _differences(path, found, identity)
    if told:
        listed = "; ".join(plain(text, _LONGEST) for text in told[:_LISTED])
        more = f"; and {len(told) - _LISTED} more" if len(told) > _LISTED else ""
        raise InputError(
            f"{path}: tells of a training with other settings or data: {listed}{more}; take "
            "another --workdir, or the same settings."
        )


def _differences(path: Path, found: Any, identity: dict[str, Any]) -> list[str]:
    """In what a training and its data differ from `identity`, in words."""
    if not isinstance(found, dict):
        return [f"{found!r} there, {identity!r} here"]
    told = []
    for key in dict.fromkeys((*identity, *found)):
        there, here = found.get(key), identity.get(key)
        if key in ("experiment", "before") and isinstance(there, dict) and isinstance(here, dict):
            told += _differences_of_settings(path, key, there, here)
        elif there != here:
            told.append(f"{key} {there!r} there, {here!r} here")
    return told


def _differences_of_settings(
    path: Path, key: str, there: dict[str, Any], here: dict[str, Any]
) -> list[str]:
    described = {"experiment": there, "data_fingerprint": "", "tokenizer": None, "max_tokens": 0}
    try:
        # What differs is told where all of it is accepted.
        told, _ = check_unchanged(described, here, "", path.parent, accepted=list(here))
    # What is no experiment of ours is not equal to any.
    except (InputError, TypeError, LookupError) as error:
        return [f"{key}: {error}"]
    return [f"{key}.{text}" for text in told]


def _refuse_inflated(content: bytes) -> None:
    """An array is as large as its header says before any of it is read."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                    version, np.lib.format.read_array_header_2_0
                )
                shape, _, kind = read(file)
            if math.prod(shape) * kind.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} of shape {shape} is cut short")
            if entry.file_size > _DENSEST * entry.compress_size + 2**16:
                raise ValueError(f"{entry.filename} holds more than its bytes can")


def _tested(
    condition: str,
    chances: dict[str, float],
    arrays: dict[str, np.ndarray],
    changes: dict[str, Any],
) -> Findings:
    outcomes = {
        name: Outcome(
            arrays[f"{condition}:{name}:hits"], arrays[f"{condition}:{name}:cluster"], chance
        )
        for name, chance in chances.items()
    }
    kept = None
    if f"{condition}:map:audio" in arrays:
        kept = SceneMap(
            arrays[f"{condition}:map:audio"],
            arrays[f"{condition}:map:directions"],
            arrays[f"{condition}:map:categories"].tolist(),
        )
    return Findings(outcomes, arrays.get(f"{condition}:confusion"), kept, changes)
