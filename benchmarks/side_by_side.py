"""Two ways to one result, timed in turn in one process: what the benchmarks here share.

A benchmark gives `compare` two functions, and `report` the outcome. Calls alternate (ours, peer,
ours, peer, ...), so that whatever else the machine does meanwhile hits both; the ratio is taken
pair by pair and is therefore steadier than either figure.

One convention everywhere: **ratio = ours / peer of the quantity that is reported**. Where that is
seconds, below 1 is better; where it is a rate such as clips/s, above 1 is better and the ratio
reads "times as fast".
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import threadpoolctl
from rich.console import Console
from rich.table import Table

# Whose versions can move a figure; told of where they are imported.
_PACKAGES = (
    "jax",
    "numpy",
    "scipy",
    "librosa",
    "grain",
    "soundfile",
    "pyroomacoustics",
    "torch",
    "transformers",
)
# For so long the processor time of all threads is looked at, to tell whether they rest.
_GLANCE_S = 0.05
_LOAD_AT_START = os.getloadavg()[0]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Least, middle and greatest of several measurements."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(min(values), statistics.median(values), max(values))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
      name: what was measured.
      peer_name: what it was measured against.
      ours: our measurements, in `unit`.
      peer: the peer's.
      ratio: ours / peer, pair by pair.
      unit: 's', or a rate such as 'clips/s'.
    """

    name: str
    peer_name: str
    ours: Spread
    peer: Spread
    ratio: Spread
    unit: str


def compare(
    ours: Callable[[], object],
    peer: Callable[[], object],
    repeats: int,
    warmups: int = 1,
    untimed: int = 0,
    *,
    name: str,
    peer_name: str,
    amount: float | None = None,
    peer_amount: float | None = None,
    unit: str = "s",
    before: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Calls the two alternately and times each call.

    Args:
      ours: does the work once and returns when it is done (`jax.block_until_ready`).
      peer: the same.
      repeats: timed calls of each.
      warmups: calls of each before that (compilation, caches).
      untimed: calls of a side right before each of its timed ones. With a few, work of milliseconds
        is timed as in a row of such calls, with its threads awake and its data in the caches.
      name: what is measured.
      peer_name: what it is measured against.
      amount: how much one call does; then the quantity is amount / seconds instead of seconds.
      peer_amount: how much one of the peer's does, where that differs.
      unit: of the quantity.
      before: called before every timed call, outside its time.
      clock: seconds.

    Returns:
      Spread of both and of the pairwise ratios ours / peer.

    Example:
      Calls of 1 s and 4 s that handle 8 clips each: 8 and 2 clips/s, ratio 4.
    """
    for _ in range(warmups):
        ours()
        peer()
    sides = ((ours, amount), (peer, peer_amount or amount))
    measured: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for (call, handled), quantities in zip(sides, measured, strict=True):
            _rest()
            for _ in range(untimed):
                call()
            before()
            began = clock()
            call()
            seconds = clock() - began
            quantities.append(seconds if handled is None else handled / seconds)
    ratios = [a / b for a, b in zip(*measured, strict=True)]
    spreads = (Spread.of(values) for values in (*measured, ratios))
    return Comparison(name, peer_name, *spreads, unit=unit)


def _rest(longest_s: float = 1.0) -> None:
    """Returns when no thread of this process works any more, or after `longest_s`."""
    end = time.perf_counter() + longest_s
    while time.perf_counter() < end:
        spent = time.process_time()
        time.sleep(_GLANCE_S)
        if time.process_time() - spent < _GLANCE_S / 10:
            return


def use_threads(count: int) -> None:
    """Gives XLA, PyTorch, BLAS and OpenMP this many cores; call it before the first JAX array."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    threadpoolctl.threadpool_limits(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def machine() -> dict[str, Any]:
    """The machine line: processor, cores, threads, versions, and the load before the start."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_used": _cores_used(),
        "thread_pools": {
            pool["internal_api"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()
        },
        "load_average_at_start": round(_LOAD_AT_START, 2),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES if name in sys.modules},
        },
    }


def machine_line() -> str:
    """What `machine` tells, as a line to print below figures."""
    where = machine()
    versions = where.pop("versions")
    return ", ".join(_words(where | versions))


def report(comparisons: Sequence[Comparison], settings: Mapping[str, Any], as_json: bool) -> None:
    """Prints a table for each comparison, or a line of JSON for each.

    Args:
      comparisons: the outcome.
      settings: what else the figures depend on, such as sizes.
      as_json: print JSON, with the keys of `Comparison`, the settings and `machine`.
    """
    if as_json:
        where = machine()
        for one in comparisons:
            print(json.dumps({**dataclasses.asdict(one), **settings, "machine": where}))
        return
    console = Console()
    for one in comparisons:
        table = Table("", "min", "median", "max", title=f"{one.name}: ours beside {one.peer_name}")
        for label, spread in (
            (f"ours, {one.unit}", one.ours),
            (f"{one.peer_name}, {one.unit}", one.peer),
            (f"ours / {one.peer_name}", one.ratio),
        ):
            table.add_row(label, *(f"{value:.3g}" for value in dataclasses.astuple(spread)))
        console.print(table)
    line = ", ".join([*_words(settings), machine_line()])
    console.print(line, markup=False, highlight=False)


def _words(told: Mapping[str, Any]) -> list[str]:
    return [f"{key} {value}" for key, value in told.items()]


def _cores_used() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
