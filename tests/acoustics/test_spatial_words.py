"""Words for places and rooms: their ranges, the gaps between them, and the mirror law."""

import math

import numpy as np
import pytest

from spatial_clap_jax.acoustics.spatial_words import (
    DIRECTIONS,
    DIRECTIONS_8,
    SpatialWords,
    direction_word,
    direction_word_8,
    distance_word,
    elevation_word,
    reverberation_word,
    room_size_word,
    spatial_words,
    wrap_deg,
)
from spatial_clap_jax.errors import InputError


@pytest.mark.parametrize(
    ("azimuth_deg", "word"),
    [
        *[(0, "front"), (35, "front"), (-35, "front"), (35.1, None), (54.9, None), (-45, None)],
        *[(55, "left"), (90, "left"), (125, "left"), (-55, "right"), (-125, "right")],
        *[(125.1, None), (145, None), (-130, None), (145.1, "back"), (-145.1, "back")],
        *[(180, "back"), (-180, "back"), (270, "right"), (450, "left")],
    ],
)
def test_direction_words_have_gaps_and_back_is_both_sides_of_180(azimuth_deg, word):
    assert direction_word(float(azimuth_deg)) == word


@pytest.mark.parametrize(
    ("azimuth_deg", "word"),
    [
        *[(0, "front"), (22.5, "front"), (22.6, "front-left"), (-22.6, "front-right")],
        *[(67.5, "front-left"), (90, "left"), (-90, "right"), (112.5, "left")],
        *[(135, "back-left"), (-135, "back-right"), (157.5, "back-left"), (157.6, "back")],
        *[(180, "back"), (-180, "back"), (-157.6, "back")],
    ],
)
def test_eight_directions_cover_the_circle(azimuth_deg, word):
    assert direction_word_8(float(azimuth_deg)) == word


def mirrored(word):
    if word is None:
        return None
    return word.replace("left", "*").replace("right", "left").replace("*", "right")


def test_mirrored_azimuths_have_mirrored_words():
    for azimuth_deg in np.linspace(-180, 180, 721).tolist():
        for word in (direction_word, direction_word_8):
            assert word(-azimuth_deg) == mirrored(word(azimuth_deg))


def test_the_four_words_agree_with_the_eight_in_their_middles():
    for index, name in enumerate(DIRECTIONS_8):
        azimuth_deg = 45.0 * index
        assert direction_word_8(azimuth_deg) == name
        assert direction_word(azimuth_deg) == (name if name in DIRECTIONS else None)


def test_the_ranges_of_the_other_words():
    assert [elevation_word(e) for e in (40.1, 40.0, 0.0, -40.0, -40.1)] == [
        *("up", None, None, None, "down")
    ]
    assert [distance_word(d) for d in (0.99, 1.0, 2.0, 2.01)] == ["near", None, None, "far"]
    assert [room_size_word(a) for a in (0.0, 49.9, 50.0, 100.0, 100.1)] == [
        *(None, "small", "mid-sized", "mid-sized", "large")
    ]
    assert [reverberation_word(t) for t in (0.199, 0.2, 1.0, 1.001)] == [
        *("acoustically dampened", None, None, "highly reverberant")
    ]


def test_a_time_that_could_not_be_measured_says_nothing_of_the_room():
    assert [reverberation_word(t) for t in (0.0, -0.1, math.nan)] == [None] * 3
    assert spatial_words(0.0, 0.0, 1.5, 0.0, 0.0) == SpatialWords("front")


def test_at_the_zenith_and_the_nadir_there_is_no_direction():
    for azimuth_deg in range(-180, 180, 15):
        for elevation_deg, word in ((90.0, "up"), (75.1, "up"), (-75.1, "down"), (-90.0, "down")):
            said = spatial_words(float(azimuth_deg), elevation_deg, 1.5, 0.0, math.nan)
            assert said == SpatialWords(elevation=word)
    assert direction_word(90.0, 75.0) == direction_word(90.0, -75.0) == "left"


def test_all_words_of_a_place_and_none():
    assert spatial_words(-100.0, 45.0, 3.0, 20.0, 1.5) == SpatialWords(
        "right", "up", "far", "small", "highly reverberant"
    )
    assert spatial_words(45.0, 0.0, 1.5, 0.0, 0.5) == SpatialWords()


@pytest.mark.parametrize(
    ("azimuth_deg", "wrapped"), [(0, 0), (180, 180), (-180, 180), (181, -179), (-541, 179)]
)
def test_angles_wrap_into_one_turn(azimuth_deg, wrapped):
    assert wrap_deg(float(azimuth_deg)) == wrapped


def test_what_is_no_angle_is_refused():
    with pytest.raises(InputError, match=r"azimuth_deg nan is no angle"):
        direction_word(math.nan)
    with pytest.raises(InputError, match=r"elevation_deg 90\.1 is outside \[-90, 90\]"):
        elevation_word(90.1)
