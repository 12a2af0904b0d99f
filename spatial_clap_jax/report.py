"""Scores as a table for the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.table import Table

from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.scores import Score

_TASKS = {
    "t2a_r1": "text to audio, R@1",
    "t2a_r5": "text to audio, R@5",
    "t2a_r10": "text to audio, R@10",
    "a2t_r1": "audio to text, R@1",
    "a2t_r5": "audio to text, R@5",
    "a2t_r10": "audio to text, R@10",
    "direction": "direction, zero-shot",
    "content": "content, zero-shot",
    "assignment": "content-space assignment",
}


def results_table(results: Mapping[str, Score], title: str | None = None) -> Table:
    """A table of scores in percent, each beside its interval and chance.

    Args:
      results: scores by name, `{task}/{sources}`.
      title: stands above the table.

    Returns:
      One row a score, by task and number of sources; a score whose interval lies above chance
      is green.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    table.add_column("sources", justify="right")
    for name in ("score %", "95 % interval", "chance %", "n"):
        table.add_column(name, justify="right")
    previous = None
    for key in _in_order(results):
        task, _, sources = key.partition("/")
        score = results[key]
        if previous is not None and task.partition("_")[0] != previous:
            table.add_section()
        previous = task.partition("_")[0]
        style = "green" if score["low"] > score["chance"] else "yellow"
        table.add_row(
            _TASKS.get(task, task),
            sources,
            f"[{style}]{100 * score['value']:.1f}[/]",
            f"{100 * score['low']:.1f} - {100 * score['high']:.1f}",
            f"{100 * score['chance']:.1f}",
            str(score["n"]),
        )
    return table


def print_results(results: Mapping[str, Score], title: str | None = None) -> None:
    """Prints `results_table` to standard output."""
    Console().print(results_table(results, title))


def check_plot_path(path: str | Path) -> None:
    """Refuses a picture that could not be written, before the work whose result it shows.

    Raises:
      InputError: the suffix is none of png, svg and pdf, or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf") or not path.parent.is_dir():
        raise InputError(
            f"{path}: the figure cannot be written there; give a .png, .svg or .pdf path in a "
            "folder that exists."
        )


def plot_results(
    results: Mapping[str, Score],
    path: str | Path,
    direction_confusion: Int[np.ndarray, "d d"] | None = None,
) -> None:
    """Draws the scores with their intervals and chance, and where directions are confused.

    Args:
      results: scores by name, `{task}/{sources}`; at least one.
      path: the picture; its suffix says the format (png, svg, pdf).
      direction_confusion: counts by true (row) and chosen (column) direction class; None
        leaves this part out.

    Raises:
      InputError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    check_plot_path(path)
    keys = _in_order(results)
    panels = 1 if direction_confusion is None else 2
    figure = Figure(figsize=(6.5 * panels, 1.5 + 0.3 * len(keys)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    _draw_scores(axes[0], {key: results[key] for key in keys})
    if direction_confusion is not None:
        _draw_confusion(axes[1], direction_confusion)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: the figure cannot be written ({reason}); give a .png, .svg or .pdf path in "
            "a folder that exists."
        ) from error


def _in_order(results: Mapping[str, Score]) -> list[str]:
    """By task in the order of `_TASKS`, then by sources; unknown tasks last."""
    rank = {task: index for index, task in enumerate(_TASKS)}

    def order(key: str) -> tuple[int, str, str]:
        task, _, sources = key.partition("/")
        return rank.get(task, len(rank)), task, sources

    return sorted(results, key=order)


def _draw_scores(axes, results: Mapping[str, Score]) -> None:
    heights = np.arange(len(results))[::-1]
    value, low, high, chance = (
        np.array([100 * score[name] for score in results.values()])
        for name in ("value", "low", "high", "chance")
    )
    axes.barh(heights, value, color="#4c78a8", height=0.7)
    # Subtraction may leave -1e-15, which matplotlib refuses as the length of an error bar.
    errors = np.maximum([value - low, high - value], 0)
    axes.errorbar(value, heights, xerr=errors, fmt="none", ecolor="black", capsize=2)
    axes.vlines(
        chance, heights - 0.4, heights + 0.4, colors="#e45756", linestyles="dashed", label="chance"
    )
    labels = [key.partition("/") for key in results]
    axes.set_yticks(heights, [f"{_TASKS.get(task, task)} ({k})" for task, _, k in labels])
    axes.set_xlim(0, 100)
    axes.margins(y=0.01)
    axes.set_xlabel("score %, 95 % interval; in brackets: sources")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _draw_confusion(axes, counts: Int[np.ndarray, "d d"]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", color=color)
    names = [direction.name for direction in STEREO_DIRECTIONS]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("chosen direction")
    axes.set_ylabel("true direction")
