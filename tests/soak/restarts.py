"""Opens, reads, sets back and closes the data's iterator again and again, and looks for leaks.

    python tests/soak/restarts.py --restarts 1000

Each restart opens a rendered folder anew, reads three batches in threads, sets the iterator back,
reads one more, which must be the same as before, and closes it; every `--workers-every`th does so
with a worker process. Memory, open files and threads of the process are read after each; all must
be flat after the first fifth: memory may rise by 0.02 MB a restart or 4 MB, whichever is more, and
files and threads by 1.5. Exit status 1 where they are not, or where the restarts are too few to
tell.
"""

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from soak import gauges

from spatial_clap_jax.acoustics.receivers import Mono
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.pipeline import PipelineConfig, train_batches
from spatial_clap_jax.data.scenes import GroupCounts, SceneRecipe
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.data.tokens import Tokenizer

RECIPE = SceneRecipe(
    name="clips",
    sample_rate_hz=8000,
    duration_s=0.25,
    receiver=Mono(),
    group_counts=GroupCounts(*[0] * 9, train_k0=24),
    sources=SourceOptions(synthetic_clips=(2, 1, 1)),
)


def restart(folder: Path, tokenizer: Tokenizer, workers: int) -> None:
    """One restart."""
    scenes = open_scenes(folder)
    config = PipelineConfig(captions_per_batch=8, swap=False, workers=workers, threads=2)
    batches = train_batches(scenes, config, tokenizer, scl=False, seed=0)
    first, _, _ = next(batches), next(batches), next(batches)
    batches.set_state({"step": 0})
    np.testing.assert_array_equal(next(batches)["audio"], first["audio"])
    batches.close()


def restarts(folder: Path, count: int, workers_every: int) -> list[gauges.Sample]:
    """What is held after each restart.

    Args:
      folder: of scenes.
      count: of restarts.
      workers_every: every how many of them a worker process is used; 0 for never.
    """
    # One for all, as a training has it: the library never gives the words back that a tokenizer has
    # seen in a thread (docs/reliability.md).
    tokenizer = Tokenizer.train(open_scenes(folder).manifest["caption_corpus"], 300, 32)
    samples = []
    for number in range(count):
        restart(folder, tokenizer, int(bool(workers_every) and number % workers_every == 0))
        gc.collect()
        samples.append(gauges.sample(number))
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--workers-every", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes"
        render_scenes(RECIPE, "synthetic", scenes, workers=1, progress=False)
        samples = restarts(scenes, options.restarts, options.workers_every)
    # A worker that is left would be in the last sample.
    left = samples[-1].processes - samples[0].processes
    faults = [f"{left} processes are left"] if left else []
    every = max(1, options.restarts // 20)
    return gauges.report(samples, options.restarts / 5, 1000, "1,000 restarts", every, faults)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.exit(main())
