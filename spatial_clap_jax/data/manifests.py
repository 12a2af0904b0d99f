"""What a folder of scene groups says of itself: recipe, source, versions, counts and words."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from spatial_clap_jax.acoustics.captions import labels_of
from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.acoustics.receivers import Foa, Receiver, StereoPair
from spatial_clap_jax.acoustics.spatial_captions import spatial_phrases
from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.scenes import SceneRecipe
from spatial_clap_jax.data.seld_recipe import SeldRecipe
from spatial_clap_jax.data.sources import Source

FORMAT = 2
# `SceneRecipe.level` of a plain recipe that does not tell it.
LEVELLED = "reference"
# Packages whose version can change a sample or a word.
VERSIONS = (
    "spatial-clap-jax",
    "numpy",
    "scipy",
    "soxr",
    "soundfile",
    "pyroomacoustics",
    "tensorflow-datasets",
)


def manifest_of(
    recipe: SceneRecipe,
    source: Source,
    identity: dict[str, Any],
    skipped: dict[str, str],
    t60_s: dict[str, list[float]],
) -> dict[str, Any]:
    """What a folder holds; equal for equal scenes, so it tells neither date nor machine.

    Args:
      recipe: that was rendered, its counts in groups.
      source: of the clips.
      identity: what tells these scenes from others.
      skipped: reasons of the clips that were left out.
      t60_s: reverberation times of the rooms of each split that has groups.

    Returns:
      Plain JSON.
    """
    used = [clip for clip in source.clips if clip.clip_id not in skipped and clip.split in t60_s]
    contents = [content for clip in used if clip.split == "train" for content in clip.captions]
    return {
        "format": FORMAT,
        **identity,
        "fingerprint": digest(identity),
        "versions": versions(),
        "groups": recipe.splits(),
        "rooms": {split: len(times) for split, times in t60_s.items()},
        "t60_s": {
            split: {
                "lowest": round(min(times), 4),
                "median": round(float(np.median(times)), 4),
                "highest": round(max(times), 4),
            }
            for split, times in t60_s.items()
            if times
        },
        "clips": {split: sum(clip.split == split for clip in used) for split in t60_s},
        "skipped_clips": skipped,
        "categories": sorted({label for clip in used for label in labels_of(clip.category)}),
        "caption_corpus": [
            *dict.fromkeys(contents),
            *_phrases_of_places(recipe.receiver),
        ],
    }


def recipe_as_json(recipe: SceneRecipe | SeldRecipe) -> dict[str, Any]:
    """The recipe as JSON gives it back; a folder's place is not part of what is rendered.

    Nor is `level` where it is the only one that there once was, so that records keep their
    fingerprint.
    """
    fields = to_plain(recipe)
    if fields.get("level") == LEVELLED:
        del fields["level"]
    fields["sources"].pop("audio_folder")
    return json.loads(json.dumps(fields))


def _phrases_of_places(receiver: Receiver) -> Iterator[str]:
    """What the captions of a receiver's scenes say beside the contents."""
    if isinstance(receiver, StereoPair):
        yield from (direction.phrase for direction in STEREO_DIRECTIONS)
    elif isinstance(receiver, Foa):
        yield from spatial_phrases()


def versions() -> dict[str, str]:
    """Versions of the packages that can change what is rendered."""
    return {package: _version(package) for package in VERSIONS}


def digest(tree: Any) -> str:
    """Hexadecimal digest of plain JSON."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
