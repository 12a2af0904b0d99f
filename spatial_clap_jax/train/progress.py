"""What a person sees of a training: a bar on a terminal, lines elsewhere."""

import math
import time
from types import TracebackType
from typing import Self

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainProgress:
    """Counts clips and waiting, and shows loss, clips/s and time left.

    Args:
      steps: length of the run.
      clips_per_step: captions (or clips) in a global batch.
      show: false shows nothing and still counts.
    """

    def __init__(self, steps: int, clips_per_step: int, *, show: bool = True):
        self._steps = steps
        self._clips_per_step = clips_per_step
        self._console = Console(stderr=True, quiet=not show or jax.process_index() != 0)
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

    def announce(self, text: str) -> None:
        """Prints a line of its own."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def waited(self, seconds: float) -> None:
        """Adds time that the loop waited for data."""
        self._waited_s += seconds

    def advance(self, finished: int) -> None:
        """Moves the bar to a number of finished steps."""
        self._done += 1
        self._bar.update(self._task, completed=finished)

    def rates(self) -> dict[str, float]:
        """Clips a second and the share of time spent waiting for data since the last call."""
        began, before = self._since
        now = time.perf_counter()
        rates = {
            "clips_per_s": (self._done - before) * self._clips_per_step / (now - began),
            "data_wait_share": self._waited_s / (now - began),
        }
        self._since, self._waited_s = (now, self._done), 0.0
        return rates

    def show(self, finished: int, row: dict[str, float]) -> None:
        """Shows a logged row."""
        text = f"loss {row['loss']:.3f}  {row['clips_per_s']:.0f} clips/s"
        # Not a number where the batch has no group of several, as without SCL.
        if not math.isnan(row.get("assignment", math.nan)):
            text += f"  assignment {row['assignment']:.2f}"
        self._bar.update(self._task, text=text)
        if not self._console.is_terminal:
            left = (self._steps - finished) * self._clips_per_step / row["clips_per_s"]
            self.announce(f"step {finished}/{self._steps}  {text}  {left:.0f} s left")
