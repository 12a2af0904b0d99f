"""Outputs to events: threshold, smoothing, merging, ensembles, and laws of them."""

import dataclasses

import numpy as np
import pytest

from spatial_clap_jax.data.accdoa_targets import adpit_targets
from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.seld_tracks import DecodingConfig, average_outputs, decode

PLAIN = DecodingConfig()
MIRROR = np.array([1, -1, 1, 1], np.float32)[:, None]


def outputs_of(frames, classes=1, elements=4):
    return np.zeros((frames, 3, elements, classes), np.float32)


def track(azimuth_deg, length=1.0, distance=2.0, on_screen=0.0):
    a = np.radians(azimuth_deg)
    return length * np.cos(a), length * np.sin(a), distance, on_screen


def told(*tracks, config=PLAIN):
    """Azimuth, distance, on-screen flag and source of the events of one frame and class."""
    outputs = outputs_of(1)
    for index, one in enumerate(tracks):
        outputs[0, index, :, 0] = one
    events = decode(outputs, config)
    columns = (events.azimuth_deg, events.distance_m, events.on_screen, events.source)
    return [
        (pytest.approx(a, abs=1e-3), pytest.approx(d, abs=1e-5), bool(s), int(n))
        for a, d, s, n in zip(*columns, strict=True)
    ]


def drawn(seed, frames=12, classes=3):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(0, 0.6, (frames, 3, 4, classes)).astype(np.float32)
    outputs[:, :, 2:] = np.abs(outputs[:, :, 2:]).clip(0, 1)
    return outputs


def test_one_track_is_told_where_it_is_longer_than_the_threshold():
    assert told(track(30, 0.51, 1.5, 0.6)) == [(30, 1.5, True, 0)]
    assert told(track(30, 0.49)) == []
    assert told(track(0), track(0, 0.3)) == [(0, 2, False, 0)]


def test_what_is_behind_is_told_in_front():
    assert told(track(100)) == [(80, 2, False, 0)]
    assert told(track(-170)) == [(-10, 2, False, 0)]


def test_a_distance_is_never_below_zero():
    assert told(track(0, distance=-0.3)) == [(0, 0, False, 0)]


@pytest.mark.parametrize(
    ("azimuths", "expected"),
    [
        # Apart, each pair, two pairs in a row, and all.
        ((0, 40, 80), [(0, 0), (40, 1), (80, 2)]),
        ((0, 10, 80), [(5, 0), (80, 2)]),
        ((80, 0, 10), [(80, 0), (5, 1)]),
        ((0, 80, 10), [(5, 0), (80, 1)]),
        ((0, 14, 28), [(14, 0)]),
        ((14, 28, 0), [(14, 0)]),
        ((3, 5, 4), [(4, 0)]),
        ((0, 15.1, 80), [(0, 0), (15.1, 1), (80, 2)]),
    ],
)
def test_near_tracks_are_merged(azimuths, expected):
    assert told(*map(track, azimuths)) == [(a, 2, False, n) for a, n in expected]


def test_merged_tracks_are_averaged():
    found = told(track(0, 1.0, 1, 0.9), track(10, 0.6, 2, 0.3))
    x, y = 1 + 0.6 * np.cos(np.radians(10)), 0.6 * np.sin(np.radians(10))
    assert found == [(np.degrees(np.arctan2(y, x)), 1.5, True, 0)]
    apart = dataclasses.replace(PLAIN, merge_deg=0.0)
    assert told(track(0, 1.0, 1, 0.9), track(0, 0.6, 2, 0.3), config=apart) == [
        (0, 1, True, 0),
        (0, 2, False, 1),
    ]


def test_only_active_tracks_are_merged():
    assert told(track(0), track(5, 0.2), track(10)) == [(5, 2, False, 0)]
    assert told(track(0, 0.2), track(5, 0.2), track(10)) == [(10, 2, False, 2)]


def test_a_threshold_a_class():
    outputs = outputs_of(1, classes=2)
    outputs[0, 0, 0] = 0.6
    config = dataclasses.replace(PLAIN, threshold=(0.7, 0.5))
    assert decode(outputs, config).category.tolist() == [1]
    with pytest.raises(InputError, match="threshold: 2 of them for 1 classes"):
        decode(outputs[..., :1], config)


def test_without_a_probability_nothing_is_on_screen():
    assert not decode(drawn(0)[:, :, :3], PLAIN).on_screen.any()
    assert decode(drawn(0), PLAIN).on_screen.any()


def activity(pattern, config):
    outputs = outputs_of(len(pattern))
    for frame, length in enumerate(pattern):
        outputs[frame, 0, :, 0] = track(frame, length / 10)
    events = decode(outputs, config)
    return dict(zip(events.frame.tolist(), events.azimuth_deg.round().tolist(), strict=True))


def test_short_silences_are_filled_and_short_sounds_left_out():
    pattern = [0, 9, 9, 9, 0, 0, 9, 0, 0, 0, 9, 0]
    filled = activity(pattern, dataclasses.replace(PLAIN, fill_frames=2))
    # What was heard last is told on; the ends of the clip stay silent.
    assert filled == {1: 1, 2: 2, 3: 3, 4: 3, 5: 3, 6: 6, 10: 10}
    assert list(activity(pattern, dataclasses.replace(PLAIN, least_frames=2))) == [1, 2, 3]
    both = dataclasses.replace(PLAIN, fill_frames=3, least_frames=3)
    assert list(activity(pattern, both)) == list(range(1, 11))
    one = dataclasses.replace(PLAIN, fill_frames=1)
    assert activity(pattern, one) == activity(pattern, PLAIN)


def test_smoothing_by_hand():
    pattern = [9, 9, 0, 9, 9, 0, 0, 0, 9, 0, 0]
    median = dataclasses.replace(PLAIN, smoothing_frames=3)
    assert list(activity(pattern, median)) == [0, 1, 2, 3, 4]
    mean = dataclasses.replace(median, smoothing="mean")
    assert list(activity(pattern, mean)) == [0, 1, 2, 3, 4]
    assert list(activity([9, 0, 0, 0, 9, 9], mean)) == [0, 4, 5]
    assert list(activity([9, 0, 0, 0, 9, 9], median)) == [0, 4, 5]
    # One of three is enough for a mean that is above a low threshold.
    assert list(activity([0, 0, 9, 0, 0], dataclasses.replace(mean, threshold=0.2))) == [1, 2, 3]


SMOOTH = DecodingConfig(smoothing_frames=3, fill_frames=2, least_frames=2)


@pytest.mark.parametrize("config", [PLAIN, SMOOTH], ids=["plain", "smooth"])
def test_mirrored_outputs_are_mirrored_events(config):
    outputs = drawn(1, frames=40)
    found, mirrored = decode(outputs, config), decode(outputs * MIRROR, config).mirrored()
    assert len(found) > 40
    for field in dataclasses.fields(SoundEvents):
        np.testing.assert_allclose(getattr(mirrored, field.name), getattr(found, field.name))


def test_frames_are_decoded_apart_without_smoothing():
    outputs = drawn(2)
    whole = decode(outputs, PLAIN)
    for frame in range(len(outputs)):
        alone = decode(outputs[frame : frame + 1], PLAIN)
        part = whole.taken(whole.frame == frame)
        np.testing.assert_array_equal(alone.azimuth_deg, part.azimuth_deg)
        np.testing.assert_array_equal(alone.category, part.category)


def test_the_truth_is_told_as_it_is():
    """From targets to tracks and back: sources of a class more than 15 degrees apart."""
    rng = np.random.default_rng(3)
    rows = sorted(
        (frame, c, float(azimuth))
        for frame in range(6)
        for c in range(2)
        for azimuth in rng.choice(np.arange(-80, 81, 20), rng.integers(0, 4), replace=False)
    )
    frame, category, azimuth = np.array(rows).T
    true = SoundEvents(
        frame.astype(np.int32),
        category.astype(np.int32),
        np.zeros(len(rows), np.int32),
        azimuth.astype(np.float32),
        rng.uniform(0.5, 4, len(rows)).astype(np.float32),
        rng.integers(0, 2, len(rows)).astype(bool),
    )
    targets = adpit_targets(true, 6, 2)
    groups = [[0, 0, 0], [1, 2, 2], [3, 4, 5]]
    outputs = sum(targets[:, group, 1:] * targets[:, group, :1] for group in groups)
    found = decode(outputs.astype(np.float32), PLAIN)
    found = found.taken(np.lexsort((found.azimuth_deg, found.category, found.frame)))
    for name in ("frame", "category", "on_screen"):
        np.testing.assert_array_equal(getattr(found, name), getattr(true, name))
    np.testing.assert_allclose(found.azimuth_deg, true.azimuth_deg, atol=1e-4)
    np.testing.assert_allclose(found.distance_m, true.distance_m, rtol=1e-6)


def test_an_ensemble_is_blind_to_the_order_of_tracks():
    outputs = drawn(4)
    rng = np.random.default_rng(5)
    shuffled = outputs.copy()
    for frame in range(len(outputs)):
        for c in range(outputs.shape[3]):
            shuffled[frame, :, :, c] = outputs[frame, rng.permutation(3), :, c]
    np.testing.assert_allclose(average_outputs([outputs, shuffled]), outputs, atol=1e-6)
    assert np.abs((outputs + shuffled) / 2 - outputs).max() > 0.1


def test_an_ensemble_is_the_mean_of_near_tracks():
    outputs = drawn(6)
    near = outputs + 0.01 * drawn(7)
    np.testing.assert_allclose(
        average_outputs([outputs, near, near]), outputs + 0.02 / 3 * drawn(7), atol=1e-6
    )
    batches = np.stack([outputs, outputs[::-1]])
    shifted = np.stack([near, near[::-1]])
    np.testing.assert_array_equal(
        average_outputs([batches, shifted])[0], average_outputs([outputs, near])
    )


def test_on_screen_is_the_mean_of_those_that_tell_it():
    sure, unsure, silent = (outputs_of(1) for _ in range(3))
    sure[0, :, :, 0] = track(0, on_screen=0.95)
    unsure[0, :, :, 0] = track(0, on_screen=0.75)
    # A network that was not trained to tell gives 0.
    silent[0, :, :, 0] = track(0, distance=5.0)
    mean = average_outputs([silent, sure, unsure, silent], [False, True, True, False])
    np.testing.assert_allclose(mean[0, 0, :, 0], [1, 0, 3.5, 0.85], atol=1e-6)
    assert decode(mean, PLAIN).on_screen.all()
    np.testing.assert_array_equal(average_outputs([silent, silent], [False, False]), silent)
    np.testing.assert_array_equal(
        average_outputs([sure, unsure], [True, True]), average_outputs([sure, unsure])
    )


def test_ensembles_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="there are none to average"):
        average_outputs([])
    with pytest.raises(InputError, match=r"outputs 1: \(12, 3, 4, 2\) are not of the shape"):
        average_outputs([drawn(0), drawn(0)[..., :2]])
    wrong = drawn(0)
    wrong[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="outputs 1: hold what is no finite number"):
        average_outputs([drawn(0), wrong])
    with pytest.raises(InputError, match=r"outputs: \(5, 2, 4, 1\) are no tracks"):
        decode(np.zeros((5, 2, 4, 1)), PLAIN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0.0),
        ("threshold", ()),
        ("threshold", (0.5, 1.0)),
        ("merge_deg", -1.0),
        ("smoothing_frames", 2),
        ("fill_frames", -1),
        ("least_frames", 0),
        ("on_screen_threshold", 1.0),
    ],
)
def test_settings_that_cannot_be_are_refused(name, value):
    with pytest.raises(InputError, match=rf"DecodingConfig.{name}: "):
        DecodingConfig(**{name: value})
