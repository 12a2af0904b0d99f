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

# Whose versions can move a figure; told of where they are loaded.
_PACKAGES = {
    "jax": "jax",
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "librosa": "librosa",
    "grain": "grain",
    "soundfile": "soundfile",
    "pyroomacoustics": "pyroomacoustics",
    "transformers": "transformers",
}


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
    *,
    name: str,
    peer_name: str,
    amount: float | None = None,
    unit: str = "s",
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Calls the two alternately and times each call.

    Args:
      ours: does the work once and returns when it is done (`jax.block_until_ready`).
      peer: the same.
      repeats: timed calls of each.
      warmups: calls of each before that (compilation, caches).
      name: what is measured.
      peer_name: what it is measured against.
      amount: how much one call does; then the quantity is amount / seconds instead of seconds.
      unit: of the quantity.
      clock: seconds.

    Returns:
      Spread of both and of the pairwise ratios ours / peer.

    Example:
      Calls of 1 s and 4 s that handle 8 clips each: 8 and 2 clips/s, ratio 4.
    """
    for _ in range(warmups):
        ours()
        peer()
    measured: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for side, call in (("ours", ours), ("peer", peer)):
            began = clock()
            call()
            seconds = clock() - began
            measured[side].append(seconds if amount is None else amount / seconds)
    ratios = [a / b for a, b in zip(measured["ours"], measured["peer"], strict=True)]
    return Comparison(
        name,
        peer_name,
        Spread.of(measured["ours"]),
        Spread.of(measured["peer"]),
        Spread.of(ratios),
        unit,
    )


def use_threads(count: int) -> None:
    """Gives XLA, PyTorch, BLAS and OpenMP this many cores; call it before the first JAX array."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    threadpoolctl.threadpool_limits(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def machine() -> dict[str, Any]:
    """The machine line: processor, cores, threads, versions, and the load of the last minute."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    versions = {"python": platform.python_version()}
    for module, package in _PACKAGES.items():
        if module in sys.modules:
            versions[module] = importlib.metadata.version(package)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_used": len(cores) or os.cpu_count(),
        "threads": {
            pool["internal_api"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()
        },
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def report(
    title: str,
    comparisons: Sequence[Comparison],
    settings: Mapping[str, Any],
    where: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Prints a table, or one line of JSON a comparison.

    Args:
      title: the claim.
      comparisons: the outcome.
      settings: what else the figures depend on.
      where: what `machine` said when the benchmark began.
      as_json: print JSON instead of a table.
    """
    if as_json:
        for comparison in comparisons:
            print(json.dumps({**dataclasses.asdict(comparison), **settings, "machine": where}))
        return
    table = Table(title=title)
    for column in ("", "unit", "ours", "peer", "ours / peer"):
        table.add_column(column, justify="left" if column == "" else "right")
    for one in comparisons:
        spreads = (f"{s.median:.3g} ({s.min:.3g} to {s.max:.3g})" for s in (one.ours, one.peer))
        ratio = f"{one.ratio.median:.2f} ({one.ratio.min:.2f} to {one.ratio.max:.2f})"
        table.add_row(f"{one.name} against {one.peer_name}", one.unit, *spreads, ratio)
    console = Console()
    console.print(table)
    told = {**settings, **{key: value for key, value in where.items() if key != "versions"}}
    told |= where["versions"]
    line = ", ".join(f"{key} {value}" for key, value in told.items())
    console.print(f"median (min to max); {line}", markup=False, highlight=False)


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
