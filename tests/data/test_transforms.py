import dataclasses
import itertools

import numpy as np
import pytest
from fakes import fake_foa_group, fake_group

from spatial_clap_jax.acoustics.captions import compose_caption
from spatial_clap_jax.acoustics.directions import PHRASE_SETS, phrase_set
from spatial_clap_jax.acoustics.foa import unit_vectors
from spatial_clap_jax.acoustics.spatial_captions import PHRASINGS
from spatial_clap_jax.acoustics.spatial_words import SpatialWords
from spatial_clap_jax.data import transforms
from spatial_clap_jax.data.rewritten import Rewritten
from spatial_clap_jax.data.wording import (
    compose,
    meanings,
    member_directions,
    member_places,
    member_words,
)
from spatial_clap_jax.errors import InputError

GROUPS = [fake_group("train", k, 3) for k in (1, 2, 3)]
EACH_GROUP = pytest.mark.parametrize("group", GROUPS, ids=["k1", "k2", "k3"])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pair(**changes):
    """A dog at +70, a bell at 0; member 0 tells of the bell first."""
    group = dataclasses.replace(
        GROUPS[1],
        audio=np.int16([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]),
        scale=0.5,
        categories=("dog", "bell"),
        contents=(("a barking dog", "a dog barks"), ("a bell rings",)),
        azimuth_deg=np.float32([70.0, 0.0]),
        permutations=np.int32([[0, 1], [1, 0]]),
        captions=(
            "a bell rings in front, and a dog barks on the left side.",
            "a barking dog in front, and a bell rings on the left side.",
        ),
    )
    return dataclasses.replace(group, **changes)


def assert_same(a, b):
    for field in dataclasses.fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        same = np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        assert same, field.name


def between_channels(group):
    """Level ratio and phase difference between the channels, for each member and frequency."""
    left, right = np.moveaxis(np.fft.rfft(group.waveforms().astype(np.float64)), 1, 0)
    loud = np.abs(left) > 1e-3 * np.abs(left).max()
    return np.where(loud, right, 0) / np.where(loud, left, 1)


@EACH_GROUP
@pytest.mark.parametrize(
    "transform",
    [
        transforms.time_shift,
        transforms.redraw_captions,
        lambda group, rng: transforms.joint_gain(group, rng, (-6.0, 6.0)),
    ],
    ids=["shift", "redraw", "gain"],
)
def test_no_transform_but_the_swap_touches_what_lies_between_the_channels(group, transform, rng):
    before = [np.copy(group.audio), group.scale]
    after = transform(group, rng)
    np.testing.assert_allclose(
        between_channels(after), between_channels(group), rtol=1e-6, atol=1e-9
    )
    untouched = dataclasses.replace(
        after, audio=group.audio, scale=group.scale, captions=group.captions
    )
    assert_same(untouched, group)
    np.testing.assert_array_equal(group.audio, before[0])
    assert group.scale == before[1]


def test_member_directions():
    assert member_directions(pair()) == [[0, 2], [2, 0]]


def test_draw_member_keeps_sound_words_and_places_together(rng):
    group, seen = pair(), set()
    for _ in range(20):
        member = transforms.draw_member(group, rng)
        i = group.captions.index(member.captions[0])
        seen.add(i)
        np.testing.assert_array_equal(member.audio, group.audio[[i]])
        np.testing.assert_array_equal(member.permutations, group.permutations[[i]])
    assert seen == {0, 1}


@EACH_GROUP
def test_joint_gain_is_one_number_in_range(group, rng):
    gains_db = []
    for _ in range(50):
        louder = transforms.joint_gain(group, rng, (-6.0, 3.0))
        assert louder.audio is group.audio
        gains_db.append(20 * np.log10(louder.scale / group.scale))
    assert -6.0 <= min(gains_db) < -4.5
    assert 2.0 < max(gains_db) <= 3.0
    twice = transforms.joint_gain(group, rng, (20.0, 20.0))
    assert twice.scale == pytest.approx(10 * group.scale)


def test_swap_by_hand():
    swapped = transforms.swap_channels(pair())
    np.testing.assert_array_equal(
        swapped.audio, [[[4, 5, 6], [1, 2, 3]], [[10, 11, 12], [7, 8, 9]]]
    )
    assert swapped.azimuth_deg.tolist() == [-70.0, 0.0]
    assert swapped.captions == (
        "a bell rings in front, and a dog barks on the right side.",
        "a barking dog in front, and a bell rings on the right side.",
    )
    assert member_directions(swapped) == [[4, 2], [2, 4]]


@EACH_GROUP
def test_swap_inverts_what_lies_between_the_channels(group):
    swapped = transforms.swap_channels(group)
    left, right = group.audio[:, 0], group.audio[:, 1]
    np.testing.assert_array_equal(swapped.audio[:, 0], right)
    np.testing.assert_array_equal(swapped.audio[:, 1], left)
    assert member_directions(swapped) == [[4 - d for d in row] for row in member_directions(group)]
    assert swapped.scale == group.scale


@EACH_GROUP
def test_swapped_twice_is_the_identity(group):
    once = transforms.swap_channels(group)
    assert once.captions != group.captions or set(np.abs(group.azimuth_deg) <= 18) == {True}
    assert_same(transforms.swap_channels(once), group)


def test_swap_mirrors_phrases_inside_contents_alone_by_place():
    """A content that itself speaks of a side is the clip's own and stays as it is."""
    group = pair(
        contents=(("a dog barks on the left side",), ("a bell rings",)),
        captions=(
            "a dog barks on the left side on the left side, and a bell rings in front.",
            "a bell rings on the left side, and a dog barks on the left side in front.",
        ),
    )
    assert transforms.swap_channels(group).captions == (
        "a dog barks on the left side on the right side, and a bell rings in front.",
        "a bell rings on the right side, and a dog barks on the left side in front.",
    )


def test_random_swap_swaps_with_its_probability(rng):
    group = pair()
    swaps = [transforms.random_swap(group, rng) is not group for _ in range(200)]
    assert 75 < sum(swaps) < 125
    assert transforms.random_swap(group, rng, 0.0) is group
    assert_same(transforms.random_swap(group, rng, 1.0), transforms.swap_channels(group))


def test_swap_refuses_what_it_cannot_mirror():
    with pytest.raises(InputError, match=r"train_k2/3: 4 channels; a channel swap mirrors stereo"):
        transforms.swap_channels(pair(audio=np.zeros((2, 4, 3), np.int16)))
    with pytest.raises(InputError, match=r"train_k2/3: caption 'noise\.' is not composed .*`swap`"):
        transforms.swap_channels(pair(captions=("noise.", "noise.")))


@EACH_GROUP
def test_time_shift_rolls_each_member_by_one_number(group, rng):
    shifts = set()
    for _ in range(5):
        shifted = transforms.time_shift(group, rng)
        for before, after in zip(group.audio, shifted.audio, strict=True):
            found = [
                s for s in range(before.shape[-1]) if np.array_equal(np.roll(before, s, -1), after)
            ]
            assert found
            shifts.update(found)
    assert len(shifts) > 4


@EACH_GROUP
def test_redrawn_captions_are_true_and_reach_every_wording(group, rng):
    directions = member_directions(group)
    orders = list(itertools.permutations(range(len(group.clips))))
    true = [
        {
            compose_caption(contents, row, order): contents
            for contents in itertools.product(*group.contents)
            for order in orders
        }
        for row in directions
    ]
    seen = [set() for _ in directions]
    for _ in range(400):
        captions = transforms.redraw_captions(group, rng).captions
        wordings = {true[i][caption] for i, caption in enumerate(captions)}
        assert len(wordings) == 1, "members of a group differ in phrasing"
        for i, caption in enumerate(captions):
            seen[i].add(caption)
    assert [len(s) for s in seen] == [len(t) for t in true]


def test_rephrase_by_hand():
    group = pair()
    said = transforms.rephrase(group, "from")
    assert said.captions == (
        "a bell rings from the front, and a dog barks from the left.",
        "a barking dog from the front, and a bell rings from the left.",
    )
    assert_same(dataclasses.replace(said, captions=group.captions, phrasing=0), group)


@EACH_GROUP
@pytest.mark.parametrize("name", PHRASE_SETS)
def test_rephrase_keeps_contents_and_order(group, name):
    captions = transforms.rephrase(group, name).captions
    directions = member_directions(group)
    for before, after, row in zip(group.captions, captions, directions, strict=True):
        # Clause by clause: what is not the phrase stays, and stays where it is.
        for old, new in zip(before[:-1].split(", and "), after[:-1].split(", and "), strict=True):
            (place,) = (d for d in row if old.endswith(phrase_set("side")[d]))
            content = old.removesuffix(phrase_set("side")[place])
            assert new == content + phrase_set(name)[place]
    assert (captions == group.captions) == (name == "side")


def test_rephrase_refuses_other_captions_and_unknown_sets():
    with pytest.raises(InputError, match=r"train_k2/3: caption 'noise\.' is not composed"):
        transforms.rephrase(pair(captions=("noise.", "noise.")), "from")
    with pytest.raises(InputError, match="phrases: 'clock' is none of the sets"):
        transforms.rephrase(pair(), "clock")


@EACH_GROUP
def test_members_share_a_drawn_phrase_set_and_every_one_occurs(group, rng):
    names = ("ahead", "stage", "from")
    orders = list(itertools.permutations(range(len(group.clips))))
    told = [
        {
            compose_caption(contents, row, order, phrase_set(name)): (name, contents)
            for name in names
            for contents in itertools.product(*group.contents)
            for order in orders
        }
        for row in member_directions(group)
    ]
    seen = set()
    for _ in range(150):
        captions = transforms.redraw_captions(group, rng, names).captions
        # One set and one wording of each clip for the whole group, and true of every member.
        (drawn,) = {told[i][caption] for i, caption in enumerate(captions)}
        seen.add(drawn)
    assert seen == {(name, contents) for name in names for _, contents in told[0].values()}


@EACH_GROUP
def test_one_phrase_set_changes_the_phrases_of_a_draw_alone(group):
    draw = lambda **kind: transforms.redraw_captions(group, np.random.default_rng(5), **kind)  # noqa: E731
    assert draw(phrases=("from",)).captions == transforms.rephrase(draw(), "from").captions
    assert_same(draw(phrases=("side",)), draw())


@EACH_GROUP
def test_a_member_among_rivals_keeps_the_captions_of_exactly_the_others(group, rng):
    seen = set()
    for _ in range(60):
        member = transforms.draw_member_among_rivals(group, rng)
        (caption,), (audio,) = member.captions, member.audio
        i = group.captions.index(caption)
        seen.add(i)
        np.testing.assert_array_equal(audio, group.audio[i])
        np.testing.assert_array_equal(member.permutations, group.permutations[[i]])
        assert member.rivals == tuple(c for c in group.captions if c != caption)
        assert len(member.rivals) == len(group.captions) - 1
    assert seen == set(range(len(group.captions)))
    assert group.rivals == ()


def test_a_member_among_rivals_is_the_one_that_is_drawn_without():
    for seed in range(8):
        one, other = (
            draw(pair(), np.random.default_rng(seed))
            for draw in (transforms.draw_member, transforms.draw_member_among_rivals)
        )
        assert_same(dataclasses.replace(other, rivals=()), one)


FOA_GROUPS = [fake_foa_group("train", k, 3) for k in (1, 2, 3)]
EACH_FOA_GROUP = pytest.mark.parametrize("group", FOA_GROUPS, ids=["k1", "k2", "k3"])


def mirrored_words(text):
    return text.replace("left", "*").replace("right", "left").replace("*", "right")


def intensity(group):
    """Time-averaged active intensity of each member (x, y, z)."""
    audio = group.audio.astype(np.float64)
    return np.mean(audio[:, :1] * audio[:, [3, 1, 2]], axis=-1)


@pytest.mark.parametrize("yaw_deg", [-150.0, 20.0, 90.0])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_rotation_turns_audio_labels_and_words_together(yaw_deg, mirror):
    for index in range(6):
        group = fake_foa_group("train", 1, index)
        turned = transforms.rotate(group, yaw_deg, mirror)
        aim = unit_vectors(turned.azimuth_deg, turned.elevation_deg)[0]
        (seen,) = intensity(turned)
        assert seen @ aim > 0.9999 * np.linalg.norm(seen)
        side = -1 if mirror else 1
        expected = (side * group.azimuth_deg[0] + yaw_deg + 180) % 360 - 180
        assert turned.azimuth_deg[0] == pytest.approx(expected, abs=1e-4)
        assert turned.captions[0] == compose(
            turned, [group.contents[0][0]], member_places(turned)[0], [0], group.phrasing
        )
        ((before,),), ((after,),) = member_words(group), member_words(turned)
        assert dataclasses.replace(before, direction=after.direction) == after


@EACH_FOA_GROUP
@pytest.mark.parametrize("mirror", [False, True])
def test_turned_there_and_back_is_the_identity(group, mirror):
    for yaw_deg in (37.0, 135.0):
        there = transforms.rotate(group, yaw_deg, mirror)
        # A mirrored turn is its own inverse.
        back = transforms.rotate(there, yaw_deg if mirror else -yaw_deg, mirror)
        np.testing.assert_allclose(back.audio, group.audio, atol=0.02)
        np.testing.assert_allclose(back.azimuth_deg, group.azimuth_deg, atol=1e-4)
        untouched = dataclasses.replace(back, audio=group.audio, azimuth_deg=group.azimuth_deg)
        assert_same(untouched, group)
        assert there.captions != group.captions or member_words(there) == member_words(group)


@EACH_FOA_GROUP
def test_a_mirror_exchanges_left_and_right_in_captions_alone(group):
    mirrored = transforms.rotate(group, 0.0, mirror=True)
    assert mirrored.captions == tuple(mirrored_words(caption) for caption in group.captions)
    np.testing.assert_array_equal(mirrored.audio[:, 1], -group.audio[:, 1])
    np.testing.assert_array_equal(mirrored.audio[:, [0, 2, 3]], group.audio[:, [0, 2, 3]])


def test_a_drawn_rotation_reaches_all_round_and_mirrors_half(rng):
    group = FOA_GROUPS[1]
    turned = [transforms.random_rotation(group, rng) for _ in range(200)]
    azimuths = np.array([one.azimuth_deg for one in turned])
    assert (np.histogram(azimuths[:, 0], 8, (-180, 180))[0] > 8).all()
    between = (azimuths[:, 1] - azimuths[:, 0]) % 360
    kept = np.isclose(between, (group.azimuth_deg[1] - group.azimuth_deg[0]) % 360, atol=1e-3)
    assert 70 < kept.sum() < 130


def test_a_clip_without_a_place_is_not_turned(rng):
    group = fake_foa_group("train", 0, 1)
    assert transforms.random_rotation(group, rng) is group


def test_a_rotation_refuses_stereo_and_a_swap_refuses_ambisonics():
    with pytest.raises(InputError, match=r"train_k2/3: 2 channels; a rotation turns .* `rotate`"):
        transforms.rotate(pair(), 10.0)
    with pytest.raises(InputError, match=r"train_k2/3: 4 channels; a channel swap"):
        transforms.swap_channels(FOA_GROUPS[1])


@pytest.mark.parametrize("k", [0, 1, 2])
def test_redrawn_elsa_captions_are_true_and_of_many_templates(k, rng):
    group = fake_foa_group("train", k, 7)
    seen = set()
    for _ in range(40):
        drawn = transforms.redraw_captions(group, rng)
        assert meanings(drawn) == meanings(group)
        assert transforms.rephrase(drawn, drawn.phrasing).captions == drawn.captions
        seen.add(drawn.phrasing)
        assert 0 <= drawn.phrasing < PHRASINGS
    assert len(seen) > 30
    with pytest.raises(InputError, match=r"phrases: 'from' is no template of train_k\d/7"):
        transforms.rephrase(group, "from")


def test_a_rewritten_caption_stays_with_its_field(rng):
    group, others = fake_foa_group("train", 1, 0), [fake_foa_group("train", 2, 0), *GROUPS]
    words = member_words(group)[0][0]
    rewrites = {(group.scene_id, 0): Rewritten(words, ("hark, a dog", "a dog, there"))}
    told = [transforms.tell_rewritten(group, rng, rewrites, 0.5) for _ in range(400)]
    rewritten = [one for one in told if one is not group]
    assert {one.captions for one in rewritten} == {("hark, a dog",), ("a dog, there",)}
    assert 150 < len(rewritten) < 250
    for change in (transforms.random_rotation, transforms.redraw_captions):
        assert change(rewritten[0], rng) is rewritten[0]
        assert change(group, rng) is not group
    for other in others:
        assert transforms.tell_rewritten(other, rng, rewrites, 1.0) is other
    assert transforms.tell_rewritten(group, rng, {}, 1.0) is group


def test_a_rewrite_of_other_words_than_the_scenes_is_not_told(rng):
    group = fake_foa_group("train", 1, 0)
    words = member_words(group)[0][0]
    for said, told in (
        (words, ("hark",)),
        (dataclasses.replace(words, direction=None), group.captions),
        (dataclasses.replace(words, room_size="large"), group.captions),
        (SpatialWords(), group.captions),
    ):
        rewrites = {(group.scene_id, 0): Rewritten(said, ("hark",))}
        assert transforms.tell_rewritten(group, rng, rewrites, 1.0).captions == told
    # A clip without a place has no words.
    plain = fake_foa_group("train", 0, 0)
    rewrites = {(plain.scene_id, 0): Rewritten(SpatialWords(), ("hark",))}
    assert transforms.tell_rewritten(plain, rng, rewrites, 1.0).captions == ("hark",)
