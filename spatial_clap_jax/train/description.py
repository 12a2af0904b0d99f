"""The folder of a run, and the description that makes its models loadable without its command.

description.json            configuration, preprocessing, tokenizer, library versions
description_before.json     the one before, where something else was accepted
"""

import contextlib
import glob
import importlib.metadata
import json
import os
import platform
import re
import secrets
import time
from pathlib import Path

import jax

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import bytes_of, json_of, sealed, unsealed

_FILE, _BEFORE = "description.json", "description_before.json"
# No small file takes so long to write.
_LEFT_S = 3600.0
_DESCRIBED_LIBRARIES = (
    *("spatial-clap-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy"),
    *("grain", "array-record", "tokenizers"),
)


def write_description(workdir: str | Path, description: dict) -> None:
    """Writes `description.json`: what a run needs to be loaded without its command.

    Args:
      workdir: the run's folder; made when missing.
      description: plain JSON (configuration, preprocessing, tokenizer's JSON text). The
        versions of Python and of the libraries are added under "versions".

    What the folder held before is kept as `description_before.json`.
    """
    described = {**description, "versions": library_versions()}
    if jax.process_index() == 0:
        folder = run_folder(workdir)
        text = json.dumps(sealed(described), indent=2, allow_nan=False)
        if has_description(folder):
            write_atomically(folder / _BEFORE, bytes_of(folder / _FILE))
        write_atomically(folder / _FILE, text + "\n")


def has_description(workdir: str | Path) -> bool:
    """Whether the folder holds a run: `write_description` was there.

    Raises:
      InputError: `workdir` is a bucket's address.
    """
    return (run_folder(workdir) / _FILE).is_file()


def read_description(workdir: str | Path) -> dict:
    """Reads what `write_description` wrote.

    Raises:
      InputError: the file is missing, is not a JSON object, or was changed since.
    """
    path = run_folder(workdir) / _FILE
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, so this is not the folder of a run; "
            "give the --workdir of a training."
        )
    try:
        description = json_of(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); restore the file.") from error
    if not isinstance(description, dict):
        raise InputError(f"{path}: holds no JSON object; restore the file.")
    try:
        return unsealed(description)
    except ValueError as error:
        raise InputError(
            f"{path}: {error}; restore the file, or take that entry out if you meant the change."
        ) from error


def run_folder(workdir: str | Path) -> Path:
    """Returns a run's folder as a path, refusing a bucket's address.

    Raises:
      InputError: `workdir` reads like `gs://bucket/run`, which a path would turn into a
        local folder named 'gs:', or has been turned into it.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(workdir)):
        raise InputError(
            f"workdir: {workdir!s} is no path of a file system; "
            "mount the bucket (gcsfuse) and give the mounted path."
        )
    return Path(workdir).expanduser()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader, or a crash, finds the old content or the new one whole.

    Two that write it at the same time do not meet: the last one's content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with draft.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _remove_left(path: Path) -> None:
    """Removes drafts of a file that processes left which were killed long ago."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*partial"):
        # Another one may do the same, or be about to replace the file.
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_S:
                left.unlink()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for name in _DESCRIBED_LIBRARIES:
        # The package itself has no version where it is used from a source folder.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
