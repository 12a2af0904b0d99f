import dataclasses

import numpy as np
import pytest

from spatial_clap_jax.data.accdoa_targets import adpit_targets
from spatial_clap_jax.data.sound_events import SoundEvents, no_events
from spatial_clap_jax.errors import InputError


def events(*rows):
    """Rows of frame, class, azimuth, distance, on-screen flag."""
    frame, category, azimuth, distance, on_screen = np.array(rows, np.float32).T
    whole = (frame.astype(np.int32), category.astype(np.int32), np.zeros(len(rows), np.int32))
    return SoundEvents(*whole, azimuth, distance, on_screen.astype(bool))


def test_slots_by_hand():
    found = adpit_targets(
        events(
            (0, 1, 60, 3, 1),
            (2, 0, 90, 2, 1),
            (2, 1, -90, 5, 0),
            (2, 0, 0, 1, 0),
            (3, 2, 0, 1, 1),
            (3, 2, 90, 2, 0),
            (3, 2, -90, 3, 1),
        ),
        labels=4,
        classes=3,
    )
    expected = np.zeros((4, 6, 5, 3))
    expected[0, 0, :, 1] = 1, 0.5, 0.75**0.5, 3, 1
    expected[2, 1:3, :, 0] = [1, 0, 1, 2, 1], [1, 1, 0, 1, 0]
    expected[2, 0, :, 1] = 1, 0, -1, 5, 0
    expected[3, 3:, :, 2] = [1, 1, 0, 1, 1], [1, 0, 1, 2, 0], [1, 0, -1, 3, 1]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_first_three_of_more_count():
    four = [(1, 0, azimuth, 1 + azimuth / 100, 0) for azimuth in (10, -20, 30, 40)]
    np.testing.assert_array_equal(
        adpit_targets(events(*four), 2, 1), adpit_targets(events(*four[:3]), 2, 1)
    )


def test_rows_in_any_order_of_frames_and_classes():
    rows = [(frame, c, 10 * frame + c, 1, 0) for frame in range(4) for c in range(3)]
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    np.testing.assert_array_equal(
        adpit_targets(events(*rows), 4, 3), adpit_targets(events(*shuffled), 4, 3)
    )


def test_mirrored_events_have_mirrored_targets():
    rng = np.random.default_rng(1)
    rows = zip(rng.integers(5, size=30), rng.integers(3, size=30), strict=True)
    one = events(*((f, c, rng.integers(-90, 91), 2, 1) for f, c in rows))
    mirror = np.array([1, 1, -1, 1, 1], np.float32)[:, None]
    np.testing.assert_array_equal(
        adpit_targets(one.mirrored(), 5, 3), adpit_targets(one, 5, 3) * mirror
    )
    assert adpit_targets(one, 5, 3)[:, :, 2].any()


def test_silence_is_zero():
    assert not adpit_targets(no_events(), 7, 2).any()


@pytest.mark.parametrize(("name", "value"), [("frame", 5), ("frame", -1), ("category", 3)])
def test_events_outside_are_refused(name, value):
    wrong = dataclasses.replace(events((1, 1, 0, 1, 0)), **{name: np.array([value], np.int32)})
    with pytest.raises(InputError, match=f"events.{name}: {value} must lie in 0"):
        adpit_targets(wrong, 5, 3)
