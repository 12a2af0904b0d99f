"""What a person sees of a training: a bar on a terminal, lines elsewhere."""

import contextlib
import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spatial_clap_jax.shown import printable
from spatial_clap_jax.streams import unbroken_stderr

# More waiting for data than this is worth a line.
_MUCH_WAITING = 0.1


class TrainProgress:
    """Counts clips and waiting, and shows loss, clips/s and time left.

    Args:
      steps: length of the run.
      clips_per_step: captions (or clips) in a global batch.
      workers: processes that build batches, for a hint where the loop waits for them.
      show: false shows nothing and still counts.
    """

    def __init__(self, steps: int, clips_per_step: int, *, workers: int = 0, show: bool = True):
        self._steps = steps
        self._clips_per_step = clips_per_step
        self._workers = workers
        self._flops_per_step = self._model_flops_per_step = 0.0
        self._peak_flops: float | None = None
        self._peak_text = ""
        self._is_told = False
        # Rich ends the process where its pipe is broken, and a full disk would end the training.
        self._console = Console(
            file=unbroken_stderr(), stderr=True, quiet=not show or jax.process_index() != 0
        )
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=steps, text="")
        self._since = (time.perf_counter(), 0)
        self._waited_s = 0.0
        self._done = 0
        self._watch = ThreadPoolExecutor(1, "step")
        self._step: Future[float] | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._watch.shutdown(wait=False)

    def announce(self, text: str) -> None:
        """Prints a line of its own; names in it come from data, and no terminal shall obey them."""
        self._console.print(
            printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def started(
        self,
        flops_per_step: float,
        model_flops_per_step: float,
        peak_flops: float | None,
        device_kind: str,
    ) -> None:
        """Starts the clock, with what a step costs and what the devices can do.

        Args:
          flops_per_step: of the whole global batch, those that are spent again to save memory too.
          model_flops_per_step: without these.
          peak_flops: FLOPs a second of all devices together; None if unknown.
          device_kind: what they are.
        """
        self._flops_per_step, self._peak_flops = flops_per_step, peak_flops
        self._model_flops_per_step = model_flops_per_step
        self._peak_text = "" if peak_flops else f"unknown peak of {device_kind}"
        self._since, self._waited_s = (time.perf_counter(), self._done), 0.0

    def at_work(self, results: Any) -> None:
        """Notes that the devices are at work on a step until these results of it are there."""
        self._step = self._watch.submit(_when_there, results)

    def waited(self, since: float) -> None:
        """Counts the time that the devices had nothing to do, in a wait for data that ends now.

        Args:
          since: when it began, by `time.perf_counter`. The loop is a step ahead of the devices,
            so that a wait costs nothing as long as they are at work on the step before.
        """
        now = time.perf_counter()
        if self._step is not None:
            since = max(since, self._step.result()) if self._step.done() else now
        self._waited_s += now - since

    def paused(self) -> None:
        """Leaves out of the rates what was done since the last of them, and the time of it."""
        self._since, self._waited_s = (time.perf_counter(), self._done), 0.0

    def advance(self, finished: int) -> None:
        """Moves the bar to a number of finished steps."""
        self._done += 1
        self._bar.update(self._task, completed=finished)

    def rates(self) -> dict[str, float]:
        """What was done a second since the last call.

        Returns:
          `clips_per_s`; `data_wait_share`, the share of time that the devices waited for batches;
          after `started` also `flops_per_s` of all devices, and `mfu`, the share of their peak
          that the model's own take, where that is known.
        """
        began, before = self._since
        now = time.perf_counter()
        steps_per_s = (self._done - before) / max(now - began, 1e-9)
        rates = {
            "clips_per_s": steps_per_s * self._clips_per_step,
            "data_wait_share": self._waited_s / max(now - began, 1e-9),
        }
        if self._flops_per_step:
            rates["flops_per_s"] = steps_per_s * self._flops_per_step
        if self._flops_per_step and self._peak_flops:
            rates["mfu"] = steps_per_s * self._model_flops_per_step / self._peak_flops
        self._since, self._waited_s = (now, self._done), 0.0
        return rates

    def show(self, finished: int, row: dict[str, float]) -> None:
        """Shows a logged row."""
        text = f"loss {row['loss']:.3f}  {row['clips_per_s']:.0f} clips/s"
        if "mfu" in row:
            text += f"  MFU {row['mfu']:.1%}"
        elif "flops_per_s" in row:
            text += f"  {row['flops_per_s'] / 1e9:.0f} GFLOP/s ({self._peak_text})"
        waiting = row.get("data_wait_share", 0.0)
        if waiting > _MUCH_WAITING:
            text += f"  waits {waiting:.0%} for data"
        # Not a number where the batch has no group of several, as without SCL.
        if not math.isnan(row.get("assignment", math.nan)):
            text += f"  assignment {row['assignment']:.2f}"
        self._bar.update(self._task, text=text)
        if not self._console.is_terminal:
            speed = row["clips_per_s"]
            left = (self._steps - finished) * self._clips_per_step / speed if speed else math.inf
            self.announce(f"step {finished}/{self._steps}  {text}  {left:.0f} s left")
        # Said anew only after it has been well in between.
        if waiting > _MUCH_WAITING and not self._is_told:
            self.announce(waiting_hint(waiting, self._workers, os.cpu_count() or 1))
        self._is_told = waiting > _MUCH_WAITING


def _when_there(results: Any) -> float:
    """The time at which results are there."""
    # What became of them the loop tells, which needs them.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.block_until_ready(results)
    return time.perf_counter()


def waiting_hint(share: float, workers: int, cores: int) -> str:
    """A line on why a training may wait for data, and what to try.

    Args:
      share: of the time, 0 to 1.
      workers: processes that build batches.
      cores: of this machine.
    """
    if workers == 0 and cores > 2:
        why = f"batches are built in this process; try --data.workers {min(8, cores // 2)}"
    elif workers == 0:
        why = f"training and building batches share {cores} cores; use a machine with more"
    elif workers < cores:
        more = min(2 * workers, cores)
        why = f"{workers} workers build batches on {cores} cores; try --data.workers {more}"
    else:
        why = (
            f"{workers} workers keep {cores} cores busy, or wait for the disk; put the scenes on "
            "a faster disk, or train on more hosts"
        )
    return f"waits {share:.0%} of the time for data: {why}"
