"""Tables of clips: csv files of several formats, read into one kind of entry and checked."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from spatial_clap_jax.acoustics.captions import category_phrasings
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import bytes_of

# Spellings in a split column and at the end of a csv's name. 'development' is Clotho's training
# set, while 'dev' is a validation set nearly everywhere else.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "development"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
_LONGEST_FOLD = 9
_ESC_NAME = re.compile(r"\d+-(\d+)-[A-Z](-\d+)?\.\w+")


class Table(NamedTuple):
    """A csv: lower-case header, rows with the words that name each in an error, its bytes."""

    header: list[str]
    rows: list[tuple[str, dict[str, str]]]
    content: bytes


@dataclasses.dataclass
class Entry:
    """Rows of one file, merged."""

    where: str
    clip_id: str
    stems: tuple[str, ...]
    endings: tuple[str, ...]
    folder: str
    captions: tuple[str, ...]
    category: str
    split: str
    fold: str
    recording: str


def split_word(path: Path) -> tuple[str, str]:
    """('captions_', 'val') for captions_val.csv; ('', '') where the name ends in no split."""
    match = re.fullmatch(r"(?:(.*[_\-. ])|)([a-z]+)", path.stem, re.IGNORECASE)
    if match and match[2].lower() in SPLIT_WORDS:
        return match[1] or "", match[2].lower()
    return "", ""


def read_table(path: Path) -> Table:
    """Reads a csv whole.

    Raises:
      InputError: it is missing, empty, not UTF-8 or no valid csv, a column stands twice, or a row
        has not as many fields as the header.
    """
    # Not `Path.is_file`, which raises for a name that is too long.
    if not os.path.isfile(path):
        kind = "is a folder" if os.path.isdir(path) else "no such file"
        raise InputError(f"{path}: {kind}; give a csv file, or 'synthetic' for the built-in bank.")
    try:
        content = bytes_of(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason}); check the file.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: row {row}: byte 0x{content[error.start]:02x} is not UTF-8; save the csv as "
            "UTF-8."
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    table: list[tuple[str, dict[str, str]]] = []
    try:
        for fields in reader:
            where = f"{path}: row {reader.line_num}"
            fields = [field.strip() for field in fields]
            if not any(fields):
                continue
            if not header:
                header = [field.lower() for field in fields]
                if any("\0" in name for name in header):
                    raise InputError(
                        f"{path}: the header holds NUL bytes, as UTF-16 does; save the csv as "
                        "UTF-8."
                    )
                twice = sorted({name for name in header if name and header.count(name) > 1})
                if twice:
                    raise InputError(
                        f"{path}: column {', '.join(twice)} stands twice; give each its own name "
                        "(captions: caption_1, caption_2, ...)."
                    )
                continue
            if len(fields) != len(header):
                raise InputError(
                    f"{where}: {len(fields)} fields where the header has {len(header)}; put "
                    "double quotes around fields that hold commas."
                )
            table.append((where, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise InputError(
            f"{path}: row {reader.line_num}: no valid csv ({error}); mind the double quotes."
        ) from error
    if not table:
        kind = "has a header and no rows" if header else "is empty"
        raise InputError(f"{path}: the csv {kind}; list at least one clip.")
    return Table(header, table, content)


def read_entries(path: Path, table: Table, caption_columns: Sequence[str]) -> list[Entry]:
    """The rows of a csv as entries, in their order; splits and folds as far as they are told.

    Args:
      path: of the csv; a word of a split at the end of its name tells where audio may lie, and the
        split where no column does.
      table: what it holds.
      caption_columns: columns with captions; empty: `caption`, `caption_1`, `caption_2`, ...

    Returns:
      One entry a row; see `merge`.

    Raises:
      InputError: a column is missing, or a row has neither caption nor category, an unknown split
        or a path that leaves the csv's folder.
    """
    header, word = table.header, split_word(path)[1]
    captions = caption_columns or caption_columns_of(header)
    file_column = next((name for name in ("filename", "file_name") if name in header), "")
    audiocaps = not file_column and {"youtube_id", "start_time"} <= set(header)
    missing = [column for column in captions if column not in header]
    if not file_column and not audiocaps:
        missing.append("filename")
    if not captions and "category" not in header:
        missing.append("caption or category")
    if missing:
        raise InputError(
            f"{path}: lacks column {', '.join(missing)}; it has {', '.join(header)}: rename "
            "or add columns (comma-separated)."
        )
    entries = []
    for where, row in table.rows:
        names_of = _audiocaps_names if audiocaps else _generic_names
        clip_id, stems, recording = names_of(where, row, file_column)
        texts, category = told_captions(where, row, captions), row.get("category", "")
        if not texts and not category:
            column = captions[0] if captions else "category"
            raise InputError(
                f"{where}: {column} of {clip_id!r} is empty; write what is heard, or drop the row."
            )
        if "split" in header:
            split, fold = _split_of(where, row["split"]), ""
        else:
            fold = row.get("fold", "")
            # Python refuses to make a number of thousands of digits.
            if len(fold) > _LONGEST_FOLD:
                raise InputError(
                    f"{where}: fold {fold[:_LONGEST_FOLD]!r}... is no fold; number the folds."
                )
            split = "" if "fold" in header else SPLIT_WORDS.get(word, "")
        entries.append(
            Entry(
                where=where,
                clip_id=clip_id,
                stems=stems,
                endings=AUDIO_EXTENSIONS if audiocaps else ("",),
                folder=word,
                captions=texts,
                category=category,
                split=split,
                fold=fold,
                recording=recording,
            )
        )
    return entries


def caption_columns_of(header: Sequence[str]) -> tuple[str, ...]:
    """The columns `caption`, `caption_1`, `caption_2`, ... of a header."""
    return tuple(column for column in header if re.fullmatch(r"caption(_\d+)?", column))


def told_captions(where: str, row: dict[str, str], columns: Sequence[str]) -> tuple[str, ...]:
    """The captions of a row; none where phrasings of its category stand for them.

    Raises:
      InputError: its category holds no label.
    """
    if row.get("category"):
        try:
            category_phrasings(row["category"])
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    texts = (" ".join(row[column].split()) for column in columns)
    return tuple(text for text in texts if text.strip(". "))


def merge(rows: Iterable[Entry]) -> list[Entry]:
    """One entry a file: the captions and names of its rows together.

    Args:
      rows: entries of all tables; changed in place.

    Raises:
      InputError: rows of one file differ in category, split, fold or recording.
    """
    entries: dict[str, Entry] = {}
    for row in rows:
        first = entries.setdefault(row.clip_id, row)
        for column in ("category", "split", "fold", "recording"):
            old, new = getattr(first, column), getattr(row, column)
            if old != new:
                raise InputError(
                    f"{row.where}: {row.clip_id!r} has {column} {new!r}, but {old!r} at "
                    f"{first.where}; make the rows of one file agree."
                )
        first.captions = tuple(dict.fromkeys(first.captions + row.captions))
        first.stems = tuple(dict.fromkeys(first.stems + row.stems))
    return list(entries.values())


def _generic_names(
    where: str, row: dict[str, str], column: str
) -> tuple[str, tuple[str, ...], str]:
    """Clip id, names that its file may have (endings apart), and recording."""
    name = row[column].replace("\\", "/")
    _check_name(where, column, name)
    clip_id = os.path.normpath(name)
    esc = _ESC_NAME.fullmatch(os.path.basename(clip_id)) if "fold" in row else None
    recording = row.get("recording") or (esc[1] if esc else clip_id)
    return clip_id, (clip_id,), recording


def _audiocaps_names(
    where: str, row: dict[str, str], _column: str
) -> tuple[str, tuple[str, ...], str]:
    """The same for AudioCaps, whose rows name a video and a second."""
    for column in ("youtube_id", "start_time", "audiocap_id"):
        value = row.get(column, "0")
        _check_name(where, column, value)
        if "/" in value or "\\" in value:
            raise InputError(f"{where}: {column} {value!r} holds a slash; give the id alone.")
    video, clip_id = row["youtube_id"], f"{row['youtube_id']}_{row['start_time']}"
    return clip_id, (clip_id, video, row.get("audiocap_id", clip_id)), video


def _check_name(where: str, column: str, name: str) -> None:
    if not name or not name.isprintable():
        raise InputError(f"{where}: {column} {name!r} is empty or unprintable; give a file's name.")
    leaves = (
        name.startswith("/")
        or re.match("[A-Za-z]:/", name)
        or os.path.normpath(name).split("/")[0] == ".."
    )
    if leaves:
        raise InputError(
            f"{where}: {column} {name!r} leaves the csv's folder; give paths inside it, or its "
            "folder as audio_folder."
        )


def _split_of(where: str, value: str) -> str:
    split = SPLIT_WORDS.get(value.lower())
    if split is None:
        raise InputError(
            f"{where}: split {value!r} is unknown; give one of {', '.join(SPLIT_WORDS)}."
        )
    return split
