"""A study from its first training to its figures; it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import track

from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.data.pipeline import Scenes
from spatial_clap_jax.data.records import SceneData
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate_in_detail
from spatial_clap_jax.inference import load
from spatial_clap_jax.shown import plain
from spatial_clap_jax.study.conditions import open_conditions, open_data
from spatial_clap_jax.study.figures import draw_figures
from spatial_clap_jax.study.outcomes import Findings, read_findings, write_findings
from spatial_clap_jax.study.spec import PLAIN, Phrases, Row, Study
from spatial_clap_jax.study.summary import markdown, summarise, table
from spatial_clap_jax.train.description import (
    has_description,
    read_description,
    write_atomically,
)
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.resuming import resumed_experiment
from spatial_clap_jax.train.trainer import train


def run_study(
    study: Study,
    data: str | Path,
    workdir: str | Path,
    *,
    seeds: int = 3,
    sources: str | None = None,
    rows: Sequence[str] = (),
    gallery: int = 200,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains and tests every row with every seed, and compares them.

    All rows are trained with the first seed before any with the second. After each test the
    results, the table and the figures are written anew from what there is, so that a study can be
    looked at while it runs. What is in `workdir` is not made again.

    Args:
      study: rows and conditions.
      data: folder of scenes; rendered from `sources` where it is missing.
      workdir: for trainings, tests, scenes of conditions, `results.json`, `table.md`, figures.
      seeds: trainings a row.
      sources: the clips that the data are rendered from (a csv, or 'synthetic'); without them
        conditions that need rendering are left out.
      rows: names of the rows to train and test; all if empty.
      gallery: scenes in a retrieval gallery.
      progress: show progress bars and tables.

    Returns:
      What `results.json` holds.

    Raises:
      InputError: data, sources or workdir do not fit the study.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: must be at least 1; give 3 for intervals that mean it.")
    chosen = study.chosen(rows)
    workdir, console = Path(workdir), Console(stderr=True)
    scenes = open_data(study, data, sources, progress)
    conditions, missing = open_conditions(study, scenes, workdir / "scenes", sources, progress)
    if missing and progress:
        console.print(
            plain(f"{study.name}: without {', '.join(missing)}; --sources renders their scenes."),
            markup=False,
        )
    results: dict[str, Any] = {}
    todo = [(seed, row) for seed in range(seeds) for row in chosen]
    for number, (seed, row) in enumerate(todo, 1):
        if progress:
            line = plain(f"{study.name}: {number} of {len(todo)}: {row.title}, seed {seed}")
            console.print(line, markup=False)
        folder = workdir / "runs" / row.name / f"seed{seed}"
        if train_and_test(study, row, seed, folder, scenes, conditions, gallery, progress):
            results = write_summary(study, scenes, workdir, missing)
    results = results or write_summary(study, scenes, workdir, missing)
    if progress:
        Console().print(table(study, results))
    return results


def train_and_test(
    study: Study,
    row: Row,
    seed: int,
    folder: Path,
    scenes: SceneData,
    conditions: dict[str, Scenes],
    gallery: int,
    progress: bool,
) -> bool:
    """Trains and tests one row with one seed, as far as that is not done.

    Args:
      study: says what the conditions are.
      row: what is trained.
      seed: of the training.
      folder: of the training and its tests.
      scenes: the data.
      conditions: scenes to test on.
      gallery: scenes in a retrieval gallery.
      progress: show progress bars.

    Returns:
      Whether anything was done.

    Raises:
      InputError: the folder holds another training.
    """
    before, experiment = (
        e and dataclasses.replace(e, name=row.name, seed=seed, keep=1)
        for e in (row.before, row.experiment)
    )
    assert experiment is not None
    identity = _identity(before, experiment, scenes, gallery)
    tested = read_findings(folder, identity)
    undone = [name for name in conditions if name not in tested]
    if not undone:
        return False
    began = time.perf_counter()
    model = load(_trained(before, experiment, scenes.data_dir, folder, progress))
    said = {c.name: c.phrases for c in study.conditions if isinstance(c, Phrases)}
    console = Console(stderr=True, quiet=not progress)
    for name in track(undone, "tests", console=console, disable=not progress, transient=True):
        found = evaluate_in_detail(
            model,
            conditions[name],
            gallery=gallery,
            progress=False,
            phrases=said.get(name, "side"),
        )
        tested[name] = Findings.of(found, with_map=name == PLAIN)
        write_findings(folder, identity, tested)
    minutes = (time.perf_counter() - began) / 60
    line = plain(f"{row.title}, seed {seed}: trained and tested in {minutes:.1f} min")
    console.print(line, markup=False)
    jax.clear_caches()
    return True


def _trained(
    before: Experiment | None,
    experiment: Experiment,
    data: str | Path,
    folder: Path,
    progress: bool,
) -> Path:
    """The folder of a training, once it and the one before it have taken the steps left."""
    training, accept = folder / "training", []
    if before is not None:
        source = str((folder / "before").resolve())
        accept = _if_moved(training, source)
        # One that has begun holds what it took.
        if resumed_experiment(training) is None:
            train(before, data, folder / "before", progress=progress)
            jax.clear_caches()
        init = dataclasses.replace(experiment.init, model=source)
        experiment = dataclasses.replace(experiment, init=init)
    train(experiment, data, training, progress=progress, accept=accept)
    # A later program must not pay for those of all earlier rows.
    jax.clear_caches()
    return training


def write_summary(
    study: Study, scenes: SceneData, workdir: Path, missing: Sequence[str]
) -> dict[str, Any]:
    """Writes `results.json`, `table.md` and the figures from all tests that are in a folder.

    Args:
      study: rows, conditions and comparisons.
      scenes: the data.
      workdir: of the study.
      missing: conditions that could not be tested.

    Returns:
      What `results.json` holds.
    """
    tested = {
        row.name: {
            int(folder.name.removeprefix("seed")): read_findings(folder, None)
            for folder in sorted((workdir / "runs" / row.name).glob("seed*"))
        }
        for row in study.rows
    }
    results = summarise(study, tested)
    results["data"] = {
        "source": scenes.manifest["source"]["name"],
        "recipe": scenes.manifest["recipe"]["name"],
        "fingerprint": scenes.manifest["fingerprint"],
    }
    results["missing_conditions"] = list(missing)
    write_atomically(
        workdir / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n"
    )
    write_atomically(workdir / "table.md", markdown(study, results))
    draw_figures(study, results, tested, workdir)
    return results


def _if_moved(training: Path, source: str) -> list[str]:
    """What a training may differ in that began before the folder of the study was moved."""
    if not has_description(training):
        return []
    began_from = from_plain(Experiment, read_description(training)["experiment"]).init.model
    if began_from is None:
        raise InputError(
            f"{training}: began from nothing, and the study would have it begin from {source}; "
            "take another --workdir."
        )
    return [] if began_from == source else ["init.model"]


def _identity(
    before: Experiment | None, experiment: Experiment, scenes: SceneData, gallery: int
) -> dict[str, Any]:
    identity = {
        "experiment": to_plain(experiment),
        "data": scenes.manifest["fingerprint"],
        "gallery": gallery,
    }
    return identity if before is None else {**identity, "before": to_plain(before)}
