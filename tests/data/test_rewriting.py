import json
import re
import threading

import pytest
from fakes import FakeScenes
from foa_scenes import FoaScenes

from spatial_clap_jax.acoustics.spatial_captions import PHRASINGS, compose_spatial_caption
from spatial_clap_jax.acoustics.spatial_words import (
    DIRECTIONS,
    DISTANCES,
    ELEVATIONS,
    REVERBERATIONS,
    ROOM_SIZES,
    SpatialWords,
)
from spatial_clap_jax.data.rewriting import (
    ACCEPTED,
    HINTS,
    clean,
    fault_of,
    prompt_for,
    rewrite_scenes,
)
from spatial_clap_jax.data.rewritten import REWRITTEN, Rewritten, read_rewrites
from spatial_clap_jax.data.wording import member_words
from spatial_clap_jax.errors import InputError

SCENES = FoaScenes(groups=6, splits=("train_k0", "train_k1", "train_k2"))
LEFT_NEAR = SpatialWords(direction="left", distance="near")
ROOM = SpatialWords(room_size="large", reverberation="highly reverberant")


def test_every_word_has_a_way_to_be_said():
    words = (DIRECTIONS, ELEVATIONS, DISTANCES, ROOM_SIZES, REVERBERATIONS)
    assert [tuple(said) for said in ACCEPTED.values()] == list(words)
    assert tuple(ACCEPTED) == tuple(SpatialWords.__dataclass_fields__)
    assert {field: tuple(said) for field, said in HINTS.items()} == {
        field: tuple(said) for field, said in ACCEPTED.items()
    }


def test_a_template_is_its_own_rewrite():
    every = [
        SpatialWords(),
        *(SpatialWords(direction=word, elevation="up", distance="near") for word in DIRECTIONS),
        SpatialWords(elevation="down", distance="far", room_size="small"),
        SpatialWords("back", "up", "far", "mid-sized", "acoustically dampened"),
        SpatialWords("right", "down", "near", "large", "highly reverberant"),
    ]
    for words in every:
        for phrasing in range(0, PHRASINGS, 37):
            caption = compose_spatial_caption(["a dog barks"], [words], phrasing=phrasing)
            assert fault_of(caption, words, "a dog barks") is None, caption


@pytest.mark.parametrize(
    ("rewrite", "words", "content"),
    [
        ("Close by on the left, a dog is barking.", LEFT_NEAR, "a dog barks"),
        ("A dog barks nearby, to your left.", LEFT_NEAR, "a dog barks"),
        ("Dogs bark in a huge, echoing hall.", ROOM, "a dog barks"),
        # What the content says is no place.
        ("A car backs up on the left, close by.", LEFT_NEAR, "a car backs up"),
        ("A little dog barks far behind.", SpatialWords("back", None, "far"), "a little dog barks"),
        ("A dog barks right behind you.", SpatialWords("back"), "a dog barks"),
        ("Rain falls.", SpatialWords(), "rain falls"),
        ("Nearby, on the left-hand side, a dog barks.", LEFT_NEAR, "a dog barks"),
        ("A dog barks close on your left-side.", LEFT_NEAR, "a dog barks"),
        ("A dog's bark echoes through a large room.", ROOM, "a dog barks"),
        ("A dog's bark, with much reverb, fills a big room.", ROOM, "a dog barks"),
        ("From up above comes a dog's bark.", SpatialWords(elevation="up"), "a dog barks"),
        ("A dog barks low down.", SpatialWords(elevation="down"), "a dog barks"),
        ("A dog barks to your left.", SpatialWords("left"), "a dog barks"),
        ("In front of you, a dog barks.", SpatialWords("front"), "a dog barks"),
        ("A dog barks very close to you.", SpatialWords(distance="near"), "a dog barks"),
        ("A dog barks in a tiny room.", SpatialWords(room_size="small"), "a dog barks"),
        ("A dog barks; the room is large and echoes.", ROOM, "a dog barks"),
        # What a true word implies may be told beside it.
        ("A dog barks in a large, cavernous and echoing hall.", ROOM, "a dog barks"),
        ("A distant dog barks, far away.", SpatialWords(distance="far"), "a dog barks"),
        # What the content says is told of neither place nor room.
        ("A man left.", SpatialWords(), "a man left"),
        ("The echo of a muffled voice.", SpatialWords(), "a muffled voice echoes"),
        ("Outside, church bells ring.", SpatialWords(), "church bells ring outside"),
        ("High-pitched beeps.", SpatialWords(), "a device beeps with high-pitched beeps"),
        ("A saw moves back-and-forth.", SpatialWords(), "a saw moves back and forth"),
    ],
)
def test_true_rewrites_pass(rewrite, words, content):
    assert fault_of(rewrite, words, content) is None


@pytest.mark.parametrize(
    ("rewrite", "words", "fault"),
    [
        ("A dog barks close by.", LEFT_NEAR, "direction left lost"),
        ("A dog barks on the left.", LEFT_NEAR, "distance near lost"),
        ("A dog barks on the right, close by.", LEFT_NEAR, "direction left lost"),
        ("A dog barks near the front left.", LEFT_NEAR, "direction front invented"),
        ("A dog barks above, near, on the left.", LEFT_NEAR, "elevation up invented"),
        ("A dog barks in a large room.", ROOM, "reverberation highly reverberant lost"),
        ("A dog barks in a small room.", SpatialWords(), "room_size small invented"),
        ("A dog barks, not far, near on the left.", LEFT_NEAR, "negation"),
        ("Near, on the left, it is loud.", LEFT_NEAR, "content lost"),
        ("As a language model I cannot help.", SpatialWords(), "content lost"),
        ("A dog barks. It is near, on the left.", LEFT_NEAR, "more than a sentence"),
        ("A dog barks.\nNear, left.", LEFT_NEAR, "more than a sentence"),
        ("A dog barks near, left\x1b[0m.", LEFT_NEAR, "characters that nobody can read"),
        ("A dog barks near, left\ud83d.", LEFT_NEAR, "characters that nobody can read"),
        ("Dog.", SpatialWords(), "too short or too long"),
        ("", SpatialWords(), "too short or too long"),
        ("A dog's bark echoes.", SpatialWords(), "reverberation highly reverberant invented"),
        ("A dog barks from the front-left.", SpatialWords(), "direction front invented"),
        ("A dog barks near the front-left.", LEFT_NEAR, "direction front invented"),
        ("A dog barks on the left-side.", SpatialWords(), "direction left invented"),
        ("A dog barks near, on the far-left.", LEFT_NEAR, "distance far invented"),
        ("A dog barks in the upper-right.", SpatialWords("right"), "elevation up invented"),
        ("A dog barks, near on the left-hand side, outside.", LEFT_NEAR, "another place invented"),
        ("A dog barks off to one side.", SpatialWords(), "another place invented"),
        ("A dog barks in a church.", SpatialWords(), "another place invented"),
        ("A dog barks in a resonant, cavernous hall.", ROOM, "room_size large lost"),
        ("A dog isn\u2019t barking near the left.", LEFT_NEAR, "negation"),
        ("A dog's bark barely echoes in a large room.", ROOM, "negation"),
        ("A dog barks " * 20, SpatialWords(), "too short or too long"),
        # Words that are of a place only in a phrase.
        ("A little dog barks.", SpatialWords(room_size="small"), "room_size small lost"),
        ("A big dog barks.", SpatialWords(room_size="large"), "room_size large lost"),
        ("A big dog barks in a room.", SpatialWords(room_size="large"), "room_size large lost"),
        ("A dog barks in a low voice.", SpatialWords(elevation="down"), "elevation down lost"),
        ("A dog barks in a high voice.", SpatialWords(elevation="up"), "elevation up lost"),
        ("A dog barks to wake you up.", SpatialWords(elevation="up"), "elevation up lost"),
        ("A dog barks back.", SpatialWords("back"), "direction back lost"),
        ("A dog barks behind a door.", SpatialWords("back"), "direction back lost"),
        ("A dog barks after everyone left.", SpatialWords("left"), "direction left lost"),
        ("A dog barks, all right.", SpatialWords("right"), "direction right lost"),
        ("A dog barks at the right moment.", SpatialWords("right"), "direction right lost"),
        ("A dog barks in front of a house.", SpatialWords("front"), "direction front lost"),
        ("A dog barks as doors close.", SpatialWords(distance="near"), "distance near lost"),
    ],
)
def test_untrue_rewrites_are_told(rewrite, words, fault):
    assert fault_of(rewrite, words, "a dog barks") == fault


@pytest.mark.parametrize(
    "room",
    [
        *("slightly reverberant room", "mildly reverberant room", "somewhat reverberant room"),
        *("room that is a bit reverberant", "room with a hint of echo", "room that echoes a bit"),
    ],
)
def test_what_is_slightly_so_is_not_highly_so(room):
    words = SpatialWords(reverberation="highly reverberant")
    assert fault_of(f"A dog barks in a {room}.", words, "a dog barks") == "reverberation softened"
    dry = SpatialWords(reverberation="acoustically dampened")
    rewrite = "A dog barks in a slightly dampened room."
    assert fault_of(rewrite, dry, "a dog barks") == "reverberation softened"


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ("echo", "reverberation highly reverberant invented"),
        ("echoes", "reverberation highly reverberant invented"),
        ("echoed", "reverberation highly reverberant invented"),
        ("echoey", "reverberation highly reverberant invented"),
        ("reverb", "reverberation highly reverberant invented"),
        ("reverberates", "reverberation highly reverberant invented"),
        ("resonant", "reverberation highly reverberant invented"),
        ("cavernous", "room_size large invented"),
        ("muffled", "reverberation acoustically dampened invented"),
        ("nearby", "distance near invented"),
        ("beside you", "distance near invented"),
        ("distant", "distance far invented"),
        ("a mile away", "distance far invented"),
        ("from the ceiling", "elevation up invented"),
        ("from under the floor", "elevation down invented"),
        ("facing us", "direction front invented"),
        ("in a closet", "room_size small invented"),
        ("outdoors", "another place invented"),
        ("in the garden", "another place invented"),
        ("across the street", "another place invented"),
        ("at ear level", "another place invented"),
        ("in an open space", "room_size large invented"),
        ("in a tight room", "room_size small invented"),
        ("in a ringing room", "reverberation highly reverberant invented"),
        ("several metres off", "distance far invented"),
        ("to wake you up", "elevation up invented"),
        ("in a low voice", "elevation down invented"),
        ("back", "direction back invented"),
        ("as doors close", "distance near invented"),
    ],
)
def test_each_word_of_a_place_is_known_where_the_content_does_not_hold_it(told, fault):
    rewrite = f"A dog barks, {told}."
    assert fault_of(rewrite, SpatialWords(), "a dog barks") == fault
    assert fault_of(rewrite, SpatialWords(), f"a dog barks {told}") is None
    # Another word of the same place in the content is no excuse.
    assert fault_of(rewrite, SpatialWords(), "resounding, afar, a dog barks") == fault


def test_the_prompt_says_the_caption_and_every_word():
    prompt = prompt_for("a dog barks from the left.", LEFT_NEAR)
    assert "a dog barks from the left." in prompt
    assert "direction: left" in prompt
    assert "distance: near" in prompt
    assert "elevation" not in prompt
    assert "size of the room: large" in prompt_for("rain.", ROOM)
    assert prompt != prompt_for("a dog barks from the left.", LEFT_NEAR, 1)
    assert "Add nothing" in prompt_for("rain falls.", SpatialWords())


def test_answers_become_captions():
    assert clean("  'A dog barks'  ") == "A dog barks."
    assert clean("\u201cA dog barks.\u201d") == "A dog barks."


class Model:
    """Rewrites by a function of the caption in the prompt; counts what it was asked."""

    name = "tiny-llm"

    def __init__(self, rewrite):
        self.rewrite, self.asked, self.lock = rewrite, [], threading.Lock()

    def complete(self, prompt):
        with self.lock:
            self.asked.append(prompt)
        return self.rewrite(re.search("Caption: (.*)\n", prompt).group(1))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "manifest.json").write_text('{"fingerprint": "f00"}')
    return tmp_path


def rewrite(folder, model, **options):
    options = {"fingerprint": "f00", "progress": False} | options
    return rewrite_scenes(SCENES, model=model, out=folder / REWRITTEN, **options)


def test_a_table_is_written_and_read(folder):
    counts = rewrite(folder, Model(lambda caption: f"Listen: {caption}"))
    assert counts == {"rewritten": 12}
    found = read_rewrites(folder)
    groups = [g for name in ("train_k0", "train_k1") for g in SCENES.source(name)]
    assert found == {
        (group.scene_id, 0): Rewritten(
            (member_words(group)[0] or [SpatialWords()])[0], (f"Listen: {group.captions[0]}",)
        )
        for group in groups
    }
    header = json.loads((folder / REWRITTEN).read_text().splitlines()[0])
    assert header["model"] == "tiny-llm"
    assert header["splits"] == ["train_k0", "train_k1"]
    assert header["counts"] == {"rewritten": 12}


def test_refused_rewrites_are_counted_and_templates_stay(folder):
    def forgetful(caption):
        return caption.replace("left", "right")

    counts = rewrite(folder, Model(forgetful), splits=("train_k1",))
    groups = SCENES.source("train_k1")
    left = [group for group in groups if member_words(group)[0][0].direction == "left"]
    assert left
    assert counts == {"rewritten": 6 - len(left), "direction left lost": len(left)}
    assert set(read_rewrites(folder)) == {(g.scene_id, 0) for g in groups} - {
        (g.scene_id, 0) for g in left
    }


def test_garbage_leaves_every_template(folder):
    counts = rewrite(folder, Model(lambda caption: "{]"))
    assert counts == {"rewritten": 0, "too short or too long": 12}
    assert read_rewrites(folder) == {}


def test_several_rewrites_of_a_caption(folder):
    manners = iter(range(1000))
    model = Model(lambda caption: f"{next(manners) % 3} times: {caption}")
    counts = rewrite(folder, model, variants=2, workers=1, splits=("train_k1",))
    assert counts == {"rewritten": 12}
    assert len(model.asked) == len(set(model.asked)) == 12
    assert {len(said.captions) for said in read_rewrites(folder).values()} <= {1, 2}
    assert max(len(said.captions) for said in read_rewrites(folder).values()) == 2


def test_nothing_is_overwritten(folder):
    path = folder / REWRITTEN
    path.write_text("mine")
    model = Model(str)
    with pytest.raises(InputError, match=r"rewritten\.jsonl: exists; nothing is overwritten"):
        rewrite(folder, model)
    assert model.asked == []
    assert path.read_text() == "mine"
    path.unlink()

    def slow(caption):
        path.write_text("somebody else's")
        return caption

    with pytest.raises(InputError, match="exists; nothing is overwritten"):
        rewrite(folder, Model(slow))
    assert path.read_text() == "somebody else's"
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", REWRITTEN]


def test_a_failure_leaves_no_table(folder):
    def refuse(caption):
        raise InputError("http://x: no answer")

    with pytest.raises(InputError, match="no answer"):
        rewrite(folder, Model(refuse))
    assert [p.name for p in folder.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ("train_k2",)}, "split 'train_k2': captions of one source or of plain clips"),
        ({"splits": ("test_k1",)}, "split 'test_k1': .* among train_k0, train_k1"),
        ({"variants": 0}, "variants 0: must be 1 to 5"),
        ({"variants": 6}, "variants 6: must be 1 to 5"),
        ({"workers": 0}, "workers 0: must be 1 to 256"),
    ],
)
def test_unusable_options_are_named(folder, options, message):
    with pytest.raises(InputError, match=message):
        rewrite(folder, Model(str), **options)


def test_stereo_scenes_are_refused(folder):
    stereo = FakeScenes(groups=1, splits=("train_k1",))
    with pytest.raises(InputError, match="train_k1/0: its captions are in the words of stereo"):
        rewrite_scenes(stereo, "f00", Model(str), folder / REWRITTEN, progress=False)


def test_tables_that_cannot_be_used(folder):
    assert read_rewrites(folder) == {}
    rewrite(folder, Model(str))
    path = folder / REWRITTEN
    whole = path.read_text()
    (folder / "manifest.json").write_text('{"fingerprint": "other"}')
    with pytest.raises(InputError, match="tells of other scenes"):
        read_rewrites(folder)
    (folder / "manifest.json").write_text('{"fingerprint": "f00"}')
    for damaged in (whole[:-30], "", "notes\n", '{"format": "x", "fingerprint": "f00"}\n'):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"rewritten\.jsonl: (is not readable|tells of other)"):
            read_rewrites(folder)
