"""Folders that this library writes for others: whole or not at all, never over something else.

Each holds a manifest that lists its files with their checksums, by which a later write knows what
it may replace.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import json_of, sealed
from spatial_clap_jax.stored import CARD, MANIFEST, one_line, sha256

HF_CLAP, M2D_CLAP = "hf-clap", "m2d-clap"
# A folder for other programs holds weights by other names, and must not look like one of ours.
_MANIFESTS: dict[str, str] = dict.fromkeys((HF_CLAP, M2D_CLAP), "spatial_clap_jax.json")


def write_folder(
    out: str | Path, format: str, fill: Callable[[Path], None], manifest: dict[str, Any]
) -> list[Path]:
    """Writes `out/{format}`; an earlier one of the same format is replaced.

    Args:
      out: folder to write in, which may hold other things; made when missing.
      format: name of the folder.
      fill: writes all files but the manifest into the folder that it is given.
      manifest: what stands in it beside the checksums of these files.

    Returns:
      The files written.

    Raises:
      InputError: the place cannot be written, or holds what is no earlier folder of this kind.
    """
    target = check_place(out, format)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{format}-", dir=target.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            fill(fresh)
            files = {path.name: sha256(path) for path in sorted(fresh.iterdir())}
            whole = {"library": "spatial_clap_jax", "format": format, **manifest, "files": files}
            text = json.dumps(sealed(whole), indent=2, ensure_ascii=False, allow_nan=False)
            (fresh / manifest_name(format)).write_text(text + "\n", encoding="utf-8")
            names = sorted(path.name for path in fresh.iterdir())
            if target.exists():
                # Looked at again: it may have changed while the files were made.
                check_place(out, format)
                target.rename(Path(scratch) / "earlier")
            fresh.rename(target)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); give another --out."
        ) from error
    return [target / name for name in names]


def manifest_name(format: str) -> str:
    """The manifest's file in a folder of this format."""
    return _MANIFESTS.get(format, MANIFEST)


def check_place(out: str | Path, format: str) -> Path:
    """The folder `out/{format}`, if it may be written.

    Raises:
      InputError: it is neither absent nor empty nor an earlier one as this library wrote it.
    """
    target = Path(out).expanduser() / format
    remedy = "nothing there is overwritten: give another --out, or move it away."
    if not os.path.lexists(target):
        return target
    if target.is_symlink() or not target.is_dir():
        raise InputError(f"{target}: is no folder; {remedy}")
    held = sorted(path.name for path in target.iterdir())
    if not held:
        return target
    name = manifest_name(format)
    try:
        manifest = json_of(target / name)
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{target}: holds what is no export of this library ({one_line(error)}); {remedy}"
        ) from error
    if manifest.get("format") != format:
        raise InputError(f"{target}: holds an export of format {manifest.get('format')}; {remedy}")
    foreign = [other for other in held if other != name and other not in files]
    # The model card is what people add to; the other files are only ever ours.
    if CARD in held and sha256(target / CARD) != files.get(CARD):
        foreign.append(f"an edited {CARD}")
    if foreign:
        raise InputError(f"{target}: holds {foreign[0]} beside an earlier export; {remedy}")
    return target
