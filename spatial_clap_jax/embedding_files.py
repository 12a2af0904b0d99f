"""Embeddings in files of NumPy: whole or not at all, never over something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
from jaxtyping import Float32, Shaped

from spatial_clap_jax.errors import InputError


def save_embedding(embedding: Float32[np.ndarray, "*b d"], path: str | Path) -> None:
    """Writes unit embeddings to a .npy file.

    Args:
      embedding: what `embed_audio` or `embed_text` gave.
      path: the file; an embedding that is there already is replaced.

    Raises:
      InputError: the name does not end in .npy, its folder is missing, or the file is there and
        is no embedding.
    """
    array = np.asarray(embedding, np.float32)
    _write(Path(path), ".npy", _is_embedding, lambda file: np.save(file, array))


def save_features(path: str | Path, **arrays: Shaped[np.ndarray, "..."]) -> None:
    """Writes features that are not unit, and what belongs to them, to a .npz file.

    Args:
      path: the file; one that holds arrays of the same names is replaced.
      arrays: by name, such as the embeddings and times of `embed_frames`.

    Raises:
      InputError: the name does not end in .npz, its folder is missing, or the file is there and
        holds something else.
    """

    def is_like_it(path: Path) -> bool:
        # Anything but a zip file is none of ours, whatever its name says.
        if not path.is_file() or not is_zipfile(path):
            return False
        try:
            with ZipFile(path) as held:
                return {name.removesuffix(".npy") for name in held.namelist()} == arrays.keys()
        # Of a damaged archive; its directory alone is read.
        except (OSError, ValueError, NotImplementedError, BadZipFile):
            return False

    held: dict[str, Any] = dict(arrays)
    _write(Path(path), ".npz", is_like_it, lambda file: np.savez(file, **held))


def _write(
    path: Path, suffix: str, is_like_it: Callable[[Path], bool], write: Callable[[Any], None]
) -> None:
    if path.suffix != suffix:
        raise InputError(f"{path}: embeddings are written as {suffix}; give a name that ends so.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it, or name another.")
    if path.exists() and not is_like_it(path):
        raise InputError(
            f"{path}: holds something else than an embedding and is not overwritten; "
            "name another file."
        )
    fresh = path.with_name(f".{path.name}.partial")
    try:
        with fresh.open("wb") as file:
            write(file)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); name another file."
        ) from error


def _is_embedding(path: Path) -> bool:
    # A pipe or a device may never end.
    if not path.is_file():
        return False
    try:
        # Mapped, so that nothing is made of the size that a header says.
        held = np.load(path, mmap_mode="r", allow_pickle=False)
    # A header is a literal of Python, and each fault of it an error of its own.
    except Exception:
        return False
    if not isinstance(held, np.ndarray) or held.dtype != np.float32 or held.ndim not in (1, 2):
        return False
    return bool(np.allclose(np.linalg.norm(held, axis=-1), 1.0, atol=1e-3))
