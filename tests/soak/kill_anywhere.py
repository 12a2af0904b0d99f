"""Kills a training again and again, lets it end, and compares it with one that was left alone.

    python tests/soak/kill_anywhere.py --kills 25

A tiny Spatial-CLAP is trained by `spatial-clap train` with a data worker, evaluations and saves
that are seconds apart. One run is left alone. The other is killed (SIGKILL, or SIGTERM with
`--signal TERM`, which must exit with status 75) while it starts, while data workers start, in
compilation, between steps, in a save and in an evaluation, in turn, at moments drawn from a seed,
and started again each time. Then metrics, incidents, all arrays of the last checkpoint and the
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

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]

EXIT_STATUS = 75
TIMING = ("clips_per_s", "data_wait_share", "flops_per_s", "mfu")
PHASES = ("start", "workers", "compilation", "step", "save", "evaluation")
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
    lines: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Reads what it says, in a thread."""

        def read() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                self.lines.append(line.rstrip())
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

    def has_said(self, words: str, times: int = 1) -> bool:
        return sum(words in line for line in list(self.lines)) >= times

    def is_saving(self) -> bool:
        folder = self.workdir / "checkpoints"
        return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())

    def is_listening(self) -> bool:
        """Whether it has a handler for SIGTERM."""
        with contextlib.suppress(OSError, ValueError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            caught = int(status.partition("SigCgt:")[2].split(maxsplit=1)[0], 16)
            return bool(caught >> (signal.SIGTERM - 1) & 1)
        return False

    def has_workers(self) -> bool:
        """Whether it has processes of multiprocessing's; others that it starts are no workers."""
        return any(
            parent == self.process.pid and "spawn_main" in command
            for parent, command in _processes()
        )


def _processes() -> Iterator[tuple[int, str]]:
    """Parent and command line of all processes."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                yield parent, (path / "cmdline").read_text("utf-8", "replace")
            except (OSError, ValueError, IndexError):
                continue


def start(config: Path, scenes: Path, workdir: Path, cached: bool = True) -> Started:
    """Starts `spatial-clap train` as a user would.

    Args:
      config: of the run.
      scenes: its data.
      workdir: its folder.
      cached: whether it may find its programs compiled, where JAX is told of such a cache.
    """
    command = [sys.executable, "-m", "spatial_clap_jax", "train", str(config)]
    cache = () if cached else ("JAX_COMPILATION_CACHE_DIR",)
    process = subprocess.Popen(
        [*command, "--data", str(scenes), "--workdir", str(workdir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **{name: value for name, value in os.environ.items() if name not in cache},
            "JAX_PLATFORMS": "cpu",
            # Compiling is most of the time; it is still long enough to be killed in.
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        },
    )
    started = Started(process, workdir)
    started.listen()
    return started


def wait_until(started: Started, phase: str, draw: random.Random) -> bool:
    """Waits until a process is in the midst of a phase; False where it ended before."""
    limit = 300.0
    happened, lag = {
        # Before it listens, which takes some hundredths of a second, Python is starting.
        "start": (started.is_listening, 6.0),
        "workers": (started.has_workers, 0.5),
        "compilation": (lambda: started.has_said("from step"), 0.5),
        "step": (lambda: started.has_said("  loss ", draw.randint(1, 6)), 0.05),
        "save": (started.is_saving, 0.02),
        # The second one: what was saved before the first is on disk by then.
        "evaluation": (lambda: started.has_said("evaluating", 2), 0.3),
    }[phase]
    if not started.wait_for(happened, limit):
        return False
    time.sleep(draw.uniform(0.0, lag))
    return started.process.poll() is None


def run_to_the_end(config: Path, scenes: Path, workdir: Path) -> list[str]:
    """Trains without an interruption; what it said."""
    started = start(config, scenes, workdir)
    status = started.process.wait()
    started.ended.wait(10)
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
    phases: tuple[str, ...] = PHASES,
) -> tuple[Counter, float]:
    """Kills a training so many times, then lets it end.

    Returns:
      Kills by phase, and the longest time in seconds that a process took to leave.

    Raises:
      RuntimeError: it ended before, or left with a wrong status.
    """
    draw = random.Random(seed)
    done: Counter = Counter()
    longest = 0.0
    while done.total() < kills:
        phase = phases[done.total() % len(phases)]
        started = start(config, scenes, workdir, cached=phase != "compilation")
        if not wait_until(started, phase, draw):
            raise RuntimeError(
                f"ended with status {started.process.wait()} after {done.total()} kills, before "
                f"'{phase}': {' | '.join(started.lines[-3:])}; take more steps"
            )
        began = time.monotonic()
        started.process.send_signal(number)
        status = started.process.wait()
        longest = max(longest, time.monotonic() - began)
        if status != (-number if number == signal.SIGKILL else EXIT_STATUS):
            raise RuntimeError(f"status {status} in '{phase}': {' | '.join(started.lines[-3:])}")
        done[phase] += 1
    run_to_the_end(config, scenes, workdir)
    return done, longest


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
        done, longest = run_with_kills(
            config, scenes, root / "killed", arguments.kills, number, arguments.seed
        )
        listed = ", ".join(f"{phase} {count}" for phase, count in done.items())
        print(f"{done.total()} kills ({listed}) in {time.monotonic() - began:.0f} s")
        print(f"longest time from signal to exit: {longest:.1f} s")
        difference = first_difference(root / "straight", root / "killed")
    print(difference or "identical")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
