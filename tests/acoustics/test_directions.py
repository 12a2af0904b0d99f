"""Direction classes: edges, phrases, and the mirror law."""

import numpy as np
import pytest

from spatial_clap_jax.acoustics.directions import (
    PHRASE_SETS,
    STEREO_DIRECTIONS,
    direction_index,
    mirror_direction,
    phrase_set,
)
from spatial_clap_jax.errors import InputError


@pytest.mark.parametrize(
    ("azimuth_deg", "index"),
    [
        *[(90, 0), (54.01, 0), (54, 1), (30, 1), (18.01, 1), (18, 2), (0, 2), (-0.0, 2)],
        *[(-18, 2), (-18.01, 3), (-54, 3), (-54.01, 4), (-90, 4)],
    ],
)
def test_edges_belong_to_the_class_nearer_to_the_front(azimuth_deg, index):
    assert direction_index(float(azimuth_deg)) == index


def test_every_azimuth_lies_in_the_bounds_of_its_class():
    for azimuth_deg in np.linspace(-90, 90, 721):
        direction = STEREO_DIRECTIONS[direction_index(float(azimuth_deg))]
        assert direction.low_deg <= azimuth_deg <= direction.high_deg


def test_mirrored_azimuths_have_mirrored_classes_and_bounds():
    for azimuth_deg in np.linspace(-90, 90, 181):
        index = direction_index(float(azimuth_deg))
        assert direction_index(-float(azimuth_deg)) == mirror_direction(index)
    for index, direction in enumerate(STEREO_DIRECTIONS):
        mirrored = STEREO_DIRECTIONS[mirror_direction(index)]
        assert (mirrored.low_deg, mirrored.high_deg) == (-direction.high_deg, -direction.low_deg)
        swapped = direction.phrase.replace("left", "*")
        assert swapped.replace("right", "left").replace("*", "right") == mirrored.phrase


@pytest.mark.parametrize("azimuth_deg", [90.1, -91.0, 180.0, float("nan")])
def test_azimuths_behind_are_refused(azimuth_deg):
    with pytest.raises(InputError, match=r"azimuth_deg .* is outside \[-90, 90\]"):
        direction_index(azimuth_deg)


def test_an_index_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"index -1 is outside 0\.\.4"):
        mirror_direction(-1)


def mirrored_words(phrase):
    return phrase.replace("left", "*").replace("right", "left").replace("*", "right")


def test_the_phrases_of_all_sets_are_different():
    assert {len(phrases) for phrases in PHRASE_SETS.values()} == {len(STEREO_DIRECTIONS)}
    phrases = [phrase for of_set in PHRASE_SETS.values() for phrase in of_set]
    # A caption tells its set and class by how its clauses end.
    for phrase in phrases:
        assert [other for other in phrases if phrase.endswith(f" {other}")] == []
    assert len(set(phrases)) == len(phrases) == 5 * len(PHRASE_SETS)


@pytest.mark.parametrize("name", PHRASE_SETS)
def test_mirrored_classes_have_mirrored_phrases_in_every_set(name):
    phrases = phrase_set(name)
    for index, phrase in enumerate(phrases):
        assert mirrored_words(phrase) == phrases[mirror_direction(index)]
    assert ["left" in phrase for phrase in phrases] == [True, True, False, False, False]


def test_phrase_sets_by_name_and_the_first_is_that_of_the_classes():
    assert phrase_set("side") == tuple(direction.phrase for direction in STEREO_DIRECTIONS)
    assert next(iter(PHRASE_SETS)) == "side"
    assert phrase_set("from")[1] == "from the front left"


def test_an_unknown_phrase_set_is_refused_and_the_known_ones_named():
    with pytest.raises(
        InputError, match=r"phrases: 'clock' is none of the sets side, ahead, stage, from\.$"
    ):
        phrase_set("clock")
