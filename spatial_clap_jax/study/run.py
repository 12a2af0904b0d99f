"""A study from its first training to its figures; it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import track

from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.data.pipeline import Scenes
from spatial_clap_jax.data.records import SceneData
from spatial_clap_jax.data.staging import staging
from spatial_clap_jax.errors import InputError, RunStopped
from spatial_clap_jax.evaluate import evaluate_in_detail
from spatial_clap_jax.inference import load
from spatial_clap_jax.shown import plain
from spatial_clap_jax.small_files import json_of
from spatial_clap_jax.study.conditions import open_conditions, open_data
from spatial_clap_jax.study.figures import FIGURES, draw_figures
from spatial_clap_jax.study.outcomes import FILE as TESTS
from spatial_clap_jax.study.outcomes import (
    Findings,
    check_same_training,
    read_findings,
    write_findings,
)
from spatial_clap_jax.study.spec import PLAIN, Phrases, Row, Study
from spatial_clap_jax.study.summary import AllFindings, markdown, summarise, table
from spatial_clap_jax.train.description import (
    has_description,
    read_description,
    run_folder,
    write_atomically,
)
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.resuming import resumed_experiment
from spatial_clap_jax.train.run_lock import held
from spatial_clap_jax.train.trainer import train

_RESULTS, _TABLE, _RUNS = "results.json", "table.md", "runs"
# In the folder of a training and its tests: what they are of.
_IDENTITY = "identity.json"
# How often a summary is made, at most, while others go on testing.
_TRIES = 3


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
      InputError: data, sources or workdir do not fit the study, the workdir holds something else,
        or another start is at work on the same row and seed.
      RunStopped: the numbers of trainings went wrong; all others are done.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: must be at least 1; give 3 for intervals that mean it.")
    todo = [(seed, row) for seed in range(seeds) for row in study.chosen(rows)]
    workdir, console = run_folder(workdir), Console(stderr=True)
    _check_workdir(study, workdir)
    scenes = open_data(study, data, sources, progress)
    study = study.held_to(scenes.manifest["groups"])
    conditions, missing = open_conditions(study, scenes, workdir / "scenes", sources, progress)
    # What does not belong to this study is told before hours are spent on it.
    tested = _all_tested(study, scenes, workdir, gallery)
    for name, reason in missing.items():
        is_lacked = any(name not in tested[row.name].get(seed, {}) for seed, row in todo)
        if progress and is_lacked:
            _tell(console, f"{study.name}: without {name}: {reason}.")
    results: dict[str, Any] = {}
    stopped: list[str] = []
    for number, (seed, row) in enumerate(todo, 1):
        if progress:
            _tell(console, f"{study.name}: {number} of {len(todo)}: {row.title}, seed {seed}")
        folder = workdir / _RUNS / row.name / f"seed{seed}"
        try:
            if train_and_test(study, row, seed, folder, scenes, conditions, gallery, progress):
                results = write_summary(study, scenes, workdir, missing, gallery)
        except RunStopped as error:
            # The rows after it are none the worse for it.
            stopped.append(f"{row.name}, seed {seed}: {error}")
            _tell(console, f"{study.name}: failed: {stopped[-1]}")
            jax.clear_caches()
    results = results or write_summary(study, scenes, workdir, missing, gallery)
    if progress:
        Console().print(table(study, results))
    if stopped:
        raise RunStopped(
            f"{study.name}: {len(stopped)} of {len(todo)} trainings failed, and the others are "
            f"done: {'; '.join(stopped)}"
        )
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
      InputError: the folder holds another training, or another start is at work in it.
      RunStopped: the numbers of the training went wrong.
    """
    changes, identity = study.changes(), _identity(row, seed, scenes, gallery)

    def already() -> dict[str, Findings]:
        return _tested_so(read_findings(folder, identity), changes)

    if conditions.keys() <= already().keys():
        return False
    began = time.perf_counter()
    console = Console(stderr=True, quiet=not progress)
    with held(folder, partial(_tell, console)):
        # Another start may have been at work here until now.
        tested = already()
        undone = [name for name in conditions if name not in tested]
        if not undone:
            return False
        has_begun = (folder / _IDENTITY).exists()
        _claim(folder, identity)
        before, experiment = _stages(row, seed)
        model = load(_trained(before, experiment, scenes.data_dir, folder, progress))
        said = {c.name: c.phrases for c in study.conditions if isinstance(c, Phrases)}
        for name in track(undone, "tests", console=console, disable=not progress, transient=True):
            found = evaluate_in_detail(
                model,
                conditions[name],
                gallery=gallery,
                progress=False,
                phrases=said.get(name, "side"),
            )
            with_map = name == PLAIN and row.name == study.showcase
            tested[name] = Findings.of(found, with_map, changes[name])
            write_findings(folder, identity, tested)
    took = f"{(time.perf_counter() - began) / 60:.1f} min"
    told = f"; this start, which was not the first, took {took}" if has_begun else f" in {took}"
    _tell(console, f"{row.title}, seed {seed}: trained and tested{told}")
    jax.clear_caches()
    return True


def _tell(console: Console, text: str) -> None:
    """A line of its own; names in it come from data, and no terminal shall obey them."""
    console.print(plain(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


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
    study: Study, scenes: SceneData, workdir: Path, missing: Collection[str], gallery: int
) -> dict[str, Any]:
    """Writes `results.json`, `table.md` and the figures from all tests that are in a folder.

    Two that are written at the same time leave each file whole, and the one of more tests.

    Args:
      study: rows, conditions and comparisons.
      scenes: the data.
      workdir: of the study.
      missing: conditions that could not be tested here; those that all were tested under are none.
      gallery: scenes in a retrieval gallery.

    Returns:
      What `results.json` holds.

    Raises:
      InputError: a test there is of other settings or data.
    """
    for tries_left in reversed(range(_TRIES)):
        read = _versions_of_tests(study, workdir)
        tested = _all_tested(study, scenes, workdir, gallery)
        results = _results(study, scenes, tested, missing)
        with staging(workdir / "summary") as folder:
            text = json.dumps(results, indent=1, allow_nan=False) + "\n"
            (folder / _RESULTS).write_text(text, encoding="utf-8")
            (folder / _TABLE).write_text(markdown(study, results), encoding="utf-8")
            for name, figure in draw_figures(study, results, tested, workdir / _RUNS).items():
                figure.savefig(folder / name, dpi=110)
            # Another one of more tests may have been written meanwhile.
            if tries_left and _versions_of_tests(study, workdir) != read:
                continue
            # The results first: they tell whose the other files are.
            for name in (_RESULTS, _TABLE, *FIGURES):
                if (folder / name).exists():
                    (folder / name).replace(workdir / name)
            break
    return results


def _results(
    study: Study, scenes: SceneData, tested: AllFindings, missing: Collection[str]
) -> dict[str, Any]:
    trainings = [tests for by_seed in tested.values() for tests in by_seed.values() if tests]
    return {
        **summarise(study, tested),
        "data": {
            "source": scenes.manifest["source"]["name"],
            "recipe": scenes.manifest["recipe"]["name"],
            "fingerprint": scenes.manifest["fingerprint"],
        },
        "missing_conditions": [
            name
            for name in missing
            if not trainings or any(name not in tests for tests in trainings)
        ],
    }


def _folders(study: Study, workdir: Path) -> Iterator[tuple[Row, int, Path]]:
    """Rows, seeds and folders of the trainings that are there or were."""
    for row in study.rows:
        for folder in (workdir / _RUNS / row.name).glob("seed*"):
            if number := re.fullmatch(r"seed([0-9]{1,9})", folder.name):
                yield row, int(number[1]), folder


def _versions_of_tests(study: Study, workdir: Path) -> dict[Path, int]:
    """When the tests in a folder were written."""
    paths = [folder / TESTS for _, _, folder in _folders(study, workdir)]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


def _all_tested(study: Study, scenes: SceneData, workdir: Path, gallery: int) -> AllFindings:
    """The tests in a folder by row, seed and condition, all held to the study."""
    changes = study.changes()
    found: dict[str, dict[int, dict[str, Findings]]] = {row.name: {} for row in study.rows}
    for row, seed, folder in _folders(study, workdir):
        tested = read_findings(folder, _identity(row, seed, scenes, gallery))
        found[row.name][seed] = _tested_so(tested, changes)
    return found


def _tested_so(
    tested: dict[str, Findings], changes: dict[str, dict[str, Any]]
) -> dict[str, Findings]:
    """The tests of conditions as they are now; one that was other then is to be tested again."""
    return {name: test for name, test in tested.items() if test.changes == changes.get(name)}


def _check_workdir(study: Study, workdir: Path) -> None:
    """Refuses a folder whose files a study would write over."""
    path = workdir / _RESULTS
    if path.exists():
        try:
            name = json_of(path)["study"]
        except (OSError, ValueError, KeyError, TypeError):
            name = None
        if name != study.name:
            raise InputError(
                f"{path}: holds no results of the study {study.name}, and would be written over; "
                "take another --workdir."
            )
        return
    there = [name for name in (_TABLE, *FIGURES) if (workdir / name).exists()]
    # Of lost results these trainings still tell that they were the study's.
    begun = any(
        (folder / name).exists()
        for _, _, folder in _folders(study, workdir)
        for name in (_IDENTITY, TESTS)
    )
    if there and not begun:
        raise InputError(
            f"{workdir / there[0]}: is not of this study, and would be written over; take another "
            "--workdir."
        )


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Writes what a training is before it begins; one that began as something else is refused."""
    path = folder / _IDENTITY
    if not path.exists():
        write_atomically(path, json.dumps(identity, indent=1) + "\n")
        return
    try:
        found = json_of(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: is not readable as JSON ({error}); remove it if the training beside it is "
            "the study's."
        ) from error
    check_same_training(path, found, identity)


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


def _stages(row: Row, seed: int) -> tuple[Experiment | None, Experiment]:
    """The trainings of a row with a seed, the one before (or None) first."""

    def of_seed(experiment: Experiment) -> Experiment:
        return dataclasses.replace(experiment, name=row.name, seed=seed, keep=1)

    return row.before and of_seed(row.before), of_seed(row.experiment)


def _identity(row: Row, seed: int, scenes: SceneData, gallery: int) -> dict[str, Any]:
    before, experiment = _stages(row, seed)
    identity = {
        "experiment": to_plain(experiment),
        "data": scenes.manifest["fingerprint"],
        "gallery": gallery,
    }
    return identity if before is None else {**identity, "before": to_plain(before)}
