"""Trains for as long as one likes, and looks whether memory, files or threads grow.

    python tests/soak/train_for_long.py --minutes 60

A tiny Spatial-CLAP is trained on synthetic scenes by `spatial-clap train`, with a data worker,
saves of checkpoints and evaluations of the validation split a few seconds apart. Every few seconds
memory, open files and threads of all its processes are read. Flat means: from the end of
the warm-up (a third of the time) on, the line through the lowest readings of twelve windows (what
is held at rest, between saves and evaluations) rises by no more than 3 % of the median or 20 MB,
whichever is more, and by no more than 1.5 files and threads. Exit status 1 where it does not, or
where the training ends by itself. In two minutes the warm-up is not over: such a trial shows that
the script works, and no more.

`--minutes 6 --every 2 --checkpoint-every 20 --evaluate-every 100000` looks at saves alone, the two
numbers exchanged at evaluations: what a few of an hour's leave is soon seen of many.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from soak import gauges
from tiny import tiny_recipe

from spatial_clap_jax.data.builders import render_scenes

TESTS, ROOT = Path(__file__).resolve().parents[1:3]
CONFIG = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
from tiny import tiny_experiment

def get_config(size):
    tiny = tiny_experiment()
    # Long enough for the captions of the validation split, which are not cut.
    text = dataclasses.replace(tiny.model.text, max_tokens=64)
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, text=text),
        steps=10**8,
        log_every=20,
        ema_decay=0.9,
        data=dataclasses.replace(tiny.data, workers=1),
    )
"""
# Of a run that was asked to end: it saves first.
END_S = 300.0


def samples_of(process: subprocess.Popen, seconds: float, every_s: float) -> list[gauges.Sample]:
    """Readings of a training, until the time is over or it ends."""
    samples, began = [], time.monotonic()
    while (now := time.monotonic() - began) < seconds and process.poll() is None:
        samples.append(gauges.sample(now, process.pid))
        time.sleep(every_s)
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between readings")
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--evaluate-every", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_scenes(tiny_recipe(), "synthetic", folder / "scenes", workers=1, progress=False)
        config, told = folder / "config.py", folder / "log.txt"
        config.write_text(CONFIG.format(tests=str(TESTS)))
        command = [
            *(sys.executable, "-m", "spatial_clap_jax", "train", str(config)),
            *("--data", str(folder / "scenes"), "--workdir", str(folder / "run")),
            *("--checkpoint-every", str(options.checkpoint_every)),
            *("--evaluate-every", str(options.evaluate_every)),
        ]
        with told.open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        seconds = options.minutes * 60
        try:
            samples = samples_of(process, seconds, options.every)
        finally:
            ended = process.poll()
            if ended is None:
                tree = gauges.tree_of(process.pid)
                process.send_signal(signal.SIGTERM)
                process.wait(END_S)
        print("\n".join(told.read_text().splitlines()[-4:]))
        if ended is not None:
            return gauges.verdict({}, [f"the training ended by itself with status {ended}"])
        # Python's own helper notices the end a moment later.
        time.sleep(5.0)
        left = [pid for pid in tree[1:] if Path(f"/proc/{pid}").exists()]
        faults = [f"processes {left} are left"] if left else []
        every = max(1, len(samples) // 30)
        return gauges.report(samples, seconds / 3, 3600, "h", every, faults)


if __name__ == "__main__":
    sys.exit(main())
