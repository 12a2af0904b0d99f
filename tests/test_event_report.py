"""Events as people read them: stretches of time, a table, a picture."""

import io

import numpy as np
import pytest
from rich.console import Console

from spatial_clap_jax.data.sound_events import SoundEvents, no_events
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.event_report import event_table, plot_events, print_events, stretches

CLASSES = ("a bell", "a [bold]dog")


def events(*rows) -> SoundEvents:
    """Rows of frame, category, source, azimuth, distance, on screen."""
    kinds = (np.int32, np.int32, np.int32, np.float32, np.float32, bool)
    columns = zip(*rows, strict=True)
    return SoundEvents(*(np.array(x, kind) for x, kind in zip(columns, kinds, strict=True)))


HEARD = events(
    (0, 0, 0, 10, 2, True),
    (0, 1, 0, -80, 1, False),
    (1, 0, 0, 20, 2, True),
    (1, 0, 1, -20, 3, False),
    (4, 0, 0, 30, 2, False),
)


def test_a_stretch_ends_at_a_gap_another_source_or_another_class():
    found = stretches(HEARD)
    assert [(round(s.begin_s, 1), round(s.end_s, 1), len(s.rows)) for s in found] == [
        (0.0, 0.1, 1),
        (0.0, 0.2, 2),
        (0.1, 0.2, 1),
        (0.4, 0.5, 1),
    ]
    assert stretches(no_events()) == []


def test_the_table_tells_when_what_and_where():
    text = io.StringIO()
    Console(file=text, width=100).print(event_table(HEARD, CLASSES))
    lines = [line.split() for line in text.getvalue().splitlines() if "bell" in line]
    assert lines[0] == ["0.0", "0.2", "a", "bell", "15", "2.0", "yes"]
    # A class is a name, no markup.
    assert "a [bold]dog" in text.getvalue()


def test_silence_is_told(capsys):
    print_events(no_events(), CLASSES)
    assert "no events" in capsys.readouterr().out


def test_the_picture_is_written_or_refused(tmp_path):
    for number, each in enumerate((HEARD, no_events())):
        path = tmp_path / f"{number}.svg"
        plot_events(each, CLASSES, path)
        assert path.read_text().lstrip().startswith("<?xml")
    with pytest.raises(InputError, match="the figure cannot be written there"):
        plot_events(HEARD, CLASSES, tmp_path / "events.txt")
