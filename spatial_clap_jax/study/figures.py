"""Figures of a study: scores, conditions, learning curves, confused directions, a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.shown import label
from spatial_clap_jax.study.outcomes import SceneMap
from spatial_clap_jax.study.spec import PLAIN, Study
from spatial_clap_jax.study.summary import COLUMNS, ROBUST, AllFindings, held_conditions
from spatial_clap_jax.train.metrics_log import read_metrics

_PAPER, _OURS = "#4c78a8", "#f58518"
# Scores that say most; the table has all.
_SHOWN = ("assignment/2", "assignment/3", "direction/1", "content/1", "t2a_r1/2", "t2a_r1/3")
# The luminance from which on black digits are read better than white ones.
_BLACK_FROM = 0.25
FIGURES = ("scores.png", "conditions.png", "learning_curves.png", "directions.png", "map.png")
_CURVES = {"retrieval": "share of the batch retrieved", "assignment": "assignment in the batch"}
# Logged batches that a point of a learning curve is the mean of, at most.
_SMOOTHED = 5


def draw_figures(
    study: Study, results: Mapping[str, Any], tested: AllFindings, runs: Path
) -> dict[str, Any]:
    """Draws what there is to draw so far.

    Args:
      study: rows and conditions.
      results: see `summary.summarise`.
      tested: what it was made of.
      runs: folder of the trainings, for their learning curves.

    Returns:
      Figures of matplotlib by the name of their file, one of `FIGURES`.
    """
    rows = [row.name for row in study.rows if results["rows"][row.name]["seeds"]]
    if not rows:
        return {}
    drawn = (
        _scores(results, rows),
        _conditions(study, results, rows),
        _learning_curves(results, rows, runs),
        _directions(results, tested, rows),
        _map(study, results, tested),
    )
    return {name: figure for name, figure in zip(FIGURES, drawn, strict=True) if figure is not None}


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()


def _scores(results: Mapping[str, Any], rows: list[str]) -> Any:
    figure, panels = _figure(2, 3, 4.6, 1.2 + 0.32 * len(rows))
    heights = np.arange(len(rows))[::-1]
    for index, (axes, task) in enumerate(zip(panels, _SHOWN, strict=True)):
        for height, name in zip(heights, rows, strict=True):
            found = results["rows"][name]
            score = found["scores"][PLAIN].get(task)
            if score is None:
                continue
            value, low, high = (100 * score[key] for key in ("value", "low", "high"))
            axes.barh(height, value, color=_OURS if found["is_ours"] else _PAPER, height=0.7)
            errors = np.maximum([[value - low], [high - value]], 0)
            axes.errorbar(value, height, xerr=errors, fmt="none", ecolor="black", capsize=2)
            seeds = [100 * share for share in score["by_seed"]]
            # In front of the interval, which they lie in.
            dots = {"color": "white", "markeredgecolor": "black", "markersize": 4, "zorder": 3}
            axes.plot(seeds, [height] * len(seeds), "o", clip_on=False, **dots)
            axes.axvline(100 * score["chance"], color="#e45756", linestyle="dashed", linewidth=1)
        titles = [label(results["rows"][name]["title"]) for name in rows]
        axes.set_yticks(heights, titles if index % 3 == 0 else [""] * len(rows))
        axes.set_xlim(0, 100)
        axes.set_title(COLUMNS[task])
    figure.supxlabel("%, 95 % interval; dashed: chance; dots: seeds; orange: past the paper")
    return figure


def _conditions(study: Study, results: Mapping[str, Any], rows: list[str]) -> Any:
    titles = held_conditions(study, results)
    held = list(titles)
    if len(held) < 2:
        return None
    figure, panels = _figure(1, 2, 2.4 + 0.75 * len(held), 1.8 + 0.4 * len(rows))
    for axes, task in zip(panels, ROBUST, strict=True):
        shares = np.full((len(rows), len(held)), np.nan)
        for r, c in np.ndindex(*shares.shape):
            score = results["rows"][rows[r]]["scores"].get(held[c], {}).get(task)
            if score is not None:
                shares[r, c] = 100 * score["value"]
        _heat(axes, shares, 20, 100, "{:.0f}")
        axes.set_xticks(range(len(held)), [label(titles[n]) for n in held], rotation=30, ha="right")
        of_rows = [label(results["rows"][row]["title"]) for row in rows]
        axes.set_yticks(range(len(rows)), of_rows if axes is panels[0] else [""] * len(rows))
        axes.set_title(f"{COLUMNS[task]} (%)")
    return figure


def _heat(axes: Any, values: np.ndarray, low: float, high: float, form: str) -> None:
    image = axes.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        if np.isfinite(value):
            color = "black" if _luminance(image.to_rgba(value)) >= _BLACK_FROM else "white"
            axes.text(column, row, form.format(value), ha="center", va="center", color=color)


def _luminance(rgba: Sequence[float]) -> float:
    """Relative luminance of a colour of sRGB.

    Reference: WCAG 2.1.
    """
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _learning_curves(results: Mapping[str, Any], rows: list[str], runs: Path) -> Any:
    figure, panels = _figure(1, len(_CURVES), 6.0, 4.0)
    steps_before = results["steps_before"]
    for index, row in enumerate(rows):
        found = results["rows"][row]
        # One that is at work would cut the curve of all where it stands.
        folders = [runs / row / f"seed{seed}" for seed in found["seeds"]]
        logs = [log for log in (_log_of(folder, steps_before) for folder in folders) if log]
        title = f"{label(found['title'])} ({len(logs)} seed{'s' if len(logs) > 1 else ''})"
        for axes, quantity in zip(panels, _CURVES, strict=True):
            curves = [{r["step"]: r[quantity] for r in log if quantity in r} for log in logs]
            steps = np.array(sorted(set.intersection(*map(set, curves))) if curves else [], int)
            means = np.array([np.mean([curve[step] for curve in curves]) for step in steps])
            if np.isfinite(means).any():
                style = "-" if index < 10 else "--"
                # By the row: not every one has each quantity.
                line = {"color": f"C{index % 10}", "linewidth": 1.2, "label": title}
                # Each training by itself: between the two the curve falls.
                parts = (means[steps <= steps_before], means[steps > steps_before])
                axes.plot(steps, np.concatenate([*map(_smoothed, parts)]), style, **line)
    for axes, unit in zip(panels, _CURVES.values(), strict=True):
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        # A curve at 1 is seen whole.
        axes.set_ylim(0, 1.03)
        if steps_before:
            axes.axvline(steps_before, color="0.6", linewidth=0.8, linestyle=":")
    # Tests may have come without the logs of their trainings.
    if not any(axes.get_legend_handles_labels()[0] for axes in panels):
        return None
    panels[0].legend(fontsize=7)
    before = "; left of the line, the training before" if steps_before else ""
    figure.suptitle(
        f"each row's own training batches: mean over its seeds, running mean of {_SMOOTHED} logged "
        f"steps{before}",
        fontsize=9,
    )
    return figure


def _smoothed(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The mean of each value and its neighbours, fewer at the ends."""
    half = _SMOOTHED // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _log_of(folder: Path, steps_before: int) -> list[dict[str, Any]]:
    """Rows of a training's log behind those of the one that it started from."""
    rows = []
    for name, begun in (("before", 0), ("training", steps_before)):
        if (folder / name / "metrics.jsonl").is_file():
            log = read_metrics(folder / name)
            rows += [{**row, "step": row["step"] + begun} for row in log]
    return rows


def _directions(results: Mapping[str, Any], tested: AllFindings, rows: list[str]) -> Any:
    counts = {}
    for row in rows:
        tests = [test[PLAIN].confusion for test in tested[row].values() if PLAIN in test]
        found = [confusion for confusion in tests if confusion is not None]
        if found:
            counts[row] = np.sum(found, axis=0)
    if not counts:
        return None
    columns = min(4, len(counts))
    figure, panels = _figure(-(-len(counts) // columns), columns, 3.2, 3.2)
    names = [direction.name for direction in STEREO_DIRECTIONS]
    for axes, (row, count) in zip(panels, counts.items(), strict=False):
        _heat(axes, 100 * count / np.maximum(count.sum(axis=1, keepdims=True), 1), 0, 100, "{:.0f}")
        axes.set_title(label(results["rows"][row]["title"]), fontsize=8)
        axes.set_xticks(range(5), names, rotation=40, ha="right", fontsize=7)
        axes.set_yticks(range(5), names, fontsize=7)
    for axes in panels[len(counts) :]:
        axes.axis("off")
    figure.supxlabel("chosen direction (% of the true one)")
    figure.supylabel("true direction")
    return figure


def _map(study: Study, results: Mapping[str, Any], tested: AllFindings) -> Any:
    for seed, tests in sorted(tested.get(study.showcase, {}).items()):
        scenes = tests[PLAIN].map if PLAIN in tests else None
        if scenes is not None and len(scenes.audio) >= 10:
            return draw_map(scenes, f"{results['rows'][study.showcase]['title']}, seed {seed}")
    return None


def draw_map(scenes: SceneMap, title: str) -> Any:
    """Scenes of one source in two dimensions, once by content and once by place.

    Args:
      scenes: their embeddings, categories and directions.
      title: of the figure.

    Returns:
      The figure.

    Reference: van der Maaten and Hinton 2008 (t-SNE), as scikit-learn has it, by cosine.
    """
    from matplotlib import colormaps
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(scenes.audio) - 1) / 3)
    places = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=0)
    points = places.fit_transform(scenes.audio)
    figure, panels = _figure(1, 2, 5.5, 5.0)
    directions = [STEREO_DIRECTIONS[index].name for index in scenes.directions]
    order = {direction.name: index for index, direction in enumerate(STEREO_DIRECTIONS)}
    for axes, labels, kind, colors in (
        (panels[0], [c or "unknown" for c in scenes.categories], "content", colormaps["tab20"]),
        (panels[1], directions, "place", colormaps["viridis"].resampled(5)),
    ):
        names = sorted(set(labels), key=lambda name: (order.get(name, 0), name))
        for index, name in enumerate(names):
            here = points[[one == name for one in labels]]
            shade = colors(order[name] if kind == "place" else index % 20)
            told = name if name in order else label(name)
            axes.plot(here[:, 0], here[:, 1], ".", color=shade, label=told, markersize=5)
        axes.legend(fontsize=7, markerscale=2)
        axes.set_title(f"by {kind}")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(label(title))
    return figure
