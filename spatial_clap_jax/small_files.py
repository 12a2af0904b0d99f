"""Text and JSON files of a user, read so that nothing in them can hang, fill or topple a program.

Only OSError and ValueError come out of here; callers say what the file was meant to be.
"""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

# Tokenizers and vocabularies of many languages are below 40 MB, logs of long runs below 500.
LARGEST = 2**30
# Read at once of a file that is only looked through.
_BLOCK = 2**22
# Where the checksum of a JSON object stands in it.
_SEAL = "sha256"


def check_regular(path: str | Path) -> os.stat_result:
    """Refuses what is no file, without opening it: a pipe may never open, a device never end.

    Args:
      path: what a library is to open by its name.

    Returns:
      What the system tells of it.

    Raises:
      OSError: it is missing, cannot be reached, or is a folder, a pipe or a device.
      ValueError: its name is none of a file system.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "is a folder" if stat.S_ISDIR(found.st_mode) else "is a pipe or a device"
        raise OSError(errno.EINVAL, kind, str(path))
    return found


def bytes_of(path: str | Path) -> bytes:
    """The content of a regular file.

    Raises:
      OSError: see `check_regular`; or it cannot be read.
      ValueError: it holds more than `LARGEST` bytes, or its name is none of a file system.
    """
    found = check_regular(path)
    if found.st_size > LARGEST:
        raise ValueError(f"holds {found.st_size:,} bytes, more than {LARGEST:,}")
    with open(path, "rb") as file:
        # As large a buffer as is asked for is made first.
        return file.read(found.st_size)


def read_through(path: str | Path) -> None:
    """Reads a file to its end, so that the system says itself what keeps it from being read.

    Decoders keep it to themselves: to them a failing disk is a damaged file, and to some a damaged
    file a lack of memory.

    Raises:
      OSError, MemoryError: it cannot be read.
    """
    with open(path, "rb") as file:
        while file.read(_BLOCK):
            pass


def text_of(path: str | Path) -> str:
    """The content of a file in UTF-8, with or without a byte order mark.

    Raises:
      OSError, ValueError: see `bytes_of`; or it is not UTF-8.
    """
    return bytes_of(path).decode("utf-8-sig")


def json_of(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
      OSError, ValueError: see `text_of`; or it is no JSON.
    """
    return parsed_json(text_of(path))


def parsed_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
      ValueError: it is no JSON, or no text at all, or nested deeper than a program can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except TypeError:
        # Where one JSON text holds another.
        raise ValueError(f"is {type(text).__name__}, no text") from None


def count_of(value: Any) -> int:
    """A number out of a JSON text that counts something.

    Raises:
      ValueError: it is no whole number from 0 on.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.40} is no whole number from 0 on")
    return value


def sealed(tree: dict[str, Any]) -> dict[str, Any]:
    """An object of plain JSON with a checksum of all else in it."""
    return {**tree, _SEAL: _checksum(tree)}


def unsealed(tree: dict[str, Any]) -> dict[str, Any]:
    """What was sealed, without its checksum; an object that has none is as old as it looks.

    Raises:
      ValueError: it was changed since.
    """
    rest = {key: value for key, value in tree.items() if key != _SEAL}
    if _SEAL in tree and tree[_SEAL] != _checksum(rest):
        raise ValueError(f"its {_SEAL} is of another content, so it is damaged or edited")
    return rest


def _checksum(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
