"""Arrays by name in a folder of ArrayRecord files, written shard by shard.

A folder holds a header in JSON, which tells what the arrays are of, and shards of records. A record
is the length of the name in bytes (four of them, little-endian), the name in UTF-8, and the array.
A shard is whole or absent, so that a start after a failure goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Shaped

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import json_of


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a folder of shards holds.

    Attributes:
      header: name of the header's file.
      format: what the header says of its format.
      keys: further keys of the header, with their types.
      what: the arrays, for messages.
      command: of `spatial-clap` that writes it, for messages.
    """

    header: str
    format: str
    keys: Mapping[str, type]
    what: str
    command: str

    def shards(self, header: Mapping[str, Any]) -> list[str]:
        """Names of all shards of a finished folder."""
        count = -(-header["count"] // header["in_shard"])
        stem = self.header.removesuffix(".json")
        return [f"{stem}-{number:05d}-of-{count:05d}.array_record" for number in range(count)]

    def start(self, out: Path, header: Mapping[str, Any], aside: str) -> None:
        """Makes the folder, or sees that it holds these very arrays, finished or not.

        Args:
          out: the folder.
          header: what is to be written.
          aside: a key that may differ.

        Raises:
          InputError: it holds something else.
        """
        if not out.is_dir() or not any(not path.name.startswith(".") for path in out.iterdir()):
            out.mkdir(parents=True, exist_ok=True)
            with replacing(out / self.header) as draft:
                draft.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
            return
        there = self.read(out)
        differing = [key for key in header if key != aside and there[key] != header[key]]
        if differing:
            key = differing[0]
            raise InputError(
                f"{out}: holds other {self.what}: {key} is {there[key]!r} there and "
                f"{header[key]!r} here; nothing is overwritten: give another --out."
            )

    def read(self, folder: Path) -> dict[str, Any]:
        """The header of a folder, its keys checked.

        Raises:
          InputError: it is missing, damaged, or of something else.
        """
        path = folder / self.header
        if not path.is_file():
            what = "holds no" if folder.is_dir() else "is no folder with a"
            raise InputError(
                f"{folder}: {what} {self.header}; give a folder that `spatial-clap {self.command}` "
                "wrote, or, to write one, an empty place."
            )
        try:
            header = json_of(path)
            known = header["format"] == self.format
            whole = all(isinstance(header[key], kind) for key, kind in self.keys.items())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); embed again.") from error
        if not known or not whole:
            raise InputError(f"{path}: is none of {self.format!r}; embed again.")
        return header

    def check_whole(self, folder: Path, header: Mapping[str, Any], index: str) -> None:
        """Refuses a folder that lacks its index or a shard.

        Raises:
          InputError: it names the first that is missing.
        """
        names = (index, *self.shards(header))
        lacking = [name for name in names if not (folder / name).is_file()]
        if lacking:
            raise InputError(
                f"{folder}: lacks {lacking[0]}; run {self.command} again, which goes on where it "
                "stopped."
            )


@dataclasses.dataclass
class _Shard:
    """A file of records, as ArrayRecord's reader wants it told: it is opened when it is read."""

    filename: str
    examples_in_shard: int
    take: int
    skip: int = 0


class ShardRecords:
    """Random access to the records of a finished folder.

    Args:
      kind: of the folder.
      folder: where the shards lie.
      header: of the folder.
    """

    def __init__(self, kind: Kind, folder: Path, header: Mapping[str, Any]) -> None:
        self._kind, self._in_shard = kind, header["in_shard"]
        self._shards = [folder / name for name in kind.shards(header)]
        sizes = [
            min(self._in_shard, header["count"] - number * self._in_shard)
            for number in range(len(self._shards))
        ]
        self._records = ArrayRecordDataSource(
            [_Shard(str(path), n, n) for path, n in zip(self._shards, sizes, strict=True)]
        )

    def read(self, numbers: Sequence[int], dtype: str) -> list[tuple[str, Any]]:
        """Names and arrays of some records; see `read_record`.

        Raises:
          InputError: one cannot be read; its shard and number are named.
        """
        try:
            return [read_record(record, dtype) for record in self._records.__getitems__(numbers)]
        except Exception:
            # Which of them it was is not told; one by one, the culprit is alone.
            return [self._one(number, dtype) for number in numbers]

    def _one(self, number: int, dtype: str) -> tuple[str, Any]:
        try:
            return read_record(self._records[number], dtype)
        except Exception as error:
            shard, position = divmod(number, self._in_shard)
            raise InputError(
                f"{self._shards[shard]}: record {position} cannot be read: "
                f"{' '.join(str(error).split())}; copy the file again, or remove it and run "
                f"{self._kind.command} again."
            ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside a file, which becomes it; one that a killed process left is written over."""
    draft = path.with_name(f".{path.name}.partial")
    yield draft
    draft.replace(path)


def write_shard(path: Path, arrays: Iterable[tuple[str, Shaped[np.ndarray, "..."]]]) -> None:
    """Writes arrays by name, in their order and of little-endian types."""
    with replacing(path) as draft:
        writer = ArrayRecordWriter(str(draft), "group_size:1")
        for name, array in arrays:
            text = name.encode()
            little = array.astype(array.dtype.newbyteorder("<"))
            writer.write(len(text).to_bytes(4, "little") + text + little.tobytes())
        writer.close()


def read_record(record: bytes, dtype: str) -> tuple[str, Shaped[np.ndarray, "n"]]:
    """Name and numbers of a record.

    Args:
      record: as `write_shard` wrote it.
      dtype: of the numbers, as NumPy spells it: '<f4'.
    """
    end = 4 + int.from_bytes(record[:4], "little")
    return record[4:end].decode(), np.frombuffer(record, dtype, offset=end)
