"""Rendered folders appear when they are whole, and none is written over another."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spatial_clap_jax.errors import InputError


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`; those that killed renders left behind go first.

    Args:
      out: where the folder, or something in it, is to be renamed to once it is whole.

    Raises:
      InputError: there is no writing there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{out.name}.{socket.gethostname()}-"
        for left in out.parent.iterdir():
            number = left.name.removeprefix(prefix).removesuffix(".partial")
            ours = left.name == f"{prefix}{number}.partial" and number.isdecimal()
            if ours and not _alive(int(number)):
                shutil.rmtree(left, ignore_errors=True)
        folder = out.parent / f"{prefix}{os.getpid()}.partial"
        folder.mkdir()
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made ({error.strerror}); give a place that can be written to."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(whole: Path, out: Path, holds_the_same: Callable[[], bool]) -> None:
    """Renames a whole folder to its place, unless another render has put the same there meanwhile.

    Args:
      whole: what was rendered.
      out: its place.
      holds_the_same: whether the very same is there; False where nothing is.

    Raises:
      InputError: something else is there.
      OSError: there is no renaming to that place.
    """
    try:
        whole.rename(out)
    except OSError:
        if not holds_the_same():
            raise


def is_free(out: Path, manifest: str, kind: str) -> bool:
    """Whether nothing is at `out`.

    Args:
      out: the folder to be made.
      manifest: the file that tells a rendered folder.
      kind: what such a folder is called in messages.

    Returns:
      True where there is nothing, or an empty folder; False where the manifest is.

    Raises:
      InputError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    if not (out / manifest).is_file():
        raise InputError(
            f"{out}: holds something that is no {kind}; nothing is overwritten: give a new "
            "or an empty folder as --out."
        )
    return False


def refuse_other(
    out: Path,
    held: Mapping[str, Any],
    wanted: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Refuses a folder that was rendered from something else.

    Args:
      out: the folder, for the message.
      held: its manifest.
      wanted: what would be rendered there, compared key by key.
      defaults: what an older manifest need not say.

    Raises:
      InputError: a value differs; it is named.
    """
    there = _flat(defaults or {}) | _flat({key: held.get(key) for key in wanted})
    here = _flat(wanted)
    for key in here | there:
        old, new = there.get(key), here.get(key)
        if old != new:
            raise InputError(
                f"{out}: holds scenes of another kind: {key} is {old!r} there and {new!r} here; "
                "nothing is overwritten: give another --out."
            )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
