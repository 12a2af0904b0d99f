"""Persons in a picture and what they correct."""

import json

import numpy as np
import pytest

from spatial_clap_jax.acoustics.stereo_view import picture_position
from spatial_clap_jax.data.sound_events import DCASE_CLASSES, SoundEvents
from spatial_clap_jax.data.video import write_video
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.key_points import (
    PersonConfig,
    azimuth_deg_across,
    correct_persons,
    read_persons,
)

WIDTH = 640
PLAIN = PersonConfig()


def person(frame, **parts):
    """A person of whom only the named parts are visible, each at a column."""
    points = np.zeros((17, 3))
    places = {"head": range(5), "wrists": (9, 10), "ankles": (15, 16), "hips": (11, 12)}
    for name, column in parts.items():
        points[list(places[name])] = column, 100, 2
    return {"image_id": frame, "keypoints": points.ravel().tolist(), "score": 0.9}


def persons(folder, *entries):
    path = folder / "persons.json"
    path.write_text(json.dumps({"width": WIDTH, "annotations": list(entries)}))
    return read_persons(path)


def events(*rows):
    """Rows of frame, class name, azimuth, on-screen flag."""
    frame, name, azimuth, on_screen = zip(*rows, strict=True)
    return SoundEvents(
        np.array(frame, np.int32),
        np.array([DCASE_CLASSES.index(n) for n in name], np.int32),
        np.zeros(len(rows), np.int32),
        np.array(azimuth, np.float32),
        np.full(len(rows), 2, np.float32),
        np.array(on_screen, bool),
    )


def corrected(given, seen, config=PLAIN):
    found = correct_persons(given, seen, DCASE_CLASSES, config)
    return list(zip(found.azimuth_deg.round(3).tolist(), found.on_screen.tolist(), strict=True))


def column(azimuth_deg):
    """Where the camera shows it."""
    across = picture_position(np.array([float(azimuth_deg)]), np.zeros(1))[0, 0]
    return float((across + 1) / 2 * WIDTH)


@pytest.mark.parametrize("azimuth_deg", [-50.0, -20.0, 0.0, 35.0, 50.0])
def test_columns_are_those_of_the_camera(azimuth_deg):
    assert azimuth_deg_across(column(azimuth_deg), WIDTH) == pytest.approx(azimuth_deg, abs=1e-9)


def test_events_of_persons_move_to_the_nearest(tmp_path):
    seen = persons(
        tmp_path, person(3, head=column(10)), person(3, head=column(-30)), person(4, head=column(0))
    )
    given = events(
        (3, "female speech", 18, False),
        (3, "male speech", -20, True),
        (3, "laughter", 30, True),
        (3, "music", 12, False),
        (5, "laughter", 0, True),
    )
    assert corrected(given, seen) == [
        (10, True),
        (-30, True),
        (30, False),
        (12, False),
        (0, False),
    ]
    still, open_gate = PersonConfig(moves=False), PersonConfig(gates=False)
    assert corrected(given, seen, still)[:2] == [(18, True), (-20, True)]
    assert corrected(given, seen, open_gate)[:3] == [(10, False), (-30, True), (30, True)]
    assert corrected(given, seen, PersonConfig(reach_deg=25.0))[2] == (10, True)


def test_each_class_sounds_at_its_part(tmp_path):
    parts = {"head": column(5), "wrists": column(-5), "ankles": column(0)}
    seen = persons(tmp_path, person(0, **parts), person(1, hips=column(8)))
    given = events(
        (0, "male speech", 1, True),
        (0, "clapping", 1, True),
        (0, "footsteps", 1, True),
        # Of parts that are not visible what is.
        (1, "male speech", 1, True),
    )
    assert corrected(given, seen) == [(5, True), (-5, True), (0, True), (8, True)]


def test_a_person_without_visible_points_is_not_there(tmp_path):
    seen = persons(tmp_path, person(0), person(0, head=column(12)))
    assert corrected(events((0, "laughter", 2, False)), seen) == [(12, True)]
    unseen = persons(tmp_path, person(0))
    assert corrected(events((0, "laughter", 2, True)), unseen) == [(2, False)]


def test_left_and_right_are_corrected_the_same(tmp_path):
    rng = np.random.default_rng(0)
    columns = rng.uniform(0, WIDTH, 12)
    seen = persons(tmp_path, *(person(i % 4, head=c) for i, c in enumerate(columns)))
    flipped = persons(tmp_path, *(person(i % 4, head=WIDTH - c) for i, c in enumerate(columns)))
    given = events(*((i % 4, "laughter", a, 1) for i, a in enumerate(rng.uniform(-60, 60, 20))))
    found = correct_persons(given, seen, DCASE_CLASSES, PLAIN)
    mirrored = correct_persons(given.mirrored(), flipped, DCASE_CLASSES, PLAIN).mirrored()
    assert 0 < found.on_screen.sum() < 20
    np.testing.assert_allclose(mirrored.azimuth_deg, found.azimuth_deg, atol=1e-4)
    np.testing.assert_array_equal(mirrored.on_screen, found.on_screen)


GOOD = person(0, head=1)


@pytest.mark.parametrize(
    "written",
    [
        {"images": [{"id": 0, "width": WIDTH, "height": 360}, {"id": 1, "width": WIDTH}]},
        {"images": [{"id": 0, "width": 99}], "width": WIDTH},
        {},
        [],
    ],
    ids=["images", "width", "video", "results"],
)
def test_every_form_of_cocos_is_read(tmp_path, written):
    path, listed = tmp_path / "persons.json", [person(0, head=column(12)), person(2)]
    whole = listed if written == [] else {**written, "annotations": listed}
    path.write_text(json.dumps(whole))
    video = None
    if not written:
        pytest.importorskip("av")
        video = tmp_path / "clip.mp4"
        write_video(video, np.zeros((2, 36, WIDTH, 3), np.uint8), 10)
    seen = read_persons(path, video)
    assert (seen.width, sorted(seen.points)) == (WIDTH, [0, 2])
    assert corrected(events((0, "laughter", 2, False)), seen) == [(12, True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("5", "neither a list of results nor an object with a list of annotations"),
        ('{"width": 640, "annotations": {}}', "nor an object with a list of annotations"),
        ("[]", "tells no width of its pictures; give the clip's video, or write"),
        ('{"annotations": [], "images": [{"id": 0}, 5]}', "tells no width of its pictures"),
        (
            '{"annotations": [], "images": [{"width": 640}, {"width": 320}]}',
            "images of widths 640 and 320; give key points in pictures of one width",
        ),
        ('{"annotations": [], "images": [{"width": [9]}]}', r"width \[9\] must be the picture's"),
        ('{"width": null, "annotations": []}', "width None must be the picture's width"),
        ('{"width": 0, "annotations": []}', "width 0 must be"),
        ('{"width": true, "annotations": []}', "width True must be"),
        ('{"width": NaN, "annotations": []}', "width nan must be"),
        ("[" * 100_000, "not readable as JSON"),
        (json.dumps({"width": 9, "annotations": [GOOD, 5]}), r"annotations\[1\]: is of type int"),
        (json.dumps({"width": 9, "annotations": [{**GOOD, "image_id": -1}]}), "image_id -1"),
        (json.dumps({"width": 9, "annotations": [{**GOOD, "image_id": "0"}]}), "image_id '0'"),
        (
            json.dumps({"width": 9, "annotations": [{**GOOD, "keypoints": [1.0] * 50}]}),
            "must be 51 finite numbers",
        ),
        (
            json.dumps({"width": 9, "annotations": [{**GOOD, "keypoints": [10**400] * 51}]}),
            "must be 51 finite numbers",
        ),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, text, message):
    path = tmp_path / "persons.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_persons(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_reach_beyond_the_picture_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        read_persons(tmp_path / "none.json")
    for reach in (0.0, 101.0):
        with pytest.raises(InputError, match=r"PersonConfig.reach_deg"):
            PersonConfig(reach_deg=reach)
