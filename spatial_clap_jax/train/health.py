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
from spatial_clap_jax.train.description import run_folder, write_atomically
from spatial_clap_jax.train.optim import path_text
from spatial_clap_jax.train.processes import is_first_process

_FILE = "incidents.jsonl"
_NOT_FINITE, _RECORDS = "not finite", "bad records"
# Fewer losses than this say nothing of what is usual.
_FEWEST = 20
# The median distance from the median, of a normal distribution of spread one.
_MEDIAN_DEVIATION = 0.6745


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
    """

    def __init__(
        self,
        config: HealthConfig,
        workdir: str | Path,
        resume_step: int,
        samples: Callable[[int], Sequence[str]],
        tell: Callable[[str], None],
    ):
        self._config = config
        self._workdir = run_folder(workdir)
        self._samples = samples
        self._tell = tell
        self._losses: deque[float] = deque(maxlen=config.window)
        self._bad: list[dict[str, Any]] = []
        self._skipped = self._records = 0
        self._told_records: Counter[str] = Counter()
        path = self._workdir / _FILE
        if is_first_process() and path.exists():
            kept = [row for row in read_incidents(workdir) if row["step"] <= resume_step]
            self._skipped = sum(row["kind"] == _NOT_FINITE for row in kept)
            self._records = sum(row.get("times", 0) for row in kept if row["kind"] == _RECORDS)
            write_atomically(path, "".join(map(_line, kept)))

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
        """Whether as many steps in a row as are allowed were not applied."""
        return len(self._bad) >= self._config.bad_steps

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the scalars of a step.

        Args:
          step: its number.
          metrics: `loss`, `gradient_norm` and `applied`, as numbers.
        """
        loss = float(metrics["loss"])
        if not metrics["applied"]:
            self._skipped += 1
            self._bad.append(self._note(_NOT_FINITE, step, metrics))
            self._tell(
                f"step {step}: loss {loss:g}, gradient norm {float(metrics['gradient_norm']):g}; "
                f"not applied, {len(self._bad)} in a row; its samples are in {_FILE}"
            )
            return
        self._bad.clear()
        usual = self._spike(loss)
        if usual is not None:
            self._note("spike", step, metrics)
            self._tell(
                f"step {step}: loss {loss:.3f} jumps above the usual {usual:.3f}; see {_FILE}"
            )
        self._losses.append(loss)

    def see_records(self, step: int, skipped: Counter[str]) -> None:
        """Looks at the records that could not be read.

        Args:
          step: of the last batch.
          skipped: how often each was wanted in the batches since the start.
        """
        new = skipped - self._told_records
        if not new:
            return
        self._told_records = skipped
        self._records += new.total()
        self._append({"step": step, "kind": _RECORDS, "times": new.total(), "samples": sorted(new)})
        some = ", ".join(sorted(new)[:3]) + (" and more" if len(new) > 3 else "")
        self._tell(
            f"step {step}: {some} cannot be read, others stand in; {self._records} so far, see "
            f"{_FILE}"
        )

    def stop(self, state: Any, experiment: Mapping[str, Any], saved: int) -> RunStopped:
        """Writes all that is needed to see what went wrong, and says so.

        Args:
          state: after the last step, unchanged since the last one that was applied.
          experiment: as plain JSON.
          saved: the step whose checkpoint holds that state.

        Returns:
          The error that ends the run.
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
        first, last = self._bad[0]["step"], self._bad[-1]["step"]
        return RunStopped(
            f"{self._workdir}: loss or gradients of steps {first} to {last} were not finite, and "
            f"{self._config.bad_steps} in a row end a run; the weights before them are saved as "
            f"step {saved}, and {folder} tells the samples and the state. Mend the data or lower "
            "the learning rate, or raise --health.bad-steps, and start again."
        )

    def _spike(self, loss: float) -> float | None:
        """The usual loss, where this one lies far above it."""
        if self._config.spike is None or len(self._losses) < _FEWEST:
            return None
        usual = statistics.median(self._losses)
        spread = statistics.median(abs(x - usual) for x in self._losses) / _MEDIAN_DEVIATION
        return usual if loss > usual + self._config.spike * max(spread, 1e-3 * abs(usual)) else None

    def _note(self, kind: str, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        numbers = {name: _plain(float(value)) for name, value in metrics.items()}
        row = {"step": step, "kind": kind, **numbers, "samples": list(self._samples(step))}
        self._append(row)
        return row

    def _append(self, row: Mapping[str, Any]) -> None:
        if is_first_process():
            with (self._workdir / _FILE).open("a", encoding="utf-8") as file:
                file.write(_line(row))


def read_incidents(workdir: str | Path) -> list[dict[str, Any]]:
    """What was unusual in a run, in order; a torn last line is left out.

    Returns:
      Rows of `step`, `kind` ('not finite', 'spike' or 'bad records'), the step's scalars (of bad
      records how many `times` they were wanted) and `samples`.

    Raises:
      InputError: a line before the last is damaged.
    """
    path = run_folder(workdir) / _FILE
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: line {number} is no incident ({error}); remove that line."
            ) from error
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


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
