"""Thousands of spoiled inputs through the readers and the command line: none may crash.

    python tests/hostile/fuzz.py --inputs 5000 --seed 0

Prints of every kind how many inputs were taken, refused by an InputError, and crashed; of crashes
it keeps the inputs below --keep. The same seed and number give the same input. Exit status 1 after
a crash. Inputs are read in a process of their own, whose memory is limited, so that what takes it
down, hangs it or fills it is a crash too.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Above what all libraries have mapped when they are idle.
MEMORY = 4 * 2**30
SLOWEST_S = 20
OUTCOMES = ("taken", "refused", "crashed")


class Hang(BaseException):
    """An input took too long; no reader catches it."""


def main() -> int:
    options = _options()
    if options.worker:
        _work(options)
        return 0
    from all_kinds import ALL_KINDS

    chosen = [kind for kind in ALL_KINDS if not options.kind or kind.name in options.kind]
    counts: dict[str, Counter[str]] = {kind.name: Counter() for kind in chosen}
    began, done, crashes = time.monotonic(), 0, 0
    keep = Path(options.keep or tempfile.mkdtemp(prefix="crashes-"))
    while done < options.inputs and time.monotonic() - began < options.minutes * 60:
        for line in _worker_lines(options, done, keep):
            counts[line["kind"]][line["outcome"]] += 1
            done = line["number"] + 1
            if done % 500 == 0:
                print(f"{done} inputs, {crashes} crashed", file=sys.stderr, flush=True)
            if line["outcome"] == "crashed":
                crashes += 1
                reason = line["reason"]
                print(f"input {line['number']}, {line['kind']}: {reason}", file=sys.stderr)
            if time.monotonic() - began > options.minutes * 60:
                break
    _print(counts)
    seconds = time.monotonic() - began
    print(f"{done} inputs of seed {options.seed} in {seconds:.0f} s, {crashes} crashed")
    if crashes:
        print(f"kept below {keep}")
    return int(crashes > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--kind", action="append", help="of these kinds alone")
    parser.add_argument("--first", type=int, default=0, help="begin with this number")
    parser.add_argument("--keep", help="folder for inputs that crashed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _worker_lines(options: argparse.Namespace, done: int, keep: Path):
    """Outcomes of a worker's inputs; if it dies or hangs, that of its last one is a crash."""
    first = max(done, options.first)
    kinds = [word for name in options.kind or () for word in ("--kind", name)]
    command = [sys.executable, __file__, "--worker", "--keep", str(keep), *kinds]
    command += ["--inputs", str(options.inputs), "--seed", str(options.seed), "--first", str(first)]
    keep.mkdir(parents=True, exist_ok=True)
    with (
        (keep / "worker.log").open("ab") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as worker,
    ):
        assert worker.stdout is not None
        begun = None
        try:
            while True:
                # Longer than its own alarm: native code does not hear that.
                if not select.select([worker.stdout], [], [], 2 * SLOWEST_S)[0]:
                    worker.kill()
                line = worker.stdout.readline()
                if not line:
                    worker.wait()
                    break
                told = json.loads(line)
                if told["outcome"] == "begun":
                    begun = told
                else:
                    begun = None
                    yield told
        finally:
            worker.kill()
    if begun is None and worker.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a good input is not taken: see {keep / 'worker.log'}")
    if begun is not None:
        scratch = Path(begun.pop("folder"))
        if scratch.is_dir():
            shutil.move(scratch, keep / f"{begun['number']}-died")
        reason = f"the process died or hung ({worker.returncode})"
        yield {**begun, "outcome": "crashed", "reason": reason}


def _print(counts: dict[str, Counter[str]]) -> None:
    width = max(map(len, counts)) + 2
    print(f"{'kind':<{width}}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    total = sum(counts.values(), Counter())
    for name, found in (*counts.items(), ("all", total)):
        print(f"{name:<{width}}" + "".join(f"{found[outcome]:>10}" for outcome in OUTCOMES))


def _work(options: argparse.Namespace) -> None:
    """Reads inputs one by one and tells what became of each, a JSON line each."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from all_kinds import ALL_KINDS

    chosen = [kind for kind in ALL_KINDS if not options.kind or kind.name in options.kind]
    good: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        for number in range(options.first, options.inputs):
            rng = random.Random(f"{options.seed}/{number}")
            kind = rng.choices(chosen, [kind.share for kind in chosen])[0]
            pristine = Path(scratch) / "good" / kind.name.replace(" ", "_")
            if kind.name not in good:
                pristine.mkdir(parents=True)
                kind.make(pristine)
                good[kind.name] = kind.read(_copy(pristine, Path(scratch) / "first"))
                shutil.rmtree(Path(scratch) / "first")
                _limit_memory()
            # A place of its own: what is read of a folder may be kept for the next time.
            folder = _copy(pristine, Path(scratch) / f"input-{number}")
            anew = kind.spoil(folder, rng)
            told = {"kind": kind.name, "number": number}
            print(json.dumps({**told, "outcome": "begun", "folder": str(folder)}), file=out)
            out.flush()
            wanted = good[kind.name] if kind.same and not anew else None
            outcome, reason = _outcome(kind, folder, wanted)
            if outcome == "crashed":
                kept = Path(options.keep) / f"{number}-{kind.name.replace(' ', '_')}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.move(folder, kept)
            else:
                shutil.rmtree(folder)
            print(json.dumps({**told, "outcome": outcome, "reason": reason}), file=out)
            out.flush()


def _copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _outcome(kind, folder: Path, wanted: object) -> tuple[str, str]:
    """Whether an input is taken, refused or a crash, and why."""
    import numpy as np
    from inputs import check_refusal

    from spatial_clap_jax.errors import InputError

    def too_slow(*_: object) -> None:
        raise Hang(f"longer than {SLOWEST_S} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SLOWEST_S)
    try:
        try:
            found = kind.read(folder)
        except InputError as error:
            check_refusal(error)
            return "refused", ""
        if wanted is not None:
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place if "spatial_clap_jax" in frame.filename] or [*place]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        return "crashed", f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.alarm(0)
    return "taken", ""


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="compiled-"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # Small programs that run once: compiling them is most of the time.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {flags}"
    sys.exit(main())
