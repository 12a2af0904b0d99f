import io

import numpy as np
import pytest
from rich.console import Console

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.scores import Score
from spatial_clap_jax.report import plot_results, results_table

RESULTS = {
    "assignment/3": Score(value=0.3849, low=0.1, high=0.6, chance=1 / 6, n=120),
    "direction/1": Score(value=0.968, low=0.94, high=0.98, chance=0.2, n=200),
    "t2a_r1/2": Score(value=0.7, low=0.6, high=0.8, chance=0.005, n=200),
    "t2a_r1/1": Score(value=1.0, low=0.98, high=1.0, chance=0.02, n=200),
    "new_task/recordings": Score(value=0.0, low=0.0, high=0.1, chance=0.0, n=30),
}


def test_the_table_says_every_number_in_order():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results_table(RESULTS, title="esc10"))
    lines = [line for line in console.export_text().splitlines() if "%" in line or "." in line]
    rows = [" ".join(line.replace("│", " ").split()) for line in lines][1:]
    assert rows == [
        "text to audio, R@1 1 100.0 98.0 - 100.0 2.0 200",
        "text to audio, R@1 2 70.0 60.0 - 80.0 0.5 200",
        "direction, zero-shot 1 96.8 94.0 - 98.0 20.0 200",
        "content-space assignment 3 38.5 10.0 - 60.0 16.7 120",
        "new_task recordings 0.0 0.0 - 10.0 0.0 30",
    ]


def test_only_scores_clearly_above_chance_are_green():
    table = results_table(RESULTS)
    scores = list(table.columns[2].cells)
    assert ["green" in str(score) for score in scores] == [True, True, True, False, False]


@pytest.mark.parametrize("confusion", [None, np.eye(5, dtype=int) * 3])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_figure_is_drawn(tmp_path, confusion, suffix):
    path = tmp_path / f"results.{suffix}"
    plot_results(RESULTS, path, confusion)
    assert path.stat().st_size > 5_000


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"results\.docx: the figure cannot be written"):
        plot_results(RESULTS, tmp_path / "results.docx")
    with pytest.raises(InputError, match="the figure cannot be written"):
        plot_results(RESULTS, tmp_path / "absent" / "results.png")
