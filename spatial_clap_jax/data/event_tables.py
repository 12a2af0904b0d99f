"""Tables of sound events: the labels and predictions of DCASE 2025 Task 3 as csv files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import bytes_of

COLUMNS = ("frame", "class", "source", "azimuth", "distance", "onscreen")
_HEADER = ",".join(COLUMNS)
# No frame, place or class comes near; arrays of integers hold it.
_LARGEST = 10**9


def read_events(path: str | Path, classes: int, labels: int) -> SoundEvents:
    """Reads a table: a header, then a row for each source in each label frame, all integers.

    Args:
      path: the csv; azimuths in degrees, +90 left, distances in centimetres.
      classes: how many there are.
      labels: frames of the clip.

    Returns:
      The events, in the order of the rows.

    Raises:
      InputError: the file is missing, lacks columns, or a row breaks a rule; line and value are
        named.

    Reference: DCASE 2025 Challenge, Task 3.
    """
    try:
        content = bytes_of(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason}); give a csv file.") from error
    rows = check_table(path, content, classes, labels)
    frame, category, source, azimuth, distance, on_screen = rows.T
    return SoundEvents(
        frame.astype(np.int32),
        category.astype(np.int32),
        source.astype(np.int32),
        azimuth.astype(np.float32),
        (distance / 100).astype(np.float32),
        on_screen.astype(bool),
    )


def write_predictions(path: str | Path, events: SoundEvents, overwrite: bool = False) -> None:
    """Writes events as a table: whole or not at all.

    Args:
      path: the csv; its folder must exist.
      events: rounded to whole degrees and centimetres.
      overwrite: replace a file that is there.

    Raises:
      InputError: the file is there already, frames are out of order, or it cannot be written.

    Reference: DCASE 2025 Challenge, Task 3.
    """
    path = Path(path)
    rows = np.stack(
        [
            events.frame,
            events.category,
            events.source,
            np.rint(events.azimuth_deg),
            np.rint(events.distance_m * np.float64(100)),
            events.on_screen,
        ],
        axis=1,
    ).astype(np.int64)
    if (np.diff(events.frame) < 0).any():
        raise InputError(f"{path}: events are not in the order of their frames; sort them.")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: is there already and is not overwritten; name another file.")
    lines = [_HEADER, *(",".join(map(str, row)) for row in rows.tolist())]
    fresh = path.with_name(f".{path.name}.partial")
    try:
        fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); name another file."
        ) from error


def check_table(
    path: str | Path, content: bytes, classes: int, labels: int
) -> Int64[np.ndarray, "n 6"]:
    """The rows of a table, each rule held.

    Args:
      path: of the file, for messages.
      content: its bytes.
      classes: how many there are.
      labels: frames of the clip.

    Returns:
      Rows of `COLUMNS`, as they stand in the file.

    Raises:
      InputError: it is no such table; the first line that breaks a rule is named.
    """
    try:
        header, *lines = content.decode("utf-8-sig").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text ({error}); save it as a csv file.") from error
    columns = tuple(cell.strip().lower() for cell in header.split(","))
    if columns != COLUMNS:
        missing = ", ".join(name for name in COLUMNS if name not in columns)
        amiss = f"lacks {missing}" if missing else f"is {header!r}"
        raise InputError(f"{path}: line 1: the header {amiss}; it must be {_HEADER}.")
    numbered = [(number, line) for number, line in enumerate(lines, start=2) if line.strip()]
    rows = np.array([_cells(path, *one) for one in numbered], np.int64).reshape(-1, len(COLUMNS))
    frame, category, source, azimuth, distance, on_screen = rows.T
    rules = (
        ("frame", (frame >= 0) & (frame < labels), f"lie in 0..{labels - 1}, the clip's frames"),
        ("frame", np.diff(frame, prepend=frame[:1]) >= 0, "not be below the one before; sort rows"),
        ("class", (category >= 0) & (category < classes), f"lie in 0..{classes - 1}"),
        ("source", source >= 0, "be 0 or more"),
        ("azimuth", np.abs(azimuth) <= 90, "lie in -90..90 degrees; fold what is behind"),
        ("distance", distance >= 0, "be 0 cm or more"),
        ("onscreen", (on_screen == 0) | (on_screen == 1), "be 0 or 1"),
    )
    for name, holds, rule in rules:
        if not holds.all():
            first = int(np.argmin(holds))
            value = rows[first, COLUMNS.index(name)]
            raise InputError(f"{path}: line {numbered[first][0]}: {name} {value} must {rule}.")
    return rows


def _cells(path: str | Path, number: int, line: str) -> list[int]:
    cells = line.split(",")
    if len(cells) != len(COLUMNS):
        raise InputError(
            f"{path}: line {number}: {len(cells)} cells {line!r}; a row has {len(COLUMNS)}, "
            f"{_HEADER}."
        )
    try:
        numbers = [int(cell) for cell in cells]
        if any(abs(number) > _LARGEST for number in numbers):
            raise ValueError
        return numbers
    except ValueError:
        raise InputError(
            f"{path}: line {number}: {line!r} holds what is no integer, or a huge one; round to "
            "whole degrees and centimetres."
        ) from None
