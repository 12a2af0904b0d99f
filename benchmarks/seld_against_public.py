"""Our official scorer and ADPIT loss beside the public code of DCASE 2025 Task 3.

    git clone https://github.com/partha2409/DCASE2025_seld_baseline
    pip install '.[parity]' && python benchmarks/seld_against_public.py DCASE2025_seld_baseline

Clips of random events, some empty, too short, or without predictions, are written as tables and
scored by both, and random outputs and targets go through both losses. Prints the greatest
differences; nothing is timed.
"""

import importlib
import itertools
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from spatial_clap_jax.data.event_tables import write_predictions
from spatial_clap_jax.data.sound_events import DCASE_CLASSES, SoundEvents
from spatial_clap_jax.losses.accdoa import AccdoaConfig, accdoa_loss
from spatial_clap_jax.metrics.seld import score

_FRAMES, _CLIPS = 50, 12
# Imported by the public code for other purposes.
_UNUSED = ("cv2", "PIL", "PIL.Image", "librosa", "librosa.feature", "torch.utils.tensorboard")


def main(public: tyro.conf.Positional[Path], seeds: int = 6) -> None:
    """Compares both.

    Args:
      public: folder of the public code.
      seeds: draws of clips, and of outputs.
    """
    metrics, utils, loss = public_modules(public)
    worst: dict[str, float] = {}
    for seed in range(seeds):
        for what, difference in scored(metrics, utils, seed).items():
            worst[what] = max(worst.get(what, 0.0), difference)
    for what, difference in worst.items():
        print(f"{what}: {difference:.1e}")
    print(f"ADPIT, relative: {max(trained(loss, seed) for seed in range(seeds)):.1e}")


def public_modules(folder: Path) -> list[Any]:
    """The modules that are compared with, without what else they would import."""
    stubs = {name: types.ModuleType(name) for name in _UNUSED if name not in sys.modules}
    for name, stub in stubs.items():
        sys.modules[name] = stub
        parent, _, child = name.rpartition(".")
        if parent in stubs:
            setattr(stubs[parent], child, stub)
        stub.__dict__.setdefault("SummaryWriter", object)
    # Of NumPy 1.
    np.__dict__.setdefault("NaN", np.nan)
    sys.path.insert(0, str(folder))
    found = [importlib.import_module(name) for name in ("metrics", "utils", "loss")]
    for name in stubs:
        del sys.modules[name]
    return found


def events_of(rows: list[tuple[float, ...]]) -> SoundEvents:
    """Rows of frame, class, source, degrees, centimetres and flag."""
    frame, kind, source, degrees, centimetres, flag = np.array(rows, float).reshape(-1, 6).T
    return SoundEvents(
        *(part.astype(np.int32) for part in (frame, kind, source)),
        degrees.astype(np.float32),
        (centimetres / 100).astype(np.float32),
        flag.astype(bool),
    )


def drawn(rng: np.random.Generator, clip: int) -> tuple[list, list]:
    """True and predicted rows of a clip; the first ones are odd in ways of their own."""
    true = [
        (frame, kind, source, rng.integers(-90, 91), rng.integers(10, 500), rng.integers(2))
        for frame, kind in itertools.product(range(_FRAMES), range(len(DCASE_CLASSES)))
        for source in range(rng.choice(4, p=[0.9, 0.07, 0.02, 0.01]))
    ]
    if clip == 0:
        true = []
    elif clip == 1:
        true = [row for row in true if row[0] < 20]
    told = [
        (
            *(frame, kind, source, int(np.clip(degrees + rng.integers(-30, 31), -90, 90))),
            *(int(centimetres * rng.uniform(0.3, 2.5)), flag ^ (rng.random() < 0.2)),
        )
        for frame, kind, source, degrees, centimetres, flag in true
        if rng.random() < 0.8
    ]
    told += [
        (frame, rng.integers(len(DCASE_CLASSES) - 1), 0, rng.integers(-90, 91), 100, 0)
        for frame in rng.integers(_FRAMES, size=15)
    ]
    return true, [] if clip == 2 else sorted(told)


def scored(metrics: Any, utils: Any, seed: int) -> dict[str, float]:
    """The greatest difference of each score, and of the intervals of F."""
    rng = np.random.default_rng(seed)
    worst = dict.fromkeys(
        ("F", "azimuth error", "relative distance", "on-screen", "interval of F"), 0.0
    )
    with tempfile.TemporaryDirectory() as kept:
        references, predictions = Path(kept) / "truth" / "dev-test", Path(kept) / "told"
        references.mkdir(parents=True)
        predictions.mkdir()
        true, told = {}, {}
        for clip in range(_CLIPS):
            name = f"clip{clip:02d}"
            rows, said = drawn(rng, clip)
            true[name] = events_of(rows)
            write_predictions(references / f"{name}.csv", true[name])
            # One without a table.
            if clip != 3:
                told[name] = events_of(said)
                write_predictions(predictions / f"{name}.csv", told[name])
        for on_screen, average in itertools.product((False, True), ("macro", "micro")):
            settings = {
                "modality": "audio_visual",
                "lad_req_onscreen": on_screen,
                "lad_doa_thresh": 20,
                "lad_dist_thresh": np.inf,
                "lad_reldist_thresh": 1.0,
                "average": average,
                "nb_classes": len(DCASE_CLASSES),
            }
            theirs = metrics.ComputeSELDResults(settings, str(Path(kept) / "truth"))

            def of(folder: Path, theirs: Any = theirs) -> list[float]:
                f, azimuth, _, distance, flag, _ = theirs.get_SELD_Results(str(folder))
                return [f, azimuth, distance, flag]

            ours = getattr(
                score(told, true, DCASE_CLASSES, _FRAMES, official=True, on_screen=on_screen),
                average,
            )
            whole = of(predictions)
            for what, mine, other in zip(
                worst, (ours.f, ours.doae_deg, ours.rde, ours.on_screen), whole, strict=False
            ):
                worst[what] = max(worst[what], difference(mine.value, other))
            # Their own loop over clips does not run; what it would hand over does.
            parts = []
            for left in sorted(predictions.iterdir()):
                hidden = left.rename(Path(kept) / left.name)
                parts.append(of(predictions)[0])
                hidden.rename(left)
            *_, interval = utils.jackknife_estimation(whole[0], np.array(parts), 0.05)
            for mine, other in zip((ours.f.low, ours.f.high), interval, strict=True):
                worst["interval of F"] = max(worst["interval of F"], difference(mine, other))
    return worst


def difference(one: float, other: float) -> float:
    """How far two numbers are apart: not at all where neither is one."""
    if np.isnan(one) and np.isnan(other):
        return 0.0
    return float(np.nan_to_num(abs(one - other), nan=np.inf))


def trained(loss: Any, seed: int) -> float:
    """The relative difference of the losses of random outputs."""
    rng = np.random.default_rng(seed)
    batch, frames, classes = 2, 6, len(DCASE_CLASSES)
    out = rng.normal(size=(batch, frames, 3, 4, classes)).astype(np.float32)
    target = np.zeros((batch, frames, 6, 5, classes), np.float32)
    for place in np.ndindex(batch, frames, classes):
        sources = rng.integers(4)
        for source in range(sources):
            azimuth = rng.uniform(-np.pi / 2, np.pi / 2)
            track = (0, 0, 1, 3)[sources] + source
            target[place[0], place[1], track, :, place[2]] = (
                *(1, np.cos(azimuth), np.sin(azimuth)),
                *(rng.uniform(0.3, 5), rng.integers(2)),
            )
    theirs_in = out.copy()
    # Theirs takes probabilities, ours logits.
    theirs_in[:, :, :, 3] = 1 / (1 + np.exp(-out[:, :, :, 3]))
    compare = loss.SELDLossADPIT({"modality": "audio_visual"})
    flat = torch.from_numpy(theirs_in.reshape(batch, frames, -1))
    theirs = compare(flat, torch.from_numpy(target)).item()
    return abs(float(accdoa_loss(out, target, AccdoaConfig()).total) - theirs) / theirs


if __name__ == "__main__":
    tyro.cli(main)
