"""Captions that a language model has rewritten, as a data set's folder may hold them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from spatial_clap_jax.acoustics.spatial_words import SpatialWords
from spatial_clap_jax.data.records import MANIFEST
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import json_of, parsed_json, text_of

REWRITTEN = "rewritten.jsonl"
FORMAT = "rewritten captions 1"


class Rewritten(NamedTuple):
    """The rewrites of one member.

    Attributes:
      words: that the captions say, no more and no fewer; where an augmentation has changed the
        scene's words, these captions are no longer true.
      captions: at least one.
    """

    words: SpatialWords
    captions: tuple[str, ...]


def read_rewrites(folder: str | Path) -> dict[tuple[str, int], Rewritten]:
    """The rewrites that lie in a data set's folder, by scene and member.

    Args:
      folder: that `spatial-clap render` wrote.

    Returns:
      Captions and the words that they say; nothing where there is no such file. Members that are
      not in it keep their templates.

    Raises:
      InputError: the file is damaged, or is of other scenes.
    """
    path = Path(folder) / REWRITTEN
    if not path.exists():
        return {}
    found: dict[tuple[str, int], Rewritten] = {}
    try:
        # Not at the line ends of Unicode, which a caption may hold.
        lines = text_of(path).removesuffix("\n").split("\n")
        header = parsed_json(lines[0])
        known = header["format"] == FORMAT
        for line in lines[1:]:
            row = parsed_json(line)
            said = Rewritten(SpatialWords(**row["words"]), tuple(map(str, row["captions"])))
            found[str(row["scene_id"]), int(row["member"])] = said
        fingerprint = json_of(Path(folder) / MANIFEST)["fingerprint"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{path}: is not readable as rewrites of these scenes ({error}); remove it."
        ) from error
    if not known or header["fingerprint"] != fingerprint:
        raise InputError(f"{path}: tells of other scenes; remove it, or rewrite these.")
    return found
