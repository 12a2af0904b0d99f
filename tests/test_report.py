import io
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embedded import EmbeddedSplit, Places
from spatial_clap_jax.metrics.scores import Score
from spatial_clap_jax.report import (
    check_map_extra,
    measures_table,
    plot_map,
    plot_results,
    print_results,
    results_table,
    unit_of,
)

RESULTS = {
    "assignment/3": Score(value=0.3849, low=0.1, high=0.6, chance=1 / 6, n=120),
    "direction/1": Score(value=0.968, low=0.94, high=0.98, chance=0.2, n=200),
    "t2a_r1/2": Score(value=0.7, low=0.6, high=0.8, chance=0.005, n=200),
    "t2a_r1/1": Score(value=1.0, low=0.98, high=1.0, chance=0.02, n=200),
    "new_task/recordings": Score(value=0.0, low=0.0, high=0.1, chance=0.0, n=30),
}
# What stands in the same file and is no share.
MEASURES = {
    "distance_error_m/1": Score(value=0.5, low=0.4, high=0.65, chance=0.6, n=40),
    "angular_error_deg/T30: below 0.2 s": Score(value=95, low=80, high=110, chance=91, n=9),
    "wasserstein/near - far": Score(value=1.25, low=1.1, high=1.4, chance=0.8, n=40),
    "angular_error_deg/azimuth: front": Score(value=11, low=9, high=12.5, chance=90, n=9),
    "angular_error_deg/1": Score(value=12.345, low=10, high=15, chance=90, n=40),
}
CHANGE = {"content_r10_change/swapped": Score(value=-0.05, low=-0.1, high=0, chance=0, n=40)}


def rows_of(table, heading):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    lines = console.export_text().splitlines()
    rows = [" ".join(line.split()) for line in lines if line.strip(" ─━╶╴╺╸")]
    return rows[1 + next(i for i, row in enumerate(rows) if row.startswith(heading)) :]


def test_measures_have_a_table_of_their_own_with_units():
    both = {**RESULTS, **MEASURES, **CHANGE}
    assert rows_of(measures_table(both), "measure") == [
        "angular error, mean all 12.3 10.0 - 15.0 90.0 deg 40",
        # Parts keep their order.
        "angular error, mean T30: below 0.2 s 95.0 80.0 - 110.0 91.0 deg 9",
        "angular error, mean azimuth: front 11.0 9.0 - 12.5 90.0 deg 9",
        "distance error, mean all 0.50 0.40 - 0.65 0.60 m 40",
        "Wasserstein distance near - far 1.25 1.10 - 1.40 0.80 40",
    ]
    shares = rows_of(results_table(both), "task")
    assert len(shares) == len(RESULTS) + 1
    assert "content, change in R@10 swapped -5.0 -10.0 - 0.0 0.0 40" in shares
    # Errors are good below chance, distances of clusters above it.
    values = [str(cell) for cell in measures_table(both).columns[2].cells]
    assert ["green" in value for value in values] == [True, False, True, False, True]


def test_units_stand_in_the_names():
    assert [unit_of(key) for key in MEASURES] == ["m", "deg", "", "deg", "deg"]
    assert {unit_of(key) for key in RESULTS} == {None}


def test_both_tables_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    print_results(RESULTS)
    assert "measure" not in capsys.readouterr().out
    print_results({**RESULTS, **MEASURES})
    printed = capsys.readouterr().out
    assert "content-space assignment" in printed
    assert "Wasserstein distance" in printed


def test_errors_and_four_directions_are_drawn(tmp_path):
    path = tmp_path / "results.svg"
    plot_results({**RESULTS, **MEASURES, **CHANGE}, path, np.diag([3, 4, 5, 6]))
    drawn = path.read_text()
    for text in ("back", "chosen direction", "angular error in degrees", "azimuth: front"):
        assert f"<!-- {text}" in drawn, text
    for text in ("front-left", "Wasserstein distance", "change in R@10"):
        assert f"<!-- {text}" not in drawn, text


def embedded(count, seed):
    rng = np.random.default_rng(seed)
    azimuth_deg = rng.choice([0.0, 90.0, 180.0, -90.0, 45.0], count)
    held = np.stack([np.cos(np.radians(azimuth_deg)), np.sin(np.radians(azimuth_deg))], axis=1)
    vectors = np.concatenate([held, rng.normal(0, 0.1, (count, 6))], axis=1)
    return EmbeddedSplit(
        audio=vectors,
        text=vectors + 0.05,
        starts=np.arange(count + 1),
        meaning=np.arange(count),
        directions=np.zeros((count, 1), int),
        room=np.arange(count),
        categories=[("",)] * count,
        contents=[("rain",)] * count,
        words="elsa",
        places=Places(azimuth_deg, *np.ones((4, count))),
    )


class FirstTwo:
    """In place of UMAP, which compiles for minutes: the first two dimensions."""

    made: ClassVar = []

    def __init__(self, **options):
        self.options = options
        self.made.append(self)

    def fit(self, vectors):
        self.fitted = vectors

    def transform(self, vectors):
        return vectors[:, :2]


def test_a_map_is_fitted_on_training_scenes_and_drawn_of_others(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=FirstTwo))
    monkeypatch.setattr("spatial_clap_jax.report.check_map_extra", lambda: None)
    path, learnt = tmp_path / "map.svg", embedded(20, 0)
    plot_map(learnt, embedded(12, 1), path, seed=3)
    (made,) = FirstTwo.made
    np.testing.assert_array_equal(made.fitted, np.concatenate([learnt.audio, learnt.text]))
    assert made.options["random_state"] == 3
    drawn = path.read_text()
    assert "<!-- UMAP fitted on 20 training scenes" in drawn
    assert "<!-- audio, front" in drawn
    assert "<!-- text, no word" in drawn
    with pytest.raises(InputError, match="5 training scenes are too few for a map; give more than"):
        plot_map(embedded(5, 0), embedded(12, 1), path)


def test_a_map_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--umap: .* pip install 'spatial-clap-jax\[umap\]'"):
        check_map_extra()


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
