"""Scores as tables for the terminal and as figures."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich import box
from rich.console import Console
from rich.table import Table

from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.acoustics.spatial_words import DIRECTIONS
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.attributes import answers
from spatial_clap_jax.metrics.embedded import EmbeddedSplit
from spatial_clap_jax.metrics.scores import Score
from spatial_clap_jax.shown import cell, label

_TASKS = {
    "t2a_r1": "text to audio, R@1",
    "t2a_r5": "text to audio, R@5",
    "t2a_r10": "text to audio, R@10",
    "a2t_r1": "audio to text, R@1",
    "a2t_r5": "audio to text, R@5",
    "a2t_r10": "audio to text, R@10",
    "t2a_all_r1": "text to audio, all captions, R@1",
    "t2a_all_r5": "text to audio, all captions, R@5",
    "t2a_all_r10": "text to audio, all captions, R@10",
    "a2t_all_r1": "audio to text, all captions, R@1",
    "a2t_all_r5": "audio to text, all captions, R@5",
    "a2t_all_r10": "audio to text, all captions, R@10",
    "t2a_map10": "text to audio, mAP@10",
    "a2t_map10": "audio to text, mAP@10",
    "direction": "direction, zero-shot",
    "direction_4": "direction of 4, zero-shot",
    "direction_4_localised": "direction of 4, localised",
    "direction_8": "direction of 8, zero-shot",
    "elevation": "elevation, zero-shot",
    "distance": "distance, zero-shot",
    "room": "room size, zero-shot",
    "reverberation": "reverberation, zero-shot",
    "content": "content, zero-shot",
    "content_map": "content, zero-shot mAP",
    "probe": "content, linear probe",
    "probe_map": "content, linear probe, mAP",
    "labels": "content, trained head",
    "labels_map": "content, trained head, mAP",
    "content_r1": "content, R@1",
    "content_r10": "content, R@10",
    "content_r1_change": "content, change in R@1",
    "content_r10_change": "content, change in R@10",
    "assignment": "content-space assignment",
    "angular_error_deg": "angular error, mean",
    "angular_error_median_deg": "angular error, median",
    "distance_error_m": "distance error, mean",
    "wasserstein": "Wasserstein distance",
    "seld_f": "events, F 20 deg",
    "seld_f_on_screen": "events, F, on-screen right",
    "seld_on_screen": "events, on-screen",
    "seld_doae_deg": "events, azimuth error",
    "seld_rde_ratio": "events, relative distance",
}
# Tasks whose numbers are no shares, by the end of their name, and their unit.
_UNITS = {"_deg": "deg", "_m": "m", "_ratio": "ratio", "wasserstein": ""}
# Colours of directions on a map; what has no direction word is grey.
_DIRECTION_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#bab0ac")
# Neighbours of a point that a map keeps together.
_NEIGHBOURS = 15


def unit_of(key: str) -> str | None:
    """The unit of a score by its name, '' for a bare number, None for a share.

    Example:
      >>> unit_of("angular_error_deg/1"), unit_of("wasserstein/near - far"), unit_of("t2a_r1/2")
      ('deg', '', None)
    """
    task = key.partition("/")[0]
    return next((unit for end, unit in _UNITS.items() if task.endswith(end)), None)


def results_table(results: Mapping[str, Score], title: str | None = None) -> Table:
    """A table of the scores that are shares, in percent, each beside its interval and chance.

    Args:
      results: scores by name, `{task}/{sources}`; measures that are no shares are left out, see
        `measures_table`.
      title: stands above the table.

    Returns:
      One row a score, by task and number of sources; a score whose interval lies above chance
      is green.
    """
    table = Table(title=title and cell(title), box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    table.add_column("sources", justify="right")
    for name in ("score %", "95 % interval", "chance %", "n"):
        table.add_column(name, justify="right")
    previous = None
    for key in _in_order(_shares(results)):
        task, _, sources = key.partition("/")
        score = results[key]
        if previous is not None and task.partition("_")[0] != previous:
            table.add_section()
        previous = task.partition("_")[0]
        style = "green" if score["low"] > score["chance"] else "yellow"
        table.add_row(
            cell(_TASKS.get(task, task)),
            cell(sources),
            f"[{style}]{100 * score['value']:.1f}[/]",
            f"{100 * score['low']:.1f} - {100 * score['high']:.1f}",
            f"{100 * score['chance']:.1f}",
            str(score["n"]),
        )
    return table


def measures_table(results: Mapping[str, Score], title: str | None = None) -> Table:
    """A table of what is no share: errors in degrees and metres, distances of clusters.

    Args:
      results: scores by name, `{task}/{part of the scenes}`; shares are left out.
      title: stands above the table.

    Returns:
      One row a measure, with its unit; green where the interval lies wholly on the better side of
      chance: below it for an error, above it for the distance of two clusters.
    """
    table = Table(title=title and cell(title), box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measure")
    table.add_column("scenes")
    for name in ("value", "95 % interval", "chance", "unit", "n"):
        table.add_column(name, justify="right")
    previous = None
    for key in _in_order(_measures(results)):
        task, _, part = key.partition("/")
        score, unit = results[key], unit_of(key)
        kind = (task, part.partition(":")[0] if ":" in part else "")
        if previous not in (None, kind):
            table.add_section()
        previous = kind
        digits = 1 if unit == "deg" else 2
        better = score["high"] < score["chance"] if unit else score["low"] > score["chance"]
        table.add_row(
            cell(_TASKS.get(task, task)),
            cell("all" if part == "1" else part),
            f"[{'green' if better else 'yellow'}]{score['value']:.{digits}f}[/]",
            f"{score['low']:.{digits}f} - {score['high']:.{digits}f}",
            f"{score['chance']:.{digits}f}",
            unit,
            str(score["n"]),
        )
    return table


def print_results(results: Mapping[str, Score], title: str | None = None) -> None:
    """Prints `results_table`, and `measures_table` where there are any, to standard output.

    Of sound events, F of each class is shown and other measures of classes are left to the file.
    """
    console = Console()
    results = {key: score for key, score in results.items() if not _is_detail(key)}
    console.print(results_table(results, title))
    if _measures(results):
        console.print(measures_table(results))


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
    """Draws shares and angular errors with their intervals and chance, and confused directions.

    Args:
      results: scores by name, `{task}/{sources}`; at least one.
      path: the picture; its suffix says the format (png, svg, pdf).
      direction_confusion: counts by true (row) and chosen (column) direction class, five of
        stereo scenes or the four of ELSA's words; None leaves this part out.

    Raises:
      InputError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    check_plot_path(path)
    shares = {key: results[key] for key in _in_order(_shares(results)) if not _is_change(key)}
    errors = {key: results[key] for key in _in_order(results) if unit_of(key) == "deg"}
    panels = 1 + (direction_confusion is not None) + bool(errors)
    rows = max(len(shares), len(errors))
    figure = Figure(figsize=(6.5 * panels, 1.5 + 0.3 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    _draw_scores(axes[0], shares)
    if direction_confusion is not None:
        _draw_confusion(axes[1], direction_confusion)
    if errors:
        _draw_errors(axes[-1], errors)
    save_figure(figure, path)


def plot_map(learnt: EmbeddedSplit, shown: EmbeddedSplit, path: str | Path, seed: int = 0) -> None:
    """Draws a UMAP of embeddings: fitted on training scenes, drawn of others, audio and text.

    Args:
      learnt: scenes of one source that the map is fitted on, audio and captions together.
      shown: the scenes that are drawn, coloured by direction.
      path: the picture; its suffix says the format (png, svg, pdf).
      seed: of the map.

    Raises:
      InputError: umap-learn is not installed (extra `umap`), there are too few scenes, or the
        picture cannot be written.

    Reference: McInnes et al., UMAP, arXiv 1802.03426; settings are the library's.
    """
    from matplotlib.figure import Figure

    check_plot_path(path)
    umap_of = _umap()
    known = np.concatenate([learnt.identities, learnt.text[learnt.starts[:-1]]])
    if len(known) <= _NEIGHBOURS:
        raise InputError(
            f"{path}: {len(known) // 2} training scenes are too few for a map; give more than "
            f"{_NEIGHBOURS // 2}."
        )
    if shown.places is None:
        raise InputError(f"{path}: a map shows scenes of one source in ELSA's words; give such.")
    directions = answers(shown.places)["direction_4"]
    fitted = umap_of(n_neighbors=_NEIGHBOURS, metric="cosine", random_state=seed, n_jobs=1)
    fitted.fit(known)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    for vectors, marker, what in (
        (shown.identities, "o", "audio"),
        (shown.text[shown.starts[:-1]], "^", "text"),
    ):
        _draw_points(axes, fitted.transform(vectors), directions, marker, what)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"UMAP fitted on {len(learnt.identities)} training scenes")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def check_map_extra() -> None:
    """Refuses a map that could not be drawn, before the work whose result it shows.

    Raises:
      InputError: umap-learn is not installed.
    """
    if importlib.util.find_spec("umap") is None:
        raise InputError(
            "--umap: needs umap-learn, which is not installed; "
            "install it with pip install 'spatial-clap-jax[umap]'."
        )


def _umap() -> Any:
    check_map_extra()
    with warnings.catch_warnings():
        # It warns of a missing TensorFlow, which only its parametric maps need.
        warnings.simplefilter("ignore")
        return importlib.import_module("umap").UMAP


def save_figure(figure: Any, path: str | Path) -> None:
    """Writes a figure of matplotlib.

    Raises:
      InputError: it cannot be written there.
    """
    try:
        with warnings.catch_warnings():
            # Names may be of scripts that the font has no letters of.
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
            figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: the figure cannot be written ({reason}); give a .png, .svg or .pdf path in "
            "a folder that exists."
        ) from error


def _shares(results: Mapping[str, Score]) -> dict[str, Score]:
    return {key: score for key, score in results.items() if unit_of(key) is None}


def _measures(results: Mapping[str, Score]) -> dict[str, Score]:
    return {key: score for key, score in results.items() if unit_of(key) is not None}


def _is_detail(key: str) -> bool:
    task, _, part = key.partition("/")
    return part.startswith("class:") and task != "seld_f"


def _is_change(key: str) -> bool:
    """A difference of two shares, which may be negative."""
    return key.partition("/")[0].endswith("_change")


def _in_order(results: Mapping[str, Score]) -> list[str]:
    """By task in the order of `_TASKS`, then by sources; unknown tasks last.

    Parts such as 'distance: 1 to 2 m' follow the whole and keep their order.
    """
    rank = {task: index for index, task in enumerate(_TASKS)}

    def order(key: str) -> tuple[int, str, bool, str]:
        task, _, sources = key.partition("/")
        is_part = ":" in sources
        return rank.get(task, len(rank)), task, is_part, "" if is_part else sources

    return sorted(results, key=order)


def _draw_scores(axes, results: Mapping[str, Score]) -> None:
    keys = [key.partition("/") for key in results]
    labels = [label(f"{_TASKS.get(task, task)} ({k})") for task, _, k in keys]
    _draw_bars(axes, results, 100, labels)
    axes.set_xlim(0, 100)
    axes.set_xlabel("score %, 95 % interval; in brackets: sources")


def _draw_errors(axes, results: Mapping[str, Score]) -> None:
    labels = []
    for key in results:
        task, _, part = key.partition("/")
        labels.append(label(_TASKS.get(task, task) if part == "1" else part))
    _draw_bars(axes, results, 1, labels)
    axes.set_xlim(left=0)
    axes.set_xlabel("angular error in degrees, 95 % interval")


def _draw_bars(axes, results: Mapping[str, Score], factor: float, labels: Sequence[str]) -> None:
    heights = np.arange(len(results))[::-1]
    value, low, high, chance = (
        np.array([factor * score[name] for score in results.values()])
        for name in ("value", "low", "high", "chance")
    )
    axes.barh(heights, value, color="#4c78a8", height=0.7)
    # Subtraction may leave -1e-15, which matplotlib refuses as the length of an error bar.
    errors = np.maximum([value - low, high - value], 0)
    axes.errorbar(value, heights, xerr=errors, fmt="none", ecolor="black", capsize=2)
    axes.vlines(
        chance, heights - 0.4, heights + 0.4, colors="#e45756", linestyles="dashed", label="chance"
    )
    axes.set_yticks(heights, labels)
    axes.margins(y=0.01)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _draw_points(
    axes, points: Float[np.ndarray, "n 2"], directions: Int[np.ndarray, "n"], marker: str, what: str
) -> None:
    for index, word in enumerate((*DIRECTIONS, "no word")):
        rows = directions == (index if index < len(DIRECTIONS) else -1)
        style = {"s": 14, "alpha": 0.7, "color": _DIRECTION_COLORS[index], "linewidths": 0}
        axes.scatter(*points[rows].T, marker=marker, label=f"{what}, {word}", **style)


def _draw_confusion(axes, counts: Int[np.ndarray, "d d"]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", color=color)
    in_stereo = len(counts) == len(STEREO_DIRECTIONS)
    names = [direction.name for direction in STEREO_DIRECTIONS] if in_stereo else list(DIRECTIONS)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("chosen direction")
    axes.set_ylabel("true direction")
