"""What members of groups say in both styles."""

import dataclasses
import re

import numpy as np
import pytest
from fakes import fake_clip, fake_foa_group, fake_group

from spatial_clap_jax.acoustics.spatial_words import DIRECTIONS_8, SpatialWords
from spatial_clap_jax.data.wording import (
    contents_and_order,
    meanings,
    member_directions,
    member_places,
    member_words,
    recomposed,
)
from spatial_clap_jax.errors import InputError


def place(**changes):
    """A dog to the left, down, near, in a small dampened room."""
    group = fake_foa_group("train", 1, 0)
    changes = {
        "categories": ("dog",),
        "azimuth_deg": np.float32([90.0]),
        "elevation_deg": np.float32([-45.0]),
        "distance_m": np.float32([0.7]),
        "room_size_m": np.float32([5.0, 4.0, 3.0]),
        "t30_s": np.float32([0.15]),
    } | changes
    return dataclasses.replace(group, **changes)


def test_words_of_a_place():
    ((words,),) = member_words(place())
    assert words == SpatialWords("left", "down", "near", "small", "acoustically dampened")
    assert member_directions(place(azimuth_deg=np.float32([135.0]))) == [
        [DIRECTIONS_8.index("back-left")]
    ]


def test_members_exchange_the_words_of_places_and_share_those_of_the_room():
    group = fake_foa_group("train", 2, 3)
    (a, b), (c, d) = member_words(group)
    assert (a, b) == (d, c)
    assert a.direction != b.direction
    assert a.room_size == b.room_size == "mid-sized"


def test_a_word_for_reverberation_is_one_that_all_places_have():
    group = dataclasses.replace(fake_foa_group("train", 2, 0), t30_s=np.float32([1.1, 1.2]))
    assert {words.reverberation for words in member_words(group)[0]} == {"highly reverberant"}
    group = dataclasses.replace(group, t30_s=np.float32([0.99, 1.2]))
    assert {words.reverberation for words in member_words(group)[0]} == {None}


def test_a_plain_clip_has_no_words_and_its_caption_is_its_content():
    group = fake_foa_group("train", 0, 2)
    assert member_words(group) == member_directions(group) == [[]]
    assert group.captions == (f"{group.contents[0][0]}.",)


def test_meaning_is_the_content_and_the_set_of_words():
    (said,) = meanings(place())
    # Elsewhere under the same words, by another clip, in another phrasing: the same.
    same = place(azimuth_deg=np.float32([70.0]), distance_m=np.float32([0.9]), clips=("x",))
    assert meanings(dataclasses.replace(same, phrasing=5, captions=("x",))) == [said]
    for change in (
        {"azimuth_deg": np.float32([-90.0])},
        {"azimuth_deg": np.float32([45.0])},
        {"elevation_deg": np.float32([0.0])},
        {"distance_m": np.float32([1.5])},
        {"room_size_m": np.float32([9.0, 8.0, 3.0])},
        {"t30_s": np.float32([0.5])},
        {"categories": ("bell",)},
    ):
        assert meanings(place(**change)) != [said], change


def test_a_place_without_a_word_means_what_the_plain_clip_does():
    plain = dataclasses.replace(fake_foa_group("train", 0, 0), categories=("dog",))
    wordless = place(
        azimuth_deg=np.float32([45.0]),
        elevation_deg=np.float32([0.0]),
        distance_m=np.float32([1.5]),
        room_size_m=np.float32([0.0, 0.0, 0.0]),
        t30_s=np.float32([0.5]),
    )
    assert meanings(wordless) == meanings(plain)


def test_two_permuted_sources_mean_two_things():
    group = fake_foa_group("train", 2, 1)
    straight, crossed = meanings(group)
    assert straight != crossed
    turned = dataclasses.replace(group, permutations=group.permutations[::-1])
    assert meanings(turned) == [crossed, straight]


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("make", [fake_group, fake_foa_group])
def test_captions_are_taken_apart_and_composed_again(make, k):
    for index in range(4):
        has_no_place = make is fake_group and not k
        group = fake_clip("train", index) if has_no_place else make("train", k, index)
        assert recomposed(group, group).captions == group.captions
        contents, order = contents_and_order(group, group.captions[0], member_places(group)[0])
        told = [re.search(re.escape(one), group.captions[0]) for one in contents]
        assert all(told)
        assert list(np.argsort([one.start() for one in told])) == list(order)


def test_a_caption_of_other_words_is_refused():
    group = dataclasses.replace(fake_foa_group("train", 1, 0), captions=("a dog is over there.",))
    with pytest.raises(InputError, match=r"train_k1/0: caption .* is not composed .* `rotate` off"):
        recomposed(group, group)
