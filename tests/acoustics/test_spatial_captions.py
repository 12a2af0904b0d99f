"""Captions of places all round: what is said, what is not, and that templates tell nothing else."""

import itertools
import re

import numpy as np
import pytest

from spatial_clap_jax.acoustics.captions import category_phrasings
from spatial_clap_jax.acoustics.spatial_captions import (
    PHRASINGS,
    compose_spatial_caption,
    spatial_phrases,
)
from spatial_clap_jax.acoustics.spatial_words import (
    DIRECTIONS,
    DISTANCES,
    ELEVATIONS,
    REVERBERATIONS,
    ROOM_SIZES,
    SpatialWords,
)
from spatial_clap_jax.errors import InputError

VALUES = (DIRECTIONS, ELEVATIONS, DISTANCES, ROOM_SIZES, REVERBERATIONS)
DOG = "a dog barks"


def said_in(text):
    """The words of each kind that stand in a text."""
    return tuple(
        frozenset(word for word in words if re.search(rf"\b{word}\b", text)) for words in VALUES
    )


def test_by_hand():
    words = SpatialWords("left", "up", "near", "small", "highly reverberant")
    assert compose_spatial_caption([DOG], [words]) == (
        "a dog barks from the left, up high, near the listener in a small, highly reverberant room."
    )
    assert compose_spatial_caption([DOG], [SpatialWords(reverberation=REVERBERATIONS[0])]) == (
        "a dog barks in an acoustically dampened room."
    )
    two = [SpatialWords("left", room_size="large"), SpatialWords("back", room_size="large")]
    assert compose_spatial_caption([DOG, "rain falls."], two, [1, 0]) == (
        "rain falls from the back, and a dog barks from the left in a large room."
    )


def test_a_clip_without_a_place_is_its_content_in_every_phrasing():
    for phrasing in range(0, PHRASINGS, 37):
        assert compose_spatial_caption(["A dog barks. "], [], None, phrasing) == "A dog barks."
        assert compose_spatial_caption([DOG], [SpatialWords()], None, phrasing) == f"{DOG}."


def test_every_template_says_exactly_the_words():
    rng = np.random.default_rng(0)
    options = [(None, *words) for words in VALUES]
    combinations = list(itertools.product(*options))
    for phrasing in range(0, PHRASINGS, 3):
        for index in rng.choice(len(combinations), 2, replace=False):
            caption = compose_spatial_caption(
                [DOG], [SpatialWords(*combinations[index])], None, phrasing
            )
            expected = tuple(frozenset(filter(None, (word,))) for word in combinations[index])
            assert said_in(caption) == expected, caption
            assert caption.count(DOG) == 1
            assert not re.search(r"None|  | ,|,\.|, ,|^,|\ba a", caption), caption


def test_templates_differ_where_there_is_something_to_say():
    words = SpatialWords("left", "up", "near", "small", "highly reverberant")
    captions = {compose_spatial_caption([DOG], [words], None, n) for n in range(PHRASINGS)}
    assert len(captions) == PHRASINGS >= 100


def test_contents_of_the_known_classes_say_no_word_of_a_place():
    for category in ("dog bark", "siren", "footsteps", "water drops", "knocking", "wind"):
        for content in category_phrasings(category):
            assert not any(said_in(content)), content


def test_the_room_is_said_once_and_each_place_in_its_own_clause():
    words = [SpatialWords("front", room_size="small"), SpatialWords("right", "down", None, "small")]
    for phrasing in range(0, PHRASINGS, 17):
        caption = compose_spatial_caption(["a dog barks", "rain falls"], words, [1, 0], phrasing)
        assert caption.count("small") == 1
        first, second = re.split(r"a dog barks", caption)
        assert said_in(first)[:2] == ({"right"}, {"down"})
        assert said_in(second)[:2] == ({"front"}, set())


def test_phrases_cover_every_template_word():
    known = set(" ".join(spatial_phrases()).replace(",", "").split())
    words = SpatialWords("left", "down", "far", "mid-sized", "acoustically dampened")
    for phrasing in range(PHRASINGS):
        caption = compose_spatial_caption(["noise"], [words], None, phrasing)
        assert set(re.sub("[,.;]", "", caption).split()) <= known | {"noise"}


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="is an empty caption"):
        compose_spatial_caption([" ."], [])
    with pytest.raises(ValueError, match="2 contents and words of 1 places"):
        compose_spatial_caption([DOG, DOG], [SpatialWords()])
    with pytest.raises(ValueError, match="several rooms"):
        compose_spatial_caption([DOG] * 2, [SpatialWords(room_size="small"), SpatialWords()])
    with pytest.raises(ValueError, match=f"phrasing {PHRASINGS} must lie"):
        compose_spatial_caption([DOG], [], None, PHRASINGS)
    with pytest.raises(ValueError, match=r"order \[1\] is no permutation"):
        compose_spatial_caption([DOG], [], [1])
