"""Watches the numbers of a training: steps that could not be applied, and losses that jump."""

import json
import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spatial_clap_jax.errors import InputError, RunStopped
from spatial_clap_jax.small_files import bytes_of, count_of, parsed_json
from spatial_clap_jax.train.appended_lines import AppendedLines, with_waiting
from spatial_clap_jax.train.description import run_folder, write_atomically
from spatial_clap_jax.train.optim import path_text
from spatial_clap_jax.train.processes import is_first_process, total_of_all

_FILE = "incidents.jsonl"
_NOT_FINITE, _RECORDS = "not finite", "bad records"
# Fewer losses than this say nothing of what is usual.
_FEWEST = 20
# The median distance from the median, of a normal distribution of spread one.
_MEDIAN_DEVIATION = 0.6745
_NONE: Counter[str] = Counter()


@dataclass(frozen=True)
class HealthConfig:
    """When numbers have gone wrong.

    Attributes:
      bad_steps: steps in a row whose loss or gradients are not finite that end the run; such a
        step changes no weight, whatever this is.
      spike: a loss this many spreads above the median of the losses before it is reported; None
        reports none.
      window: how many losses those are.
    """

    bad_steps: int = 10
    spike: float | None = 10.0
    window: int = 100

    def __post_init__(self) -> None:
        if self.bad_steps < 1:
            raise InputError(f"health.bad_steps: {self.bad_steps}; give at least 1.")
        if self.spike is not None and not self.spike > 0:
            raise InputError(f"health.spike: {self.spike}; give more than 0, or None.")
        if self.window < _FEWEST:
            raise InputError(f"health.window: {self.window}; give at least {_FEWEST}.")


@dataclass(frozen=True)
class _Records:
    """Records that could not be read: how often one was wanted, and their names."""

    times: int = 0
    names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None) -> "_Records":
        """Those that were saved, of all processes, on process 0; none on the others."""
        if not saved or not is_first_process():
            return cls()
        return cls(saved.get("times", 0), frozenset(saved.get("names", ())))


class HealthWatch:
    """Notes what is unusual in `incidents.jsonl`, and ends a run whose numbers stay wrong.

    Only process 0 writes.

    Args:
      config: what counts as unusual.
      workdir: the run's folder.
      resume_step: the step that the run goes on from: later incidents, which may come again, are
        dropped.
      samples: what the batch of a step was made of, by name.
      tell: is told of each incident.
      state: of the run that goes on, as `get_state` gave it with that step.
    """

    def __init__(
        self,
        config: HealthConfig,
        workdir: str | Path,
        resume_step: int,
        samples: Callable[[int], Sequence[str]],
        tell: Callable[[str], None],
        state: Mapping[str, Any] | None = None,
    ):
        self._config = config
        self._workdir = run_folder(workdir)
        self._file = AppendedLines(self._workdir / _FILE)
        self._samples = samples
        self._tell = tell
        state = state or {}
        self._losses: deque[float] = deque(state.get("losses", ()), maxlen=config.window)
        self._bad: list[dict[str, Any]] = list(state.get("bad", ()))
        self._skipped = self._records = 0
        self._told_records: Counter[str] = Counter()
        self._carried = _Records.of(state.get("records"))
        path, waiting = self._workdir / _FILE, state.get("waiting", ())
        if is_first_process() and (path.exists() or waiting):
            lines = [_line(row) for row in read_incidents(workdir) if row["step"] <= resume_step]
            lines = with_waiting(lines, waiting)
            kept = [parsed_json(line) for line in lines]
            self._skipped = sum(row["kind"] == _NOT_FINITE for row in kept)
            self._records = sum(row["times"] for row in kept if row["kind"] == _RECORDS)
            write_atomically(path, "".join(lines))

    def get_state(self, skipped: Counter[str] = _NONE) -> dict[str, Any]:
        """What is known of the steps before, as plain JSON: to be saved with the run's state.

        Who starts a run again that was ended has mended something: it is counted anew then.

        Args:
          skipped: as in `see_records`, all processes must come here at the same step: records that
            nothing has told of yet are told by the run that goes on, when this one would have.
        """
        records = self._pending(skipped)
        return {
            "losses": list(self._losses),
            "bad": [] if self.is_hopeless else list(self._bad),
            "waiting": self._file.waiting,
            "records": {"times": total_of_all(records.times), "names": sorted(records.names)},
        }

    @property
    def skipped(self) -> int:
        """Steps of the run that were not applied."""
        return self._skipped

    @property
    def skipped_records(self) -> int:
        """How often in the run a record that cannot be read was replaced by another."""
        return self._records

    @property
    def is_hopeless(self) -> bool:
        """Whether as many steps in a row as are allowed were not applied, at any time."""
        return len(self._bad) >= self._config.bad_steps

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the scalars of a step.

        Args:
          step: its number.
          metrics: `loss`, `gradient_norm` and `applied`, as numbers.

        Raises:
          OSError: it is seen, but cannot be noted; the note follows with the next one.
        """
        loss = float(metrics["loss"])
        if not metrics["applied"]:
            self._skipped += 1
            self._bad.append(self._row(_NOT_FINITE, step, metrics))
            self._tell(
                f"step {step}: loss {loss:g}, gradient norm {float(metrics['gradient_norm']):g}; "
                f"not applied, {len(self._bad)} in a row; its samples are in {_FILE}"
            )
            self._append(self._bad[-1])
            return
        # The step after the last one that is allowed may have been on its way, and a good one.
        if not self.is_hopeless:
            self._bad.clear()
        usual = self._spike(loss)
        self._losses.append(loss)
        if usual is not None:
            self._tell(
                f"step {step}: loss {loss:.3f} jumps above the usual {usual:.3f}; see {_FILE}"
            )
            self._append(self._row("spike", step, metrics))

    def see_records(self, step: int, skipped: Counter[str]) -> None:
        """Looks at the records that could not be read; all processes must, at the same steps.

        Args:
          step: of the last batch.
          skipped: how often each was wanted in the batches of this process since the start.

        Raises:
          OSError: as `see`.
        """
        new = self._pending(skipped)
        times = total_of_all(new.times)
        if not times:
            return
        self._told_records, self._carried = skipped, _Records()
        self._records += times
        names = sorted(new.names)
        row = {"step": step, "kind": _RECORDS, "times": times, "samples": names}
        some = ", ".join(names[:3]) or "records of other processes"
        more = " and more" if len(names) > 3 or times > new.times > 0 else ""
        self._tell(
            f"step {step}: {some}{more} cannot be read, others stand in; {self._records} so far, "
            f"see {_FILE}"
        )
        self._append(row)

    def bundle(self, state: Any, experiment: Mapping[str, Any]) -> Path:
        """Writes all that is needed to see what went wrong.

        Args:
          state: unchanged since the last step that was applied.
          experiment: as plain JSON.

        Returns:
          The folder.

        Raises:
          OSError: it cannot be written.
        """
        folder = self._workdir / f"incident_{self._bad[-1]['step']}"
        summary = _summary(state)
        if is_first_process():
            for name, content in (
                ("steps.json", self._bad),
                ("state.json", summary),
                ("experiment.json", experiment),
            ):
                write_atomically(folder / name, json.dumps(content, indent=1) + "\n")
        return folder

    def stopped(self, outcome: str) -> RunStopped:
        """The error that ends the run.

        Args:
          outcome: what has become of the state and of the bundle, in words.
        """
        first, last = self._bad[0]["step"], self._bad[-1]["step"]
        return RunStopped(
            f"{self._workdir}: loss or gradients of steps {first} to {last} were not finite, and "
            f"{self._config.bad_steps} in a row end a run; {outcome}. Mend the data or lower "
            "the learning rate, or raise --health.bad-steps, and start again."
        )

    def _pending(self, skipped: Counter[str]) -> "_Records":
        """What this process has to tell of records."""
        new = skipped - self._told_records
        return _Records(self._carried.times + new.total(), self._carried.names | new.keys())

    def _spike(self, loss: float) -> float | None:
        """The usual loss, where this one lies far above it."""
        if self._config.spike is None or len(self._losses) < _FEWEST:
            return None
        usual = statistics.median(self._losses)
        spread = statistics.median(abs(x - usual) for x in self._losses) / _MEDIAN_DEVIATION
        return usual if loss > usual + self._config.spike * max(spread, 1e-3 * abs(usual)) else None

    def _row(self, kind: str, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        numbers = {name: _plain(float(value)) for name, value in metrics.items()}
        return {"step": step, "kind": kind, **numbers, "samples": list(self._samples(step))}

    def _append(self, row: Mapping[str, Any]) -> None:
        if is_first_process():
            self._file.append(_line(row))


def read_incidents(workdir: str | Path) -> list[dict[str, Any]]:
    """What was unusual in a run, in order; a torn last line is left out.

    Returns:
      Rows of `step`, `kind` ('not finite', 'spike' or 'bad records'), the step's scalars (of bad
      records how many `times` they were wanted) and `samples`.

    Raises:
      InputError: it cannot be read, or a line before the last is damaged.
    """
    path = run_folder(workdir) / _FILE
    if not path.is_file():
        return []
    rows = []
    try:
        lines = bytes_of(path).split(b"\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); move it away.") from error
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(check_incident(parsed_json(line)))
        except ValueError as error:
            raise InputError(
                f"{path}: line {number} is no incident ({error}); remove that line."
            ) from error
    return rows


def check_incident(row: Any) -> dict[str, Any]:
    """A row that can be counted, and written again.

    Args:
      row: as it was read.

    Returns:
      The same.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        raise ValueError("it has no kind")
    count_of(row.get("step"))
    if row["kind"] == _RECORDS:
        count_of(row.get("times"))
    try:
        _line(row)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return row


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _summary(state: Any) -> dict[str, dict[str, Any]]:
    """Of every array of floats: its shape, how many are not finite, its norm and its extremes."""

    @jax.jit
    def of_floats(arrays: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, ...]]:
        def one(x: jax.Array) -> tuple[jax.Array, ...]:
            finite = jnp.isfinite(x)
            x = jnp.where(finite, x, 0).astype(jnp.float32)
            return jnp.sum(~finite), jnp.linalg.norm(x.ravel()), x.min(), x.max()

        return {name: one(x) for name, x in arrays.items() if x.size}

    arrays = {
        path_text(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    return {
        name: {
            "shape": list(arrays[name].shape),
            "not_finite": int(bad),
            "norm": _plain(float(norm)),
            "min": _plain(float(low)),
            "max": _plain(float(high)),
        }
        for name, (bad, norm, low, high) in jax.device_get(of_floats(arrays)).items()
    }
