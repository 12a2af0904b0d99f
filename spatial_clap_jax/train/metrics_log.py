"""The log of a run: one JSON object a line, the same scalars for TensorBoard, W&B if asked."""

import contextlib
import importlib
import json
import math
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import bytes_of, parsed_json, text_of
from spatial_clap_jax.train.appended_lines import AppendedLines, with_waiting
from spatial_clap_jax.train.description import run_folder, write_atomically

_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends scalars by step; a resumed run's log reads as if it had never stopped.

    Only process 0 writes, the others' calls do nothing. TensorBoard's files lie in
    `workdir/tensorboard`.

    Args:
      workdir: the run's folder; made when missing.
      resume_step: the step of the checkpoint that the run goes on from: rows of later
        steps, which it will write again, are dropped. None starts anew: all are. So
        write a step's row before its checkpoint is saved.
      waiting: rows that could not be written before that checkpoint was saved, as `waiting` gave
        them then.
      wandb: send the scalars to Weights & Biases as well.

    Raises:
      InputError: `wandb` is not installed, or the log is damaged before its last line.

    Reference: our choice.
    """

    def __init__(
        self,
        workdir: str | Path,
        resume_step: int | None = None,
        *,
        waiting: Sequence[str] = (),
        wandb: bool = False,
    ):
        self._file: AppendedLines | None = None
        self._tensorboard = self._wandb = None
        self._scored: set[int] = set()
        if jax.process_index() != 0:
            return
        folder = run_folder(workdir)
        if wandb:
            self._wandb = _start_wandb(folder)
        folder.mkdir(parents=True, exist_ok=True)
        last = -1 if resume_step is None else resume_step
        rows: list[dict] = []
        if has_metrics(folder) or waiting:
            rows = read_metrics(folder) if has_metrics(folder) else []
            kept = [_line(row) for row in rows if row["step"] <= last]
            write_atomically(folder / _FILE, "".join(with_waiting(kept, waiting)))
            rows = read_metrics(folder)
            self._scored = {row["step"] for row in rows if "loss" not in row}
        (folder / _FILE).touch()
        self._file = AppendedLines(folder / _FILE)
        # What waited for room may have waited here as well, and is not saved a second time.
        begins = min((row_of(line)["step"] for line in waiting), default=last + 1)
        again = [row for row in rows if row["step"] >= begins]
        self._tensorboard = _TensorBoard(folder / "tensorboard", begins, again)

    @property
    def waiting(self) -> list[str]:
        """Rows that could not be written so far: to be saved with the run's state."""
        return [] if self._file is None else self._file.waiting

    def has_scores(self, step: int) -> bool:
        """Whether the log that is gone on with holds an evaluation of a step, on process 0."""
        return step in self._scored

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row.

        Args:
          step: steps done.
          metrics: name to number (Python, NumPy or JAX scalar).

        Raises:
          OSError: it cannot be written; the file ends with a whole line, and the row follows with
            the next one.
        """
        if self._file is None or self._tensorboard is None:
            return
        row = {name: _number(value) for name, value in metrics.items()}
        self._tensorboard.write(step, row)
        if self._wandb is not None:
            self._wandb.log(row, step=step)
        self._file.append(_line({"step": step, **row}))

    def close(self) -> None:
        """Closes the files; a row that could not be written is tried once more."""
        if self._file is not None and self._tensorboard is not None:
            with contextlib.suppress(OSError):
                self._file.flush()
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class _TensorBoard:
    """Scalars for TensorBoard, written as they come.

    Not by its usual writer, whose thread dies of a full disk and then blocks who gives it more.
    What cannot be written waits, and begins a file of its own.
    """

    def __init__(self, folder: Path, purge_step: int, rows: Sequence[Mapping[str, Any]]):
        self._folder = folder
        self._files = 0
        self._writer: EventsWriter | None = None
        self._waiting = [_event(row["step"], row) for row in rows]
        self._purge_step = purge_step
        self._flush()

    def write(self, step: int, row: Mapping[str, float | int]) -> None:
        """Adds the scalars of a step."""
        self._waiting.append(_event(step, row))
        self._flush()

    def _flush(self) -> None:
        try:
            if self._writer is None:
                self._writer = self._opened()
            for event in self._waiting:
                self._writer.write_event(event)
            self._writer.flush()
        except OSError:
            self.close()
        else:
            self._waiting.clear()

    def _opened(self) -> EventsWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Files that begin in one second must not have one name.
        self._files += 1
        writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{self._files}")
        # Of steps that the file before may hold as well, these here count.
        first = self._waiting[0].step if self._waiting else self._purge_step
        begins = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=first, session_log=begins))
        return writer

    def close(self) -> None:
        """Closes the file, where there is one; what waits is left out if it is the end."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def _event(step: int, row: Mapping[str, float | int]) -> Event:
    # TensorBoard draws no other numbers, and its readers complain of each.
    values = [
        Summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if name != "step" and math.isfinite(value)
    ]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=values))


def has_metrics(workdir: str | Path) -> bool:
    """Whether a run has a log."""
    return (run_folder(workdir) / _FILE).is_file()


def read_metrics(workdir: str | Path) -> list[dict]:
    """Reads a run's log, in the order it was written; a torn last line is left out.

    Returns:
      Rows of {"step": int, name: number}, with NaN and infinities as floats.

    Raises:
      InputError: there is no log, or a line before the last is damaged.
    """
    path = run_folder(workdir) / _FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the --workdir of a training.")
    try:
        lines = bytes_of(path).split(b"\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore the file.") from error
    rows = []
    # What follows the last line end is empty, or a row whose writing was cut short.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(row_of(line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{path}: line {number} is no metrics row ({error}); remove that line."
            ) from error
    return rows


def row_of(line: str | bytes) -> dict:
    """A row of the log, as `read_metrics` gives it.

    Raises:
      ValueError, KeyError, TypeError, AttributeError, OverflowError: it is none.
    """
    row = parsed_json(line)
    return {"step": int(row.pop("step")), **{k: _decoded(v) for k, v in row.items()}}


def _line(row: dict) -> str:
    # JSON knows no NaN and no infinity: they are written as strings, "nan" and "inf".
    finite = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _decoded(value: Any) -> float | int:
    if isinstance(value, str):
        return float(value)
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _number(value: Any) -> float | int:
    return value if isinstance(value, int) else value.item() if hasattr(value, "item") else value


def _start_wandb(folder: Path) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise InputError(
            'wandb: is not installed; pip install "spatial-clap-jax[wandb]", or leave it off.'
        ) from error
    # The id makes a resumed run go on in the same W&B run.
    path = folder / "wandb_id.txt"
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex)
    try:
        run_id = text_of(path).strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore or remove it.") from error
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id):
        raise InputError(
            f"{path}: holds no id of a W&B run; restore it, or remove it to begin a new run there."
        )
    return wandb.init(project="spatial-clap-jax", name=folder.name, id=run_id, resume="allow")
