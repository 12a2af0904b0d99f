"""A person's own recordings: a table of files, their captions and captions that do not fit."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import text_of

RECORDING_COLUMNS = ("filename", "caption", "wrong_captions")


@dataclasses.dataclass(frozen=True)
class Recording:
    """One row of a table of recordings.

    Attributes:
      path: the audio file.
      caption: what it holds.
      wrong: captions that it does not fit.
      place: file and row, for messages.
    """

    path: Path
    caption: str
    wrong: tuple[str, ...]
    place: str


def read_recordings(csv_path: str | Path) -> list[Recording]:
    """Reads and checks a table of recordings; its columns are `RECORDING_COLUMNS`.

    Args:
      csv_path: the table, UTF-8: `filename` inside the csv's folder, `caption`, `wrong_captions`
        (separated by `|`; may be blank); further columns are ignored.

    Returns:
      Its rows, at least one.

    Raises:
      InputError: names the file, the row (the first below the header is 1) and the rule it breaks.
    """
    path = Path(csv_path)
    try:
        reader = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
        columns = reader.fieldnames or ()
        table = list(reader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a csv file.") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 csv table ({error}); save it as one.") from error
    missing = [column for column in RECORDING_COLUMNS if column not in columns]
    if missing:
        raise InputError(
            f"{path}: column(s) {', '.join(missing)} missing; the header must name "
            f"{', '.join(RECORDING_COLUMNS)}."
        )
    if not table:
        raise InputError(f"{path}: holds no row; give at least one recording.")
    seen: dict[Path, int] = {}
    recordings = []
    for number, cells in enumerate(table, start=1):
        recording = _recording(cells, path.parent, f"{path}: row {number}")
        first = seen.setdefault(recording.path, number)
        if first != number:
            raise InputError(
                f"{recording.place}: filename '{cells['filename']}' stands in row {first} too; "
                "give each recording one row."
            )
        recordings.append(recording)
    return recordings


def _recording(cells: Mapping[str, Any], folder: Path, place: str) -> Recording:
    if None in cells or None in cells.values():
        raise InputError(
            f"{place}: has not as many cells as the header; quote cells that hold a comma."
        )
    filename, caption, wrong = (cells[column].strip() for column in RECORDING_COLUMNS)
    if not filename or "\0" in filename:
        raise InputError(
            f"{place}: filename {filename!r} is no name; name a file inside the csv's folder."
        )
    audio = Path(os.path.realpath(folder / filename))
    if not audio.is_relative_to(os.path.realpath(folder)):
        raise InputError(
            f"{place}: filename '{filename}' leaves the csv's folder; give paths inside it."
        )
    if not os.path.isfile(audio):
        raise InputError(f"{place}: filename '{filename}' is no file; give one that exists.")
    if not caption:
        raise InputError(f"{place}: caption is empty; say what is heard and where.")
    wrongs = tuple(dict.fromkeys(text.strip() for text in wrong.split("|"))) if wrong else ()
    if "" in wrongs:
        raise InputError(
            f"{place}: wrong_captions '{wrong}' holds an empty caption; put text around each '|'."
        )
    if caption in wrongs:
        raise InputError(
            f"{place}: wrong_captions holds the caption '{caption}' itself; remove it there."
        )
    return Recording(audio, caption, wrongs, place)
