"""Sentence embeddings on disk: captions as keys of vectors, in ArrayRecord files.

A folder holds `sentences.json`, which tells encoder, width and count; `index.npy`, the ascending
64-bit hashes of all captions; and shards of records in the order of the index, of float32. A
caption is found by its hash, so that no process has to hold all of them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Bool, Float32, Int64, UInt64

from spatial_clap_jax.acoustics.captions import category_phrasings, label_prompt
from spatial_clap_jax.data.records import open_scenes
from spatial_clap_jax.data.shards import Kind, read_record, replacing, write_shard
from spatial_clap_jax.data.tables import caption_columns_of, read_table, told_captions
from spatial_clap_jax.data.wording import plain_caption
from spatial_clap_jax.errors import InputError

INDEX = "index.npy"
_KIND = Kind(
    header="sentences.json",
    format="sentence embeddings 1",
    keys={"width": int, "count": int, "in_shard": int, "fingerprint": str, "captions": str},
    what="sentences",
    command="embed-text",
)
# Captions in a shard: what a start after a failure does again at most.
SHARD = 4096
# How the name of an encoder ends where vectors were brought ready-made, of which nobody knows it.
VECTORS = ".npy"
# Numbers in a vector, at most.
WIDEST = 2**20


def captions_of(source: str | Path, split: str = "train") -> list[str]:
    """All captions that clips may be told with, each once.

    Args:
      source: a csv with `caption`, `caption_1`, ... or, for rows that have none, `category`; or a
        folder of mono clips that `render` wrote.
      split: of a folder: 'train' gives the captions that trainings need; 'validation' or 'test'
        what an evaluation asks: the captions of its clips, and the prompts of all categories.

    Raises:
      InputError: it cannot be read, has no captions or no such split, or its scenes have places:
        what is said of them is too much to be embedded beforehand.
    """
    source = Path(source)
    if source.is_dir():
        scenes = open_scenes(source)
        manifest = scenes.manifest
        if manifest["recipe"]["receiver"]["kind"] != "Mono":
            raise InputError(
                f"{source}: its captions tell places in every order and phrasing; give clips "
                "(configs/clips.py), or a csv of captions."
            )
        if split == "train":
            contents = manifest["caption_corpus"]
        else:
            held = scenes.source(f"{split}_k0")
            contents = [one for index in range(len(held)) for one in held[index].contents[0]]
            contents += [label_prompt(label) for label in manifest["categories"]]
    elif split != "train":
        raise InputError(
            f"--split {split}: {source} is a table, whose rows all count; leave it out."
        )
    else:
        contents = _of_table(source)
    return list(dict.fromkeys(plain_caption(content) for content in contents))


def _of_table(path: Path) -> list[str]:
    table = read_table(path)
    columns = caption_columns_of(table.header)
    if not columns and "category" not in table.header:
        raise InputError(
            f"{path}: lacks column caption or category; it has {', '.join(table.header)}: rename "
            "or add columns (comma-separated)."
        )
    contents = []
    for where, row in table.rows:
        told = told_captions(where, row, columns)
        if not told and not row.get("category"):
            raise InputError(f"{where}: has no caption; write what is heard, or drop the row.")
        contents += told or category_phrasings(row["category"])
    return contents


def write_sentences(
    out: str | Path,
    captions: Iterable[str],
    encoder: str,
    fingerprint: str,
    width: int,
    embed: Callable[[list[str]], Float32[np.ndarray, "n e"]],
    done: Callable[[int], None] = lambda count: None,
) -> Sentences:
    """Embeds captions into a folder; goes on where an earlier call with the same arguments stopped.

    Args:
      out: the folder. One that is finished is left as it is.
      captions: in any order; of equal ones one is embedded.
      encoder: its name, for people.
      fingerprint: what tells it from others.
      width: of the vectors.
      embed: vectors of a few captions, each independent of the others.
      done: is told after each shard how many captions are dealt with.

    Returns:
      The opened folder.

    Raises:
      InputError: there is no caption, `out` holds something else, or it cannot be written.
    """
    out = Path(out)
    told = sorted({plain_caption(caption) for caption in captions}, key=_hash)
    if not told:
        raise InputError("captions: there are none; give at least one.")
    hashes = np.array([_hash(caption) for caption in told], np.uint64)
    if not np.all(np.diff(hashes)):
        raise RuntimeError("two captions have one 64-bit hash")
    header = {
        "format": _KIND.format,
        "encoder": encoder,
        "fingerprint": fingerprint,
        "width": width,
        "count": len(told),
        "captions": hashlib.sha256(hashes.tobytes()).hexdigest(),
        "in_shard": SHARD,
    }
    try:
        _KIND.start(out, header, aside="encoder")
        if not (out / INDEX).is_file():
            with replacing(out / INDEX) as draft, draft.open("wb") as file:
                np.save(file, hashes)
        for number, name in enumerate(_KIND.shards(header)):
            of_shard = told[number * SHARD : (number + 1) * SHARD]
            if not (out / name).is_file():
                vectors = np.asarray(embed(of_shard), np.float32)
                if vectors.shape != (len(of_shard), width):
                    raise ValueError(f"vectors {vectors.shape} of {len(of_shard)} captions")
                write_shard(out / name, zip(of_shard, vectors, strict=True))
            done(min(len(told), (number + 1) * SHARD))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another.") from error
    return Sentences(out)


class Sentences:
    """The vectors of captions, opened at first use; travels by pickle.

    Args:
      folder: that `spatial-clap embed-text` wrote.

    Raises:
      InputError: it is no such folder, or is not finished.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = _KIND.read(self.folder)
        self._check_counts()
        _KIND.check_whole(self.folder, self.header, INDEX)

    def _check_counts(self) -> None:
        """Refuses counts that the index cannot hold: lists of that length are made of them."""
        index = self.folder / INDEX
        most = index.stat().st_size // 8 if index.is_file() else 0
        for name, high in (("count", most), ("in_shard", 2**31), ("width", WIDEST)):
            if index.is_file() and not 1 <= self.header[name] <= high:
                raise InputError(
                    f"{self.folder / _KIND.header}: {name} {self.header[name]} must lie within 1 "
                    f"and {high}; embed again."
                )

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.header["width"]

    def __len__(self) -> int:
        return self.header["count"]

    def vectors(self, captions: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """The vectors of some captions, with or without their final period.

        Raises:
          InputError: a caption is missing.
        """
        rows, known = self._find(captions)
        if not known.all():
            raise self._missing(captions[int(np.argmin(known))])
        distinct, place = np.unique(rows, return_inverse=True)
        try:
            held = self._records.__getitems__(distinct.tolist())
            records = [read_record(record, "<f4") for record in held]
        # ArrayRecord has many kinds of errors for a damaged file.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.folder}: its shards cannot be read ({reason}); embed again."
            ) from error
        for caption, index in zip(captions, place, strict=True):
            name, vector = records[index]
            # Guards index and shards against each other.
            if name != plain_caption(caption) or vector.shape != (self.width,):
                raise InputError(f"{self.folder}: {INDEX} and its shards disagree; embed again.")
            if not np.isfinite(vector).all():
                raise InputError(
                    f"{self.folder}: the vector of {name!r} holds NaN or infinite numbers; embed "
                    "again."
                )
        return np.stack([vector for _, vector in records])[place]

    def check(self, captions: Sequence[str]) -> None:
        """Refuses to go on without all of these captions.

        Raises:
          InputError: one is missing; it is named, with the number of them.
        """
        missing = self.missing(captions)
        if missing:
            raise self._missing(missing[0], len(missing))

    def missing(self, captions: Sequence[str]) -> list[str]:
        """Those of some captions that have no vector."""
        _, known = self._find(captions)
        return [caption for caption, is_known in zip(captions, known, strict=True) if not is_known]

    def __reduce__(self):
        return Sentences, (self.folder,)

    def _missing(self, caption: str, count: int = 1) -> InputError:
        others = f" and {count - 1} more" if count > 1 else ""
        return InputError(
            f"{self.folder}: has no vector of {plain_caption(caption)!r}{others}; run embed-text "
            "again on the captions of these clips, with another --out."
        )

    def _find(
        self, captions: Sequence[str]
    ) -> tuple[Int64[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Number of each caption's record, where it is known."""
        hashes = np.array([_hash(plain_caption(caption)) for caption in captions], np.uint64)
        rows = np.searchsorted(self._hashes, hashes)
        rows[rows == len(self._hashes)] = 0
        return rows, self._hashes[rows] == hashes

    @functools.cached_property
    def _hashes(self) -> UInt64[np.ndarray, "n"]:
        path = self.folder / INDEX
        try:
            # The header of the file is checked against its size before anything is mapped.
            hashes = np.load(path, mmap_mode="r")
        # A header is a literal of Python, and each fault of it an error of its own.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: cannot be read ({reason}); embed again.") from error
        if hashes.dtype != np.uint64 or hashes.shape != (len(self),) or not len(self):
            raise InputError(
                f"{path}: holds {hashes.dtype}{list(hashes.shape)}, and {_KIND.header} tells of "
                f"{len(self)} captions; embed again."
            )
        return hashes

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource([str(self.folder / n) for n in _KIND.shards(self.header)])


def check_encoder(given: str, header: Mapping[str, Any], learnt: Any) -> None:
    """Refuses sentence embeddings of another encoder than a training had, where both are known.

    Args:
      given: what brings them, for the message.
      header: their `encoder` and `fingerprint`.
      learnt: the same of the training, as its description has it; anything else is not known.

    Raises:
      InputError: they differ.
    """
    if not isinstance(learnt, dict) or "fingerprint" not in learnt:
        return
    names = [str(one.get("encoder")) for one in (header, learnt)]
    if header["fingerprint"] != learnt["fingerprint"] and not any(
        name.endswith(VECTORS) for name in names
    ):
        raise InputError(
            f"{given}: is of the text encoder {names[0]!r}, and this model learnt from vectors of "
            f"{names[1]!r}, of other weights or another tokenizer; give that one or its vectors."
        )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
