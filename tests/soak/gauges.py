"""What a tree of processes holds, read from Linux's /proc, and whether it grows."""

import contextlib
import dataclasses
import itertools
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was held at a moment.

    Attributes:
      at: seconds, or a number of restarts.
      memory_mb: memory that has no file behind it, resident or swapped out; what several
        processes share is counted once. Pages of libraries are no leak, and how many are resident,
        or shared with other programs, is the machine's doing.
      files: open file descriptors.
      threads: of all processes.
      processes: the tree.
    """

    at: float
    memory_mb: float
    files: int
    threads: int
    processes: int


@dataclasses.dataclass(frozen=True)
class Limit:
    """How far a reading may rise.

    Attributes:
      unit: of the reading.
      slope: from one unit of `at` to the next; a leak that is faster is told.
      late: over all that is looked at, however short: what is no leak, such as a state that is met
        late, or memory that waits to be given back.
    """

    unit: str
    slope: float
    late: float

    def allowed(self, span: float) -> float:
        """The rise that is allowed over some units of `at`."""
        return max(self.slope * span, self.late)


# Of restarts, or whatever else is counted one by one: what each of them may leave.
LIMITS = {
    "memory_mb": Limit("MB", 0.02, 4.0),
    "files": Limit("files", 0.0, 1.5),
    "threads": Limit("threads", 0.0, 1.5),
}
_UNFILED = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")


def tree_of(pid: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                # The name, in brackets, may hold anything.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
    tree = [pid]
    for member in tree:
        tree += [child for child, parent in parents.items() if parent == member]
    return tree


def sample(at: float, pid: int | None = None) -> Sample:
    """What a process and all below it hold now.

    Args:
      at: when that is.
      pid: of the process; this one when None.
    """
    memory_kb, files, threads, processes = 0, 0, 0, 0
    for member in tree_of(pid or os.getpid()):
        folder = Path("/proc") / str(member)
        # It may end meanwhile.
        with contextlib.suppress(OSError):
            shares = (folder / "smaps_rollup").read_text().splitlines()
            memory_kb += sum(int(line.split()[1]) for line in shares if line.startswith(_UNFILED))
            files += len(os.listdir(folder / "fd"))
            threads += len(os.listdir(folder / "task"))
            processes += 1
    return Sample(at, memory_kb / 1024, files, threads, processes)


# Readings are taken in the midst of saves and evaluations too, which hold more while they last;
# what is leaked is held at rest as well.
_WINDOWS = 12
# A window of fewer readings may have none at rest.
FEWEST = 3 * _WINDOWS


def at_rest(samples: Sequence[Sample], name: str) -> tuple[list[float], list[float]]:
    """The lowest reading of each twelfth of the samples, and when it was taken."""
    ends = [len(samples) * window // _WINDOWS for window in range(_WINDOWS + 1)]
    windows = [samples[start:end] for start, end in itertools.pairwise(ends) if end > start]
    lowest = [min(window, key=lambda one: getattr(one, name)) for window in windows]
    return [one.at for one in lowest], [float(getattr(one, name)) for one in lowest]


def slope(samples: Sequence[Sample], name: str) -> float:
    """Rise of a reading at rest from one unit of `at` to the next, by least squares."""
    return statistics.linear_regression(*at_rest(samples, name)).slope


def growing(samples: Sequence[Sample], limits: Mapping[str, Limit] | None = None) -> dict[str, str]:
    """Which readings rise over some samples by more than is allowed, with their rise.

    Args:
      samples: in order.
      limits: of each reading; `LIMITS` where None.
    """
    span = samples[-1].at - samples[0].at
    found = {}
    for name, limit in (limits or LIMITS).items():
        rise, allowed = slope(samples, name) * span, limit.allowed(span)
        if rise > allowed:
            found[name] = f"rises by {rise:.1f} {limit.unit}, more than {allowed:.1f}"
    return found


def report(
    samples: Sequence[Sample],
    warm_up: float,
    per: float,
    of: str,
    step: int,
    besides: Iterable[str] = (),
    limits: Mapping[str, Limit] | None = None,
) -> int:
    """Prints a table, slopes and a verdict.

    Args:
      samples: in order.
      warm_up: up to here nothing is looked at.
      per: how many units of `at` make up the unit of the slopes.
      of: name of that unit.
      step: every how many samples a row is printed.
      besides: what else is wrong.
      limits: of each reading; `LIMITS` where None.

    Returns:
      0 where all that was held is flat, else 1, also where nothing can be told.
    """
    print(f"{'at':>8} {'memory MB':>10} {'files':>6} {'threads':>8} {'processes':>10}")
    for one in samples[::step]:
        print(
            f"{one.at:8.0f} {one.memory_mb:10.1f} {one.files:6} {one.threads:8} {one.processes:10}"
        )
    warm = [one for one in samples if one.at >= warm_up]
    print(f"after {warm_up:g}, {len(warm)} samples:")
    if len(warm) < FEWEST:
        return verdict({}, besides, f"too short to tell: take at least {FEWEST} samples after that")
    for name, limit in (limits or LIMITS).items():
        middle = statistics.median(at_rest(warm, name)[1])
        print(f"  {slope(warm, name) * per:+.3f} {limit.unit}/{of} at rest (median {middle:.1f})")
    return verdict(growing(warm, limits), besides)


def verdict(found: Mapping[str, str], besides: Iterable[str] = (), short: str = "") -> int:
    """Prints what is wrong; returns the exit status.

    Args:
      found: what grows.
      besides: what else is wrong.
      short: why nothing can be told of what grows.
    """
    faults = [f"{name} {what}" for name, what in found.items()] + list(besides)
    told = "NOT flat: " + "; ".join(faults) if faults else "" if short else "flat"
    print("; ".join(filter(None, (short, told))))
    return int(bool(faults or short))
