"""What tells the shards of one rendering from those of all others, kept beside them.

ArrayRecord has a checksum in every chunk of a shard, so that damage is noticed when a record is
read; but a whole shard of other scenes is whole. The mark of a shard is a digest of its size, of
the head of its first chunk, which holds the checksum of the first record, and of its postscript,
which tells where the last record ends. Two small reads check it, however large the shard is, and
damage to records does not change it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from spatial_clap_jax.errors import InputError, not_read_now
from spatial_clap_jax.small_files import json_of

MARKS = "shards.json"
FORMAT = "marks of shards 1"
# Of Riegeli's file format: where the head of the first chunk with records lies, how far the
# postscript is from the end, and more than either holds.
_FIRST_CHUNK, _HEAD_BYTES = 64, 40
_LAST_BLOCK, _POSTSCRIPT_BYTES = 1 << 16, 256


def mark_of(path: Path) -> str:
    """The mark of a shard.

    Raises:
      OSError: it cannot be read.

    Reference: github.com/google/riegeli, doc/riegeli_records_file_format.md.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(_FIRST_CHUNK)
        found = hashlib.sha256(f"{size} ".encode() + file.read(_HEAD_BYTES))
        file.seek(max(size - _LAST_BLOCK, 0))
        found.update(file.read(_POSTSCRIPT_BYTES))
    return found.hexdigest()[:32]


def write_marks(folder: Path, fingerprint: str, shards: Iterable[Path]) -> None:
    """Writes the marks of all shards of a folder.

    Args:
      folder: where they lie.
      fingerprint: of the scenes, as the manifest has it.
      shards: their paths.
    """
    marks = {path.name: mark_of(path) for path in sorted(shards)}
    header = {"format": FORMAT, "fingerprint": fingerprint, "shards": marks}
    (folder / MARKS).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def read_marks(folder: Path, fingerprint: str) -> dict[str, str]:
    """The marks of a folder's shards by name; none where it was rendered before there were marks.

    Args:
      folder: where they lie.
      fingerprint: of the scenes, as the manifest has it.

    Raises:
      InputError: the file is damaged, or of other scenes.
    """
    path = folder / MARKS
    if not path.exists():
        return {}
    try:
        header = json_of(path)
        known, marks = header["format"] == FORMAT, dict(header["shards"])
        same = header["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise not_read_now(path, error) or InputError(
            f"{path}: is not readable as marks of shards ({' '.join(str(error).split())}); copy "
            "the whole folder again."
        ) from error
    if not known or not same:
        raise InputError(f"{path}: tells of other scenes than the manifest; copy the whole folder.")
    return marks
