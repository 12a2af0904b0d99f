"""What frozen towers make of clips, on disk: features by the name of the clip.

A folder holds `tower.json`, which tells tower, clips and shape; `names.json`, the names of all
clips, ascending; and shards of records in their order, of numbers in float16.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from spatial_clap_jax.data.shards import Kind, ShardRecords, replacing, write_shard
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import json_of

NAMES = "names.json"
_KIND = Kind(
    header="tower.json",
    format="tower features 1",
    keys={
        "source": str,
        "tower": str,
        "fingerprint": str,
        "shape": list,
        "step_s": float,
        "count": int,
        "names": str,
        "in_shard": int,
    },
    what="features",
    command="embed",
)
# Clips in a shard: what a start after a failure does again at most.
SHARD = 64


def write_tower_cache(
    out: str | Path,
    names: Iterable[str],
    embed: Callable[[str], Float32[np.ndarray, "..."]],
    *,
    source: str,
    tower: str,
    fingerprint: str,
    shape: tuple[int, ...],
    step_s: float,
    done: Callable[[int], None] = lambda count: None,
) -> TowerCache:
    """Writes features of clips into a folder; goes on where an earlier call like it stopped.

    Args:
      out: the folder. One that is finished is left as it is.
      names: of the clips, in any order.
      embed: features of a clip by its name, of `shape`.
      source: name of the tower, for people.
      tower: what tells it, and how it is asked, from others.
      fingerprint: of the clips.
      shape: of a clip's features.
      step_s: seconds from one of them to the next along their first axis.
      done: is told after each clip how many are dealt with.

    Returns:
      The opened folder.

    Raises:
      InputError: there is no clip, `out` holds something else, features are not finite or too
        large, or it cannot be written.
    """
    out, told = Path(out), sorted(set(names))
    if not told:
        raise InputError("clips: there are none; give a folder with at least one.")
    header = {
        "format": _KIND.format,
        "source": source,
        "tower": tower,
        "fingerprint": fingerprint,
        "shape": list(shape),
        "step_s": float(step_s),
        "count": len(told),
        "names": _digest(told),
        "in_shard": SHARD,
    }
    try:
        _KIND.start(out, header, aside="source")
        if not (out / NAMES).is_file():
            with replacing(out / NAMES) as draft:
                draft.write_text(json.dumps(told) + "\n", encoding="utf-8")
        for number, name in enumerate(_KIND.shards(header)):
            start = number * SHARD
            of_shard = told[start : start + SHARD]
            if not (out / name).is_file():
                made = []
                for clip in of_shard:
                    made.append((clip, _stored(clip, embed(clip), shape)))
                    done(start + len(made))
                write_shard(out / name, made)
            done(start + len(of_shard))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another.") from error
    return TowerCache(out)


class TowerCache:
    """Features of clips, opened at first use; travels by pickle.

    Args:
      folder: that `spatial-clap embed` wrote of a folder of clips.

    Raises:
      InputError: it is no such folder, or is not finished.

    Example:
      >>> TowerCache("caches/clap")["fold4_room23_mix001"].shape
      (16, 768)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = _KIND.read(self.folder)
        self._check_header()
        _KIND.check_whole(self.folder, self.header, NAMES)

    def _check_header(self) -> None:
        """Refuses numbers that the names cannot bear out: lists and arrays are made of them."""
        names = self.folder / NAMES
        # A name takes two bytes at least.
        most = names.stat().st_size if names.is_file() else 1
        sizes = [
            ("count", self.header["count"], most),
            ("in_shard", self.header["in_shard"], 2**31),
        ]
        sizes += [("shape", size, 2**24) for size in self.header["shape"]]
        for name, size, high in sizes:
            if not isinstance(size, int) or not 1 <= size <= high:
                raise InputError(
                    f"{self.folder / _KIND.header}: {name} {size!r} must lie within 1 and {high}; "
                    "embed again."
                )
        step_s = self.header["step_s"]
        if not 0 < step_s < math.inf:
            raise InputError(
                f"{self.folder / _KIND.header}: step_s {step_s} is no time above 0; embed again."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a clip's features: (moments, width), or (pictures, columns, width)."""
        return tuple(self.header["shape"])

    @property
    def step_s(self) -> float:
        """Seconds from one moment to the next; the first is half of that after the beginning."""
        return self.header["step_s"]

    @property
    def source(self) -> str:
        """Name of the tower."""
        return self.header["source"]

    @property
    def tower(self) -> str:
        """Tells the tower, and how it was asked, from others."""
        return self.header["tower"]

    @property
    def fingerprint(self) -> str:
        """Of the clips."""
        return self.header["fingerprint"]

    def __len__(self) -> int:
        return self.header["count"]

    def __getitem__(self, name: str) -> Float32[np.ndarray, "..."]:
        """Features of a clip.

        Raises:
          InputError: it has none, or they cannot be read.
        """
        if name not in self._rows:
            raise InputError(
                f"{self.folder}: has no features of the clip {name!r}; run embed again on these "
                "clips, with another --out."
            )
        ((held, numbers),) = self._records.read([self._rows[name]], "<f2")
        # Guards names and shards against each other.
        if held != name or numbers.size != np.prod(self.shape):
            raise InputError(f"{self.folder}: {NAMES} and its shards disagree; embed again.")
        return numbers.astype(np.float32).reshape(self.shape)

    def __reduce__(self):
        return TowerCache, (self.folder,)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        path = self.folder / NAMES
        try:
            names = json_of(path)
            whole = _digest(names) == self.header["names"] and len(names) == len(self)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); embed again.") from error
        if not whole:
            raise InputError(f"{path}: is not what {_KIND.header} tells of; embed again.")
        return {name: row for row, name in enumerate(names)}

    @functools.cached_property
    def _records(self) -> ShardRecords:
        return ShardRecords(_KIND, self.folder, self.header)


def _stored(name: str, features: Any, shape: tuple[int, ...]) -> np.ndarray:
    features = np.asarray(features)
    if features.shape != shape:
        raise ValueError(f"features {features.shape} of {name}, not {shape}")
    # What is beyond the range becomes infinite, and is refused for that.
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(
            f"clip {name}: its features hold NaN or numbers beyond {np.finfo(np.float16).max:g}; "
            "give a tower that has not diverged."
        )
    return half


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
