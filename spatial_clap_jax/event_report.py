"""Sound events of a recording as a table for the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.table import Table

from spatial_clap_jax.data.sound_events import LABEL_STEP_S, SoundEvents
from spatial_clap_jax.report import check_plot_path, save_figure
from spatial_clap_jax.shown import cell, label


class Stretch(NamedTuple):
    """One source from its first to its last frame without a gap.

    Attributes:
      rows: of the events.
      begin_s: when it starts.
      end_s: when it ends.
    """

    rows: Int[np.ndarray, "n"]
    begin_s: float
    end_s: float


def stretches(events: SoundEvents) -> list[Stretch]:
    """Events as stretches of frames, by time.

    Args:
      events: of one recording.
    """
    order = np.lexsort((events.frame, events.source, events.category))
    steps = [np.diff(x[order]) for x in (events.category, events.source, events.frame)]
    breaks = np.flatnonzero((steps[0] != 0) | (steps[1] != 0) | (steps[2] > 1)) + 1
    found = [
        Stretch(
            rows,
            float(events.frame[rows[0]]) * LABEL_STEP_S,
            float(events.frame[rows[-1]] + 1) * LABEL_STEP_S,
        )
        for rows in np.split(order, breaks)
        if len(rows)
    ]
    return sorted(found, key=lambda one: (one.begin_s, one.end_s))


def event_table(events: SoundEvents, classes: Sequence[str]) -> Table:
    """A row for each stretch: when, what, where, how far, and whether it is in the picture."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("from s", "to s"):
        table.add_column(name, justify="right")
    table.add_column("event")
    for name in ("azimuth deg, left +", "distance m", "on screen"):
        table.add_column(name, justify="right")
    for stretch in stretches(events):
        part = events.taken(stretch.rows)
        table.add_row(
            f"{stretch.begin_s:.1f}",
            f"{stretch.end_s:.1f}",
            cell(classes[int(part.category[0])]),
            f"{np.median(part.azimuth_deg):.0f}",
            f"{np.median(part.distance_m):.1f}",
            "yes" if part.on_screen.mean() > 0.5 else "no",
        )
    return table


def print_events(events: SoundEvents, classes: Sequence[str]) -> None:
    """Prints the table, or that there is nothing."""
    console = Console()
    console.print(event_table(events, classes) if len(events) else "no events")


def plot_events(events: SoundEvents, classes: Sequence[str], path: str | Path) -> None:
    """Draws azimuth and distance over time, a colour a class; full lines are on screen.

    Args:
      events: of one recording.
      classes: names of the classes.
      path: the picture; its suffix says the format (png, svg, pdf).

    Raises:
      InputError: the picture cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    check_plot_path(path)
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    colors, named = colormaps["tab20"], set()
    for stretch in stretches(events):
        part = events.taken(stretch.rows)
        category = int(part.category[0])
        style = {
            "color": colors(category % 20),
            "linestyle": "-" if part.on_screen.mean() > 0.5 else ":",
            "linewidth": 3,
            # matplotlib leaves out of the legend what starts with '_'.
            "label": f"_{category}" if category in named else label(classes[category]),
        }
        named.add(category)
        # To the end of the last frame, so that a single one is seen.
        times = np.append(part.frame * LABEL_STEP_S, stretch.end_s)
        for axes, values in ((top, part.azimuth_deg), (bottom, part.distance_m)):
            axes.plot(times, np.append(values, values[-1]), **style)
    top.set(ylabel="azimuth, deg (left up)", ylim=(-95, 95))
    bottom.set(ylabel="distance, m", xlabel="s")
    bottom.set_ylim(bottom=0)
    if named:
        top.legend(loc="upper right")
    save_figure(figure, path)
