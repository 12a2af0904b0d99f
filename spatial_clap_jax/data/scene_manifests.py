"""The manifest of a folder of scenes, read and checked before anything relies on it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from spatial_clap_jax.errors import InputError, not_read_now
from spatial_clap_jax.small_files import json_of

_SPLIT = re.compile(r"(train|validation|test)_k\d+")
# What is looked up later, and the type that JSON must give it.
_KEYS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "fingerprint": str,
    "groups": dict,
    "categories": list,
    "caption_corpus": list,
    "source.name": str,
    "source.fingerprint": str,
    "recipe.name": str,
    "recipe.seed": int,
    "recipe.sample_rate_hz": int,
    "recipe.duration_s": (int, float),
    "recipe.rooms.kind": str,
    "recipe.receiver.kind": str,
}


def read_scene_manifest(path: Path) -> dict[str, Any]:
    """What a folder of scenes says of itself, its keys checked.

    Args:
      path: of the manifest.

    Returns:
      Plain JSON. Those of the first format get the kind of rooms and receiver, which they knew one
      of each and do not name.

    Raises:
      InputError: there is none, it cannot be read, or it lacks a key or holds one of another type.
    """
    try:
        manifest = json_of(path)
        for part, kind in (("receiver", "StereoPair"), ("rooms", "RoomRanges")):
            manifest["recipe"][part] = {"kind": kind, **manifest["recipe"][part]}
        for key, kind in _KEYS.items():
            _check_type(key, _at(manifest, key), kind)
        _check_values(manifest)
    except FileNotFoundError:
        what = "holds no" if path.parent.is_dir() else "is no folder with a"
        raise InputError(
            f"{path.parent}: {what} {path.name}; give the folder that `spatial-clap render` wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        reason = f"lacks {reason}" if isinstance(error, KeyError) else reason
        raise not_read_now(path, error) or InputError(
            f"{path}: is not readable as a manifest of scenes ({reason}); copy the whole folder or "
            "render them again."
        ) from error
    return manifest


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _check_type(key: str, value: Any, kind: type | tuple[type, ...]) -> None:
    # To Python, True is a number.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{key} is of type {type(value).__name__}")


def _check_values(manifest: dict[str, Any]) -> None:
    for split, count in manifest["groups"].items():
        _check_type(f"groups.{split}", count, int)
        if not _SPLIT.fullmatch(split):
            raise ValueError(f"groups.{split} is no split")
    for key in ("categories", "caption_corpus"):
        for text in manifest[key]:
            _check_type(key, text, str)
            # Half of a surrogate pair raises a ValueError.
            text.encode()
    recipe = manifest["recipe"]
    if recipe["seed"] < 0:
        raise ValueError(f"recipe.seed {recipe['seed']} is below 0")
    if not 0 < recipe["duration_s"] < math.inf or recipe["sample_rate_hz"] < 1:
        raise ValueError("recipe.duration_s and sample_rate_hz are no length and rate")
