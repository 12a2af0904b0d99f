"""Captions: the template, and phrasings that a direction phrase can follow."""

import pytest

from spatial_clap_jax.acoustics.captions import (
    category_phrasings,
    compose_caption,
    label_prompt,
    labels_of,
)
from spatial_clap_jax.acoustics.directions import PHRASE_SETS
from spatial_clap_jax.errors import InputError

ESC10 = [
    *("Baby cry", "Chainsaw", "Clock tick", "Dog bark", "Fire crackling", "Helicopter"),
    *("Person sneeze", "Rain", "Rooster", "Sea waves"),
]
SYNTHETIC = [
    *("siren", "beeps", "footsteps", "engine", "wind", "bell", "whistle", "knocking"),
    *("water drops", "buzz", "chirps", "static noise"),
]
PLACE_WORDS = {
    *("left", "right", "front", "side", "ahead", "behind", "near", "far", "here", "there", "close"),
    *("outside", "inside", "above", "below", "overhead", "away", "in", "on", "at", "distant"),
}


def test_a_caption_follows_the_template_and_the_order_of_mention():
    contents = ["a dog barks", "rain falls", "a bell rings"]
    assert compose_caption(contents[:1], [0]) == "a dog barks on the left side."
    assert compose_caption(contents, [1, 2, 4], order=[2, 0, 1]) == (
        "a bell rings on the right side, and a dog barks in the front-left, "
        "and rain falls in front."
    )


def test_a_caption_takes_its_phrases_from_the_given_set():
    contents = ["a dog barks", "rain falls"]
    assert compose_caption(contents, [0, 3], [1, 0], PHRASE_SETS["stage"]) == (
        "rain falls half right, and a dog barks at the far left."
    )
    assert compose_caption(contents, [4, 2], phrases=PHRASE_SETS["ahead"]) == (
        "a dog barks to the right, and rain falls straight ahead."
    )
    assert compose_caption(contents, [4, 1], phrases=PHRASE_SETS["side"]) == (
        compose_caption(contents, [4, 1])
    )


def test_a_final_period_and_spaces_of_a_content_are_dropped():
    assert compose_caption([" A man speaks. "], [3]) == "A man speaks in the front-right."


@pytest.mark.parametrize("content", ["", "  ", "."])
def test_an_empty_content_is_refused(content):
    with pytest.raises(InputError, match="is an empty caption"):
        compose_caption(["rain falls", content], [0, 1])


def test_contents_directions_and_order_must_agree():
    with pytest.raises(ValueError, match="2 contents and 1 directions"):
        compose_caption(["a", "b"], [0])
    with pytest.raises(ValueError, match=r"order \[0, 0\] is no permutation"):
        compose_caption(["a", "b"], [0, 1], order=[0, 0])


@pytest.mark.parametrize("category", ESC10 + SYNTHETIC)
def test_known_categories_have_several_plain_phrasings(category):
    phrasings = category_phrasings(category)
    assert len(set(phrasings)) == len(phrasings) >= 3
    for phrasing in phrasings:
        assert phrasing == phrasing.lower().strip()
        assert not phrasing.endswith((".", ","))
        assert not PLACE_WORDS & set(phrasing.split())
        assert "is heard" not in phrasing  # not the fallback


def test_no_two_categories_share_a_phrasing():
    everything = [one for category in ESC10 + SYNTHETIC for one in category_phrasings(category)]
    assert len(set(everything)) == len(everything)


def test_names_of_esc50_and_other_spellings_mean_the_same():
    assert category_phrasings("crying_baby") == category_phrasings("Baby cry")
    assert category_phrasings("sea_waves") == category_phrasings("Sea-Waves ")


def test_unknown_categories_are_phrased_around_their_name():
    assert category_phrasings("mouse_click")[0] == "the sound of mouse click"
    with pytest.raises(InputError, match="category ' ' is empty"):
        category_phrasings(" ")


@pytest.mark.parametrize(
    ("category", "labels", "told"),
    [
        ("Rain;Wind", ("Rain", "Wind"), "the sound of rain and wind"),
        ("Rain | wind_chime; Dog", ("Rain", "wind_chime", "Dog"), "the sound of {}, and dog"),
        ("a;b;c;d", ("a", "b", "c", "d"), "the sound of a, b, c, and d"),
    ],
)
def test_several_labels_are_listed(category, labels, told):
    assert labels_of(category) == labels
    assert category_phrasings(category) == (told.format("rain, wind chime"),)


def test_one_label_and_none():
    assert labels_of(" rain ; rain|") == ("rain",)
    assert category_phrasings("rain;") == category_phrasings("rain")
    assert labels_of("Male speech, man speaking") == ("Male speech, man speaking",)
    assert labels_of("; |") == labels_of("") == ()
    with pytest.raises(InputError, match="category ';' is empty"):
        category_phrasings(";")


def test_a_label_is_asked_for_in_words():
    assert label_prompt("Church_bell") == "church bell can be heard."
