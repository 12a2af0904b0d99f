"""Figures of made-up tests, by what stands in them."""

import json

import matplotlib.colors
import numpy as np
import pytest
from made_up import made_up_findings, made_up_study, write_log

from spatial_clap_jax.study.figures import FIGURES, draw_figures
from spatial_clap_jax.study.summary import summarise

STUDY = made_up_study()
SEEDS = {"one": 2, "two": 3}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """All figures, with logs of the trainings of one row."""
    runs = tmp_path_factory.mktemp("runs")
    tested = {
        row: {
            seed: {
                name: made_up_findings(STUDY, name, 0.5 + 0.1 * seed, seed=seed)
                for name in STUDY.changes()
            }
            for seed in range(seeds)
        }
        for row, seeds in SEEDS.items()
    }
    for seed in range(SEEDS["one"]):
        write_log(runs / "one" / f"seed{seed}" / "before", [0.0] * 9, every=2)
        write_log(runs / "one" / f"seed{seed}" / "training", [1.0] * 7, every=2)
    results = {**summarise(STUDY, tested), "steps_before": 18}
    return json.loads(json.dumps(results)), draw_figures(STUDY, results, tested, runs)


def test_every_figure_is_drawn_and_is_not_blank(drawn, tmp_path):
    from matplotlib.image import imread

    assert set(drawn[1]) == set(FIGURES)
    for name, figure in drawn[1].items():
        figure.savefig(tmp_path / name, dpi=50)
        ink = imread(tmp_path / name)[..., :3].min(axis=2) < 0.9
        assert ink.mean() > 0.005, name
        # Something stands in each quarter.
        for rows in np.array_split(ink, 2):
            assert all(part.any() for part in np.array_split(rows, 2, axis=1)), name


def test_scores_are_bars_with_a_dot_for_each_seed(drawn):
    results, figures = drawn
    panels = figures["scores.png"].axes
    assert [axes.get_title() for axes in panels[:2]] == ["assignment, 2", "assignment, 3"]
    score = results["rows"]["two"]["scores"]["test"]["assignment/2"]
    bars = panels[0].patches
    assert len(bars) == 2
    assert bars[1].get_width() == pytest.approx(100 * score["value"])
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    dots = [line for line in panels[0].lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [2, 3]
    np.testing.assert_allclose(dots[1].get_xdata(), np.multiply(100, score["by_seed"]))
    # Seen on the bar, beside it, and before the interval.
    (interval,) = panels[0].collections[1:]
    for line in dots:
        assert (line.get_markerfacecolor(), line.get_markeredgecolor()) == ("white", "black")
        assert line.get_zorder() > interval.get_zorder()


def test_numbers_stand_out_from_the_colour_that_they_stand_on(drawn):
    def light(color):
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in matplotlib.colors.to_rgb(color)
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    written = 0
    for name in ("conditions.png", "directions.png"):
        for axes in drawn[1][name].axes:
            for image in axes.images:
                values = image.get_array()
                for text in axes.texts:
                    column, row = map(int, text.get_position())
                    assert text.get_text() == f"{values[row, column]:.0f}"
                    shades = light(image.to_rgba(values[row, column])), light(text.get_color())
                    assert max(shades) / min(shades) > 3.4, text
                    written += 1
    # Two rows under four conditions and the plain scenes, twice; and two confusions.
    assert written == 2 * 2 * 4 + 2 * 25


@pytest.mark.parametrize("shade", [0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 1.0])
def test_numbers_are_black_on_light_blue_and_white_on_dark(shade):
    from spatial_clap_jax.study.figures import _figure, _heat

    _, (axes,) = _figure(1, 1, 1.0, 1.0)
    _heat(axes, np.array([[shade]]), 0.0, 1.0, "{:.1f}")
    (text,) = axes.texts
    assert text.get_color() == ("black" if shade < 0.7 else "white")


def test_curves_are_of_each_training_by_itself_and_tell_their_seeds(drawn):
    figure = drawn[1]["learning_curves.png"]
    panel, other = figure.axes
    (text,) = panel.get_legend().get_texts()
    assert text.get_text() == "row one (2 seeds)"
    curve, border = panel.lines
    np.testing.assert_array_equal(curve.get_xdata(), np.arange(2, 33, 2))
    # No mean is over the border between the two trainings.
    np.testing.assert_array_equal(curve.get_ydata(), [0.0] * 9 + [1.0] * 7)
    assert border.get_xdata()[0] == 18
    assert panel.get_ylim() == (0, 1.03)
    assert len(other.lines) == 1
    title = figure.get_suptitle()
    assert title.startswith("each row's own training batches: mean over its seeds, running mean")
    assert title.endswith("left of the line, the training before")


def test_a_running_mean_has_fewer_neighbours_at_the_ends():
    from spatial_clap_jax.study.figures import _smoothed

    np.testing.assert_allclose(
        _smoothed(np.array([0.0, 3.0, 6.0, 1.0, 0.0])), [3, 2.5, 2, 2.5, 7 / 3]
    )
    assert _smoothed(np.array([0.5])).tolist() == [0.5]
    assert not len(_smoothed(np.zeros(0)))


def test_a_map_tells_its_seed_and_every_content_and_place(drawn):
    figure = drawn[1]["map.png"]
    assert figure.get_suptitle() == "row two, seed 0"
    content, place = figure.axes
    names = [text.get_text() for text in content.get_legend().get_texts()]
    assert names == [r"\$rain", "dog"]
    assert sum(len(line.get_xdata()) for line in content.lines) == 40
    assert len(place.lines) == 5


def test_the_map_is_of_the_first_seed_that_has_one(tmp_path):
    found = {name: made_up_findings(STUDY, name, 0.5) for name in STUDY.changes()}
    bare = {name: test for name, test in found.items() if name != "test"}
    tested = {"two": {0: bare, 4: found}}
    figures = draw_figures(STUDY, summarise(STUDY, tested), tested, tmp_path)
    assert figures["map.png"].get_suptitle() == "row two, seed 4"


def test_what_nothing_is_known_of_is_not_drawn(tmp_path):
    assert draw_figures(STUDY, summarise(STUDY, {}), {}, tmp_path) == {}
    found = made_up_findings(STUDY, "test", 0.5)
    tested = {"one": {0: {"test": found}}}
    figures = draw_figures(STUDY, summarise(STUDY, tested), tested, tmp_path)
    assert set(figures) == {"scores.png", "directions.png"}
