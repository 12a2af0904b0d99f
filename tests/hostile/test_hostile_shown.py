"""Names and captions out of data are shown as text, wherever they are shown."""

import io
import re
import xml.dom.minidom
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from mutations import NASTY_TEXTS
from rich.console import Console

from spatial_clap_jax import shown
from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.event_report import event_table, plot_events
from spatial_clap_jax.quickstart import _list_files
from spatial_clap_jax.report import measures_table, plot_results, results_table
from spatial_clap_jax.study.summary import _grid

TEXTS = st.one_of(st.text(max_size=40), st.sampled_from(NASTY_TEXTS))
SHORT = [":dog:", "a :smile: 12", *(text for text in NASTY_TEXTS if len(text) < 80)]
SCORE = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1, "n": 3}
# Written out by hand: what a terminal obeys, or what turns the order of letters around.
OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


@given(TEXTS)
def test_a_terminal_obeys_nothing_of_it(text):
    line = shown.plain(text)
    assert not OBEYED.search(line)
    assert len(line) < 7 * shown.MESSAGE
    line.encode()


def test_what_was_hidden_is_seen():
    assert shown.plain("a\x1b[31mb\u202ec\rd") == "a\\x1b[31mb\\u202ec d"
    assert shown.plain("héllo 🐢 \u0915\u094d\u200d\u0937") == "héllo 🐢 \u0915\u094d\u200d\u0937"
    assert shown.plain("\ud800") == "\\ud800"


def test_of_a_long_text_the_ends_stay():
    line = shown.plain(f"start {'x' * 9999} end", 40)
    assert (len(line), line[:5], line[-3:]) == (40, "start", "end")
    assert shown.plain("x" * 9999, None) == "x" * 9999


def rendered(table) -> str:
    console = Console(file=io.StringIO(), width=400, force_terminal=True)
    console.print(table)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]


def test_tables_of_the_terminal_show_it_whole():
    for text in SHORT:
        check_tables(text)


def check_tables(text: str) -> None:
    told = rendered(results_table({f"content/{text}": SCORE}, title=text))  # type: ignore[dict-item]
    told += rendered(measures_table({f"wasserstein/{text}": SCORE}))  # type: ignore[dict-item]
    row = np.zeros(1, np.int32)
    events = SoundEvents(row, row, row, np.zeros(1, np.float32), np.ones(1, np.float32), row > 0)
    told += rendered(event_table(events, [text]))
    # The cells are padded by spaces.
    assert told.count(shown.plain(text)) >= 3
    assert not OBEYED.search(told.replace("\n", ""))


def test_the_quickstart_lists_its_files_as_they_are_named(capsys):
    _list_files(Path("a  :dog:/[red]\x1b[31m" + "x" * 200), [Path("läufe/:smile:")])
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"a  :dog:/[red]\\x1b[31m{'x' * 200}/scenes"
    assert last == "läufe/:smile:"


@given(TEXTS)
def test_markdown_has_no_markup_of_it(text):
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    (_, inline, _) = parser.parse(f"# {shown.markdown(text)}x")
    assert inline.children is not None
    assert {token.type for token in inline.children} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children) == f"{shown.plain(text)}x".lstrip()


@given(TEXTS)
def test_code_of_markdown_ends_where_it_should(text):
    children = MarkdownIt("commonmark").parse(f"a {shown.markdown_code(text)} b")[1].children
    assert children is not None
    if shown.plain(text):
        assert [token.type for token in children] == ["text", "code_inline", "text"]
        assert children[1].content.strip() == shown.plain(text).strip()


@given(TEXTS)
def test_a_cell_of_a_markdown_table_stays_one(text):
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(_grid([["row", "score"], [f"x{text}", "1"]]))
    cells = [tokens[i + 1].children for i, token in enumerate(tokens) if token.type == "td_open"]
    assert len(cells) == 2
    told = "".join(token.content for token in cells[0] or ())
    assert told == shown.plain(f"x{text}")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_figure_draws_it_as_text():
    figure = Figure(figsize=(6, 20))
    axes = figure.subplots()
    texts = [text for text in SHORT if shown.label(text).strip()]
    for text in texts:
        axes.plot([0, 1], label=shown.label(text))
        drawn = axes.title._preprocess_math(shown.label(text))
        assert drawn == (shown.label(text).replace(r"\$", "$"), False)
    assert len(axes.get_legend_handles_labels()[1]) == len(texts)
    axes.legend()
    written = io.BytesIO()
    figure.savefig(written, format="svg")
    xml.dom.minidom.parseString(written.getvalue())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["$x^{$", "_a", "[red]", "\x1b[31m", "🐢"])
def test_figures_of_results_and_events_are_drawn(tmp_path, text):
    events = SoundEvents(
        *(np.zeros(1, np.int32) for _ in range(3)),
        *(np.ones(1, np.float32) for _ in range(2)),
        np.ones(1, bool),
    )
    plot_events(events, [text], tmp_path / "events.png")
    error = {f"angular_error_deg/class: {text}": SCORE, f"content/{text}": SCORE}
    plot_results(error, tmp_path / "results.png")  # type: ignore[arg-type]
    assert (tmp_path / "events.png").stat().st_size > 1000


def test_a_model_card_shows_names_as_text():
    from spatial_clap_jax.model_card import text_card

    name = "<script>x</script> [a](http://example.org) `b` $c$ \x1b[31m"
    config = SimpleNamespace(width=4, layers=1, pooling="mean", max_tokens=8)
    tower = SimpleNamespace(config=config, report=SimpleNamespace(source=name))
    card = text_card(name, tower).split("---\n", 2)[2]  # type: ignore[arg-type]
    html = MarkdownIt("commonmark", {"html": True}).render(card)
    assert "<script" not in html
    assert "<a " not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;x&lt;/script&gt; [a](http://example.org) `b` $c$" in html
