"""Tests of many trainings as one table: means over seeds, intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from spatial_clap_jax import shown
from spatial_clap_jax.evaluate import Outcome
from spatial_clap_jax.metrics.resampling import bootstrap, share_by_run
from spatial_clap_jax.study.outcomes import Findings
from spatial_clap_jax.study.spec import PLAIN, UNCHANGED, Study

# What the first table shows: the score, and what its column is called.
COLUMNS = {
    "assignment/2": "assignment, 2",
    "assignment/3": "assignment, 3",
    "direction/1": "direction",
    "content/1": "content",
    "t2a_r1/1": "T to A R@1, 1",
    "t2a_r1/2": "T to A R@1, 2",
    "t2a_r1/3": "T to A R@1, 3",
    "a2t_r1/1": "A to T R@1, 1",
    "a2t_r1/2": "A to T R@1, 2",
    "a2t_r1/3": "A to T R@1, 3",
}
# What is told of the other conditions.
ROBUST = ("assignment/2", "direction/1")

# By row, by seed, by condition.
AllFindings = Mapping[str, Mapping[int, Mapping[str, Findings]]]


def summarise(study: Study, tested: AllFindings) -> dict[str, Any]:
    """All scores with their intervals, and the study's comparisons, as JSON.

    Args:
      study: rows, conditions and comparisons.
      tested: what was found so far.

    Returns:
      `rows`: by row, its title, seeds and `scores` by condition and task (value, low, high, chance,
      n queries a training, by_seed) and `changes`, the paired difference that each condition makes
      to the same scenes unchanged. `comparisons`: by pair and condition and task the difference
      with interval and p, over the seeds that both rows have.
    """
    names = list(study.changes())
    experiment, before = study.rows[0].experiment, study.rows[0].before
    rows: dict[str, Any] = {}
    for row in study.rows:
        by_seed = tested.get(row.name, {})
        scores = {
            name: _scores({seed: tests[name] for seed, tests in by_seed.items() if name in tests})
            for name in names
        }
        rows[row.name] = {
            "title": row.title,
            "is_ours": row.is_ours,
            "seeds": sorted(seed for seed, tests in by_seed.items() if PLAIN in tests),
            "scores": {name: found for name, found in scores.items() if found},
            "changes": {
                condition.name: found
                for condition in study.conditions
                if (found := _differences(by_seed, condition.name, by_seed, UNCHANGED, ROBUST))
            },
        }
    return {
        "study": study.name,
        "steps_before": before.steps if before else 0,
        "steps": experiment.steps,
        "captions_per_batch": experiment.data.rows,
        "rows": rows,
        "comparisons": [
            {
                "better": better,
                "worse": worse,
                "scores": {
                    name: found
                    for name in names
                    if (
                        found := _differences(
                            tested.get(better, {}), name, tested.get(worse, {}), name, COLUMNS
                        )
                    )
                },
            }
            for better, worse in study.comparisons
        ],
    }


def _stacked(tests: Mapping[int, Findings], task: str) -> Outcome | None:
    """The same queries of several trainings, one training a row."""
    outcomes = [test.outcomes[task] for _, test in sorted(tests.items()) if task in test.outcomes]
    if not outcomes:
        return None
    return Outcome(
        np.stack([outcome.hits for outcome in outcomes]), outcomes[0].cluster, outcomes[0].chance
    )


def _scores(tests: Mapping[int, Findings]) -> dict[str, Any]:
    scores = {}
    for task in dict.fromkeys(task for test in tests.values() for task in test.outcomes):
        outcome = _stacked(tests, task)
        assert outcome is not None
        estimate = bootstrap(outcome.hits, outcome.cluster)
        scores[task] = {
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "chance": outcome.chance,
            "n": outcome.hits.shape[1],
            "by_seed": share_by_run(outcome.hits).tolist(),
        }
    return scores


def _differences(
    one_row: Mapping[int, Mapping[str, Findings]],
    condition: str,
    other_row: Mapping[int, Mapping[str, Findings]],
    baseline: str,
    tasks: Collection[str],
) -> dict[str, Any]:
    """By task, one row under one condition against another (or the same) under another."""
    sides = [
        {seed: tests[name] for seed, tests in row.items() if name in tests}
        for row, name in ((one_row, condition), (other_row, baseline))
    ]
    shared = sorted(sides[0].keys() & sides[1].keys())
    found = {}
    for task in tasks:
        one, other = (_stacked({seed: side[seed] for seed in shared}, task) for side in sides)
        if one is None or other is None:
            continue
        estimate = bootstrap(one.hits, one.cluster, other.hits)
        found[task] = {
            "difference": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "p": estimate.p,
            "seeds": len(shared),
        }
    return found


def table(study: Study, results: Mapping[str, Any]) -> Table:
    """The main scores of every row for the terminal, without intervals."""
    found = Table(title=shown.cell(study.name), box=box.SIMPLE_HEAD, pad_edge=False)
    header, *lines = _main_rows(study, results, intervals=False)
    for index, name in enumerate(header):
        found.add_column(shown.cell(name), justify="left" if index == 0 else "right")
    for line in lines:
        found.add_row(*map(shown.cell, line))
    return found


def markdown(study: Study, results: Mapping[str, Any]) -> str:
    """All tables of a study as Markdown."""
    before = f"{results['steps_before']} steps before, and " if results["steps_before"] else ""
    parts = [
        f"# {shown.markdown(study.name)}",
        f"{before}{results['steps']} steps of {results['captions_per_batch']} captions a training. "
        "Means over seeds in percent, in brackets 95 % intervals (bootstrap over scenes and "
        "seeds; of one seed over scenes only); rows with a * go past the paper.",
        _grid(_main_rows(study, results)),
    ]
    if study.comparisons:
        parts += [
            "## Paired differences",
            "Points of percent between two rows on the same queries and seeds, interval, and the "
            "two-sided p of the bootstrap, not corrected for their number; of how many seeds, "
            "where these are fewer than the study has.",
            _grid(_comparison_rows(results)),
        ]
    if study.conditions:
        parts += [
            "## Under other conditions",
            f"The first {study.singles} scenes of one source and {study.pairs} of two, under every "
            "condition the same; behind each score what the condition changes, by pairs.",
        ]
        parts += [
            f"### {COLUMNS[task]}\n\n{_grid(_condition_rows(study, results, task))}"
            for task in ROBUST
        ]
    if study.conditions and study.comparisons:
        parts += [
            f"### Paired differences, {COLUMNS[task]}\n\n"
            f"{_grid(_comparison_rows_by_condition(study, results, task))}"
            for task in ROBUST
        ]
    return "\n\n".join(parts) + "\n"


def _main_rows(study: Study, results: Mapping[str, Any], intervals: bool = True) -> list[list[str]]:
    chances = _chances(results)
    columns = [task for task in COLUMNS if task in chances]
    lines = [["row", "seeds", *(COLUMNS[task] for task in columns)]]
    for row in study.rows:
        found = results["rows"][row.name]
        scores = found["scores"].get(PLAIN, {})
        title = f"{row.title} *" if row.is_ours else row.title
        lines.append(
            [
                title,
                str(len(found["seeds"])),
                *(_percent(scores.get(task), intervals) for task in columns),
            ]
        )
    lines.append(["chance", "", *(f"{100 * chances[task]:.1f}" for task in columns)])
    return lines


def held_conditions(study: Study, results: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the conditions that any row was tested under, by name, unchanged scenes first."""
    titles = {UNCHANGED: "as trained", **{c.name: c.title for c in study.conditions}}
    tested = {name for found in results["rows"].values() for name in found["scores"]}
    return {name: title for name, title in titles.items() if name in tested}


def _condition_rows(study: Study, results: Mapping[str, Any], task: str) -> list[list[str]]:
    titles, most = held_conditions(study, results), _most_seeds(results)
    lines = [["row", *titles.values()]]
    for found in results["rows"].values():
        seeds = len(found["seeds"])
        line = [f"{found['title']}{_of_seeds(seeds, most)}"]
        for name in titles:
            told = _percent(found["scores"].get(name, {}).get(task), interval=name == UNCHANGED)
            change = found["changes"].get(name, {}).get(task)
            if change is not None:
                fewer = _of_seeds(change["seeds"], seeds) if change["seeds"] < seeds else ""
                told += f", {_change(change)}{fewer}"
            line.append(told)
        lines.append(line)
    return lines


def _comparison_rows_by_condition(
    study: Study, results: Mapping[str, Any], task: str
) -> list[list[str]]:
    titles, most = held_conditions(study, results), _most_seeds(results)
    lines = [["better, as expected", "worse", *titles.values()]]
    for pair in results["comparisons"]:
        rows = [results["rows"][pair[side]]["title"] for side in ("better", "worse")]
        scores = [pair["scores"].get(name, {}).get(task) for name in titles]
        lines.append([*rows, *(_difference(score, most) for score in scores)])
    return lines


def _comparison_rows(results: Mapping[str, Any]) -> list[list[str]]:
    tasks = ("assignment/2", "assignment/3", "direction/1", "content/1", "t2a_r1/2")
    most = _most_seeds(results)
    lines = [["better, as expected", "worse", *(COLUMNS[task] for task in tasks)]]
    for pair in results["comparisons"]:
        scores = pair["scores"].get(PLAIN, {})
        titles = [results["rows"][pair[side]]["title"] for side in ("better", "worse")]
        lines.append([*titles, *(_difference(scores.get(task), most) for task in tasks)])
    return lines


def _chances(results: Mapping[str, Any]) -> dict[str, float]:
    return {
        task: score["chance"]
        for found in results["rows"].values()
        for task, score in found["scores"].get(PLAIN, {}).items()
    }


def _percent(score: Mapping[str, Any] | None, interval: bool = True) -> str:
    if score is None:
        return "-"
    if not interval:
        return f"{100 * score['value']:.1f}"
    return f"{100 * score['value']:.1f} ({100 * score['low']:.1f} - {100 * score['high']:.1f})"


def _most_seeds(results: Mapping[str, Any]) -> int:
    return max(len(found["seeds"]) for found in results["rows"].values())


def _difference(score: Mapping[str, Any] | None, most: int) -> str:
    if score is None or not math.isfinite(score["difference"]):
        return "-"
    return f"{_change(score)}, p {score['p']:.3f}{_of_seeds(score['seeds'], most)}"


def _of_seeds(seeds: int, most: int) -> str:
    """Of how many seeds something is, where these are fewer than the most or one alone."""
    if seeds == 1:
        return " (one seed: scenes only)"
    return f" ({seeds} seeds)" if 0 < seeds < most else ""


def _change(score: Mapping[str, Any]) -> str:
    value, low, high = (100 * score[key] for key in ("difference", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} - {high:+.1f})"


def _grid(lines: list[list[str]]) -> str:
    header, *rest = lines
    told = [[shown.markdown(text) for text in line] for line in (header, *rest)]
    ruled = [told[0], ["---"] * len(header), *told[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)
