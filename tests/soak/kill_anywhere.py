"""Kills a training again and again, lets it end, and compares it with one that was left alone.

    python tests/soak/kill_anywhere.py --kills 25

A tiny Spatial-CLAP is trained by `spatial-clap train` with a data worker, evaluations and saves
that are seconds apart. One run is left alone. The other is killed (SIGKILL, or SIGTERM with
`--signal TERM`, which must exit with status 75) while it starts, while data workers start, in
compilation, between steps, in a save and in an evaluation, in turn, at moments drawn from a seed,
and started again each time. A kill counts if its phase was not over when it came, and no process
of the training may outlive it. Then metrics, incidents, all arrays of the last checkpoint and the
place in the data are compared bit for bit.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from soak import gauges

TESTS, ROOT = Path(__file__).resolve().parents[1:3]
EXIT_STATUS = 75
TIMING = ("clips_per_s", "data_wait_share", "flops_per_s", "mfu")
# No machine takes so long for a start, an evaluation or a save: what is silent longer hangs.
HANGS_S = 600.0
CONFIG = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
from tiny import tiny_experiment
from spatial_clap_jax.train.health import HealthConfig

def get_config(size):
    tiny = tiny_experiment()
    text = dataclasses.replace(tiny.model.text, max_tokens=64)
    return dataclasses.replace(
        tiny, model=dataclasses.replace(tiny.model, text=text),
        steps={steps}, log_every=1, checkpoint_every=4, evaluate_every=6, ema_decay=0.9,
        # Losses that hardly fall, and a note of each that is above the usual: there are incidents.
        optimizer=dataclasses.replace(tiny.optimizer, learning_rate=1e-5),
        health=HealthConfig(spike=1e-3, window=20),
        data=dataclasses.replace(tiny.data, workers=1),
    )
"""


@dataclass
class Started:
    """A training process, what it says, and where it stands."""

    process: subprocess.Popen
    workdir: Path
    # Folders of saves that were killed before it was started; it removes them.
    left: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    spoke_at: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Reads what it says, in a thread."""

        def read() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                self.lines.append(line.rstrip())
                self.spoke_at = time.monotonic()
            self.ended.set()

        threading.Thread(target=read, daemon=True).start()

    def wait_for(self, happened: Callable[[], bool], timeout_s: float) -> bool:
        """Whether something happened before the process ended."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self.process.poll() is None:
            if happened():
                return True
            time.sleep(0.001)
        return False

    def exit_status(self, silent_s: float = HANGS_S) -> int:
        """Waits for its end, and until all that it said is read.

        Raises:
          RuntimeError: it says nothing for so long, and is killed.
        """
        since = time.monotonic()
        while self.process.poll() is None:
            if time.monotonic() - max(since, self.spoke_at) > silent_s:
                self.process.kill()
                self.process.wait()
                last = " | ".join(self.lines[-3:])
                raise RuntimeError(f"hangs, and said nothing for {silent_s:.0f} s after: {last}")
            time.sleep(0.01)
        self.ended.wait(10)
        return self.process.returncode

    def has_said(self, words: str, times: int = 1) -> bool:
        return sum(words in line for line in list(self.lines)) >= times

    def is_compiling(self) -> bool:
        """Whether its step has gone to XLA, where JAX is asked to tell."""
        told = "\n".join(self.lines).partition("from step")[2]
        return "MLIR module conversion" in told and not self.has_said("step compiled")

    def is_saving(self) -> bool:
        """Whether a save of its own is under way."""
        names = saves_under_way(self.workdir)
        self.left &= names
        return bool(names - self.left)

    def is_evaluating(self) -> bool:
        told = "\n".join(self.lines).rpartition("evaluating")
        return bool(told[1]) and "validation in" not in told[2]

    def is_listening(self) -> bool:
        """Whether it has a handler for SIGTERM."""
        with contextlib.suppress(OSError, ValueError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            caught = int(status.partition("SigCgt:")[2].split(maxsplit=1)[0], 16)
            return bool(caught >> (signal.SIGTERM - 1) & 1)
        return False

    def workers(self) -> list[int]:
        """Its processes of multiprocessing's; others that it starts are no workers."""
        return [
            pid
            for pid, parent, command in _processes()
            if parent == self.process.pid and "spawn_main" in command
        ]

    def has_workers(self) -> bool:
        return bool(self.workers())


@dataclass(frozen=True)
class Phase:
    """A time in which a training is killed.

    Attributes:
      has_begun: whether it has; of "step", when so many have been taken.
      is_over: whether it was over when the kill came.
      longest_s: how long after its begin a kill comes at most; where that is too late, half of it.
    """

    has_begun: Callable[[Started, int], bool]
    is_over: Callable[[Started], bool]
    longest_s: float


PHASES = {
    # Before it listens, which takes some hundredths of a second, Python is starting.
    "start": Phase(
        lambda started, _: started.is_listening(),
        lambda started: started.has_said("from step"),
        6.0,
    ),
    "workers": Phase(
        lambda started, _: started.has_workers(),
        lambda started: started.has_said("step compiled"),
        0.5,
    ),
    "compilation": Phase(
        lambda started, _: started.is_compiling(), lambda started: not started.is_compiling(), 4.0
    ),
    "step": Phase(
        lambda started, steps: started.has_said("  loss ", steps), Started.is_evaluating, 0.05
    ),
    "save": Phase(
        lambda started, _: started.is_saving(), lambda started: not started.is_saving(), 0.02
    ),
    # The second one: what was saved before the first is on disk by then.
    "evaluation": Phase(
        lambda started, _: started.has_said("evaluating", 2),
        lambda started: not started.is_evaluating(),
        0.3,
    ),
}


def saves_under_way(workdir: Path) -> set[str]:
    """Folders of saves that are not whole, or were killed."""
    folder = workdir / "checkpoints"
    return {path.name for path in folder.glob("*tmp*")}


def _processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command line of all processes."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                yield int(path.name), parent, (path / "cmdline").read_text("utf-8", "replace")
            except (OSError, ValueError, IndexError):
                continue


def start(
    config: Path, scenes: Path, workdir: Path, cached: bool = True, tells: bool = False
) -> Started:
    """Starts `spatial-clap train` as a user would.

    Args:
      config: of the run.
      scenes: its data.
      workdir: its folder.
      cached: whether it may find its programs compiled, where JAX is told of such a cache.
      tells: whether JAX tells of what it compiles.
    """
    command = [sys.executable, "-m", "spatial_clap_jax", "train", str(config)]
    cache = () if cached else ("JAX_COMPILATION_CACHE_DIR",)
    left = saves_under_way(workdir)
    process = subprocess.Popen(
        [*command, "--data", str(scenes), "--workdir", str(workdir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **{name: value for name, value in os.environ.items() if name not in cache},
            "JAX_PLATFORMS": "cpu",
            "JAX_LOG_COMPILES": str(int(tells)),
            # Compiling is most of the time; it is still long enough to be killed in.
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        },
    )
    started = Started(process, workdir, left)
    started.listen()
    return started


def wait_until(started: Started, phase: Phase, longest_s: float, draw: random.Random) -> bool:
    """Waits until a process is in the midst of a phase; False where it ended before."""
    steps = draw.randint(1, 6)
    if not started.wait_for(lambda: phase.has_begun(started, steps), HANGS_S):
        return False
    time.sleep(draw.uniform(0.0, longest_s))
    return started.process.poll() is None


def kill(started: Started, phase: Phase, number: signal.Signals) -> tuple[int, bool]:
    """Sends a process a signal, and waits for its end.

    Returns:
      Its exit status, and whether the phase was not over when the signal came.

    Raises:
      RuntimeError: it hangs.
    """
    started.process.send_signal(number)
    in_time = not phase.is_over(started)
    status = started.exit_status()
    if number == signal.SIGKILL:
        # By now all that it said is read, and the disk is as it left it.
        in_time = not phase.is_over(started)
    return status, in_time


def family_of(pid: int) -> dict[int, str]:
    """A process and all below it, and when each was born."""
    return {member: born for member in gauges.tree_of(pid) if (born := _born(member))}


def check_none_lives(family: dict[int, str], within_s: float = 20.0) -> None:
    """Raises RuntimeError where one of a family is there after some seconds."""
    until = time.monotonic() + within_s
    while alive := [pid for pid, born in family.items() if _born(pid) == born]:
        if time.monotonic() > until:
            raise RuntimeError(f"processes {alive} outlive it by {within_s:.0f} s")
        time.sleep(0.1)


def _born(pid: int) -> str | None:
    """When a process was born, by the system's clock; None where it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # One that has ended, and that nobody has asked for its status.
        return None if fields[0] == "Z" else fields[19]
    return None


def run_to_the_end(config: Path, scenes: Path, workdir: Path) -> list[str]:
    """Trains without an interruption; what it said."""
    started = start(config, scenes, workdir)
    status = started.exit_status()
    if status:
        raise RuntimeError(f"exit status {status}: {' | '.join(started.lines[-3:])}")
    return started.lines


def run_with_kills(
    config: Path,
    scenes: Path,
    workdir: Path,
    kills: int,
    number: signal.Signals,
    seed: int,
    phases: tuple[str, ...] = tuple(PHASES),
) -> tuple[Counter, Counter, float]:
    """Kills a training so many times, then lets it end.

    Returns:
      Kills by phase; those besides that came when the phase was over; and the longest time in
      seconds that a process took to leave.

    Raises:
      RuntimeError: it ended before, left with a wrong status, hung, or the phases were missed.
    """
    draw = random.Random(seed)
    done, late = Counter(), Counter()
    longest = 0.0
    while done.total() < kills:
        name = phases[done.total() % len(phases)]
        phase, compiles = PHASES[name], name == "compilation"
        started = start(config, scenes, workdir, cached=not compiles, tells=compiles)
        if not wait_until(started, phase, phase.longest_s / 2 ** late[name], draw):
            raise RuntimeError(
                f"ended with status {started.exit_status()} after {done.total()} kills, before "
                f"'{name}': {' | '.join(started.lines[-3:])}; take more steps"
            )
        family, began = family_of(started.process.pid), time.monotonic()
        status, in_time = kill(started, phase, number)
        longest = max(longest, time.monotonic() - began)
        check_none_lives(family)
        if status != (-number if number == signal.SIGKILL else EXIT_STATUS):
            raise RuntimeError(f"status {status} in '{name}': {' | '.join(started.lines[-3:])}")
        (done if in_time else late)[name] += 1
        if late.total() > kills:
            raise RuntimeError(f"kills come too late: {dict(late)}, and {dict(done)} in time")
    run_to_the_end(config, scenes, workdir)
    return done, late, longest


def first_difference(one: Path, other: Path) -> str | None:
    """The first thing in which two runs differ; None where they are identical."""
    from spatial_clap_jax.train.checkpoint import load_params

    logs = []
    for workdir in (one, other):
        text = (workdir / "metrics.jsonl").read_text("utf-8")
        if not text.endswith("\n"):
            return f"{workdir}: its log ends with a torn line"
        rows = [json.loads(line) for line in text.splitlines()]
        kinds = Counter((row["step"], "loss" in row) for row in rows)
        twice = [kind for kind, count in kinds.items() if count > 1]
        if twice:
            return f"{workdir}: step {twice[0][0]} stands twice in its log"
        logs.append([{k: v for k, v in row.items() if k not in TIMING} for row in rows])
    for left, right in zip(*logs, strict=False):
        if left != right:
            keys = [k for k in {**left, **right} if left.get(k) != right.get(k)]
            return (
                f"metrics of step {left['step']}: {keys[0]} {left.get(keys[0])}, "
                f"{right.get(keys[0])}"
            )
    if len(logs[0]) != len(logs[1]):
        return f"{len(logs[0])} rows of metrics, {len(logs[1])}"
    incidents = [_lines(workdir / "incidents.jsonl") for workdir in (one, other)]
    if incidents[0] != incidents[1]:
        return f"{len(incidents[0])} lines of incidents, {len(incidents[1])}, not the same"
    parts = ("step", "variables", "optimizer", "average")
    saved = [load_params(workdir, subtrees=parts) for workdir in (one, other)]
    if saved[0][1] != saved[1][1]:
        return f"last checkpoint of step {saved[0][1]}, {saved[1][1]}"
    leaves = [_bits(tree) for tree, _ in saved]
    for path in {**leaves[0], **leaves[1]}:
        if leaves[0].get(path) != leaves[1].get(path):
            return f"{path} of the last checkpoint"
    places = [
        (workdir / "checkpoints" / str(saved[0][1]) / "data_state" / "value.json").read_text()
        for workdir in (one, other)
    ]
    return None if places[0] == places[1] else f"place in the data {places[0]}, {places[1]}"


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


def _bits(tree: object) -> dict[str, bytes]:
    import jax
    import numpy as np

    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="how often the run is killed")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    from tiny import tiny_recipe

    from spatial_clap_jax.data.builders import render_scenes

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scenes, config = root / "scenes", root / "config.py"
        render_scenes(tiny_recipe(), "synthetic", scenes, workers=1, progress=False)
        # Some kills come late, on a machine that is busy.
        steps = 30 * arguments.kills + 20
        config.write_text(CONFIG.format(tests=str(TESTS), steps=steps), "utf-8")
        began = time.monotonic()
        run_to_the_end(config, scenes, root / "straight")
        print(f"straight: {steps} steps in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        number = signal.Signals[f"SIG{arguments.signal}"]
        done, late, longest = run_with_kills(
            config, scenes, root / "killed", arguments.kills, number, arguments.seed
        )
        listed = ", ".join(f"{phase} {count}" for phase, count in done.items())
        print(f"{done.total()} kills ({listed}) in {time.monotonic() - began:.0f} s")
        print(f"{late.total()} more came when their phase was over")
        print(f"longest time from signal to exit: {longest:.1f} s")
        difference = first_difference(root / "straight", root / "killed")
    print(difference or "identical")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
