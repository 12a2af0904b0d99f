import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fakes import FakeScenes, fake_foa_group, fake_group

from spatial_clap_jax.acoustics.captions import compose_caption
from spatial_clap_jax.acoustics.directions import PHRASE_SETS, phrase_set
from spatial_clap_jax.acoustics.foa import unit_vectors
from spatial_clap_jax.data.labels import LABELS
from spatial_clap_jax.data.pipeline import PipelineConfig, collate, train_batches
from spatial_clap_jax.data.rewritten import Rewritten
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.data.transforms import draw_member_among_rivals
from spatial_clap_jax.data.wording import meanings, member_directions, member_words
from spatial_clap_jax.errors import InputError

SCENES = FakeScenes()
PLAIN = {"gain_db": (0.0, 0.0), "swap": False, "shift": False, "redraw": False}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SCENES.manifest["caption_corpus"], 1000, 32)


def config(captions: int = 16, **changes) -> PipelineConfig:
    return PipelineConfig(captions_per_batch=captions, **changes)


def batches(tokenizer, count, config, scenes=SCENES, scl=True, seed=0, **parts):
    iterator = train_batches(scenes, config, tokenizer, scl=scl, seed=seed, **parts)
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def run(*arguments):
    """A Python process of its own that imports from where this one does."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def stored_rows(split):
    """Every member of a split as it is stored: (waveform, caption) by audio bytes."""
    return {
        wave.tobytes(): (group, i)
        for group in SCENES.source(split)
        for i, wave in enumerate(group.waveforms())
    }


def test_batch_holds_the_stored_groups_when_nothing_is_augmented(tokenizer):
    (batch,) = batches(tokenizer, 1, config(**PLAIN))
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "audio": ("float32", (16, 2, 800)),
        "tokens": ("int32", (16, 32)),
        "token_mask": ("bool", (16, 32)),
        "group": ("int32", (16,)),
        "meaning": ("int32", (16,)),
    }
    stored = stored_rows("train_k1") | stored_rows("train_k2")
    rows = [stored[audio.tobytes()] for audio in batch["audio"]]
    assert [len(group.clips) for group, _ in rows] == [1] * 4 + [2] * 12
    tokens, mask = tokenizer.encode([group.captions[i] for group, i in rows])
    np.testing.assert_array_equal(batch["tokens"], tokens)
    np.testing.assert_array_equal(batch["token_mask"], mask)
    assert batch["meaning"].tolist() == [meanings(group)[i] for group, i in rows]
    for first in range(4, 16, 2):  # Members side by side.
        assert [rows[first][1], rows[first + 1][1]] == [0, 1]
        assert rows[first][0].scene_id == rows[first + 1][0].scene_id
        assert batch["group"][first] == batch["group"][first + 1]
        assert batch["meaning"][first] != batch["meaning"][first + 1]
    assert len(set(batch["group"].tolist())) == 4 + 6


def test_without_scl_a_batch_has_as_many_captions_of_twice_as_many_mixtures(tokenizer):
    scenes = FakeScenes(groups=24)
    members = set()
    for batch in batches(tokenizer, 4, config(**PLAIN), scenes, scl=False):
        assert batch["audio"].shape == (16, 2, 800)
        assert len(set(batch["group"].tolist())) == 16
        audio = {
            wave.tobytes(): i
            for g in scenes.source("train_k2")
            for i, wave in enumerate(g.waveforms())
        }
        members.update(found := [audio[row.tobytes()] for row in batch["audio"][4:]])
        assert len(found) == 12
    assert members == {0, 1}


@pytest.mark.parametrize(
    ("splits", "share", "singles"),
    [
        (("train_k1",), 0.75, 16),
        (("train_k2",), 0.25, 0),
        (("train_k1", "train_k2"), 0.0, 16),
        (("train_k1", "train_k2"), 0.5, 8),
        (("train_k1", "train_k2"), 1.0, 0),
        (("train_k1", "train_k2", "train_k3"), 0.7, 4),
    ],
)
@pytest.mark.parametrize("scl", [True, False])
def test_the_splits_that_exist_decide_on_the_mix(tokenizer, splits, share, singles, scl):
    scenes = FakeScenes(groups=16, splits=splits)
    (batch,) = batches(tokenizer, 1, config(**PLAIN, mixture_share=share), scenes, scl=scl)
    single_ids = set(collate(FakeScenes(16).source("train_k1"), tokenizer)["group"].tolist())
    is_single = [number in single_ids for number in batch["group"].tolist()]
    assert is_single == [True] * singles + [False] * (16 - singles)


def test_each_epoch_holds_every_group_once_in_a_new_order(tokenizer):
    # 8 groups of each kind: two batches of 4 singles and 4 mixtures are an epoch.
    epochs = []
    stream = batches(tokenizer, 6, config(12, mixture_share=2 / 3, **PLAIN))
    for first, second in zip(stream[::2], stream[1::2], strict=True):
        singles = [*first["group"][:4], *second["group"][:4]]
        mixtures = [*first["group"][4::2], *second["group"][4::2]]
        assert len(set(singles)) == len(set(mixtures)) == 8
        epochs.append((singles, mixtures))
    assert {frozenset(singles) for singles, _ in epochs} == {frozenset(epochs[0][0])}
    for kind in (0, 1):
        assert len({tuple(epoch[kind]) for epoch in epochs}) == 3


def test_augmentation_is_drawn_anew_in_each_epoch_from_the_seed_alone(tokenizer):
    full = config(32, mixture_share=0.5)
    stream = batches(tokenizer, 3, full)
    for a, b in zip(stream, batches(tokenizer, 3, full), strict=True):
        assert_same(a, b)
    other = batches(tokenizer, 3, full, seed=1)
    assert not np.array_equal(stream[0]["group"], other[0]["group"])
    # 8 mixtures a batch are an epoch, so each batch has every mixture once.
    seen = {}
    for batch in stream:
        for row in range(16, 32):
            seen.setdefault(int(batch["group"][row]), []).append(batch["audio"][row].tobytes())
    assert all(len(set(audio)) == 6 for audio in seen.values())
    captions = {row.tobytes() for batch in stream for row in batch["tokens"][16:]}
    assert len(captions) > 30


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ({}, set()),
        ({"gain_db": (-6.0, 6.0)}, {"audio"}),
        ({"swap": True}, {"audio", "tokens", "meaning"}),
        ({"shift": True}, {"audio"}),
        ({"redraw": True}, {"tokens"}),
    ],
)
def test_each_switch_changes_what_it_says(tokenizer, switch, changed):
    (plain,) = batches(tokenizer, 1, config(**PLAIN))
    (batch,) = batches(tokenizer, 1, config(**(PLAIN | switch)))
    differs = {name for name in batch if not np.array_equal(batch[name], plain[name])}
    assert differs - {"token_mask"} == changed


@pytest.mark.parametrize("scl", [True, False])
@pytest.mark.parametrize("captions", [16, 24])
@pytest.mark.parametrize("layout", ["neighbours", "interleaved", "single rows"])
def test_processes_share_what_one_process_would_see(tokenizer, scl, captions, layout):
    settings = config(captions, mixture_share=0.6)
    whole = batches(tokenizer, 2, settings, scl=scl)
    for count in (2, 4):
        order = {
            "neighbours": np.arange(captions).reshape(count, -1),
            # Two devices a process, each with rows of its own that lie apart.
            "interleaved": np.arange(captions).reshape(2, count, -1).swapaxes(0, 1),
            # A process may have one member of a group and another process the other.
            "single rows": np.arange(captions).reshape(-1, count).T,
        }[layout].reshape(count, -1)
        for rows in order:
            part = batches(tokenizer, 2, settings, scl=scl, rows=rows)
            for step in range(2):
                assert_same(part[step], {name: x[rows] for name, x in whole[step].items()})


def test_a_process_reads_no_group_of_others(tokenizer):
    read = []

    class Watched(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    @dataclasses.dataclass(frozen=True)
    class WatchedScenes(FakeScenes):
        def source(self, split):
            return Watched(super().source(split))

    scenes = WatchedScenes(groups=64, splits=("train_k2",))
    settings = config(64, prefetch=1, **PLAIN)
    iterator = train_batches(scenes, settings, tokenizer, scl=True, seed=0, rows=range(8))
    next(iterator)
    iterator.close()
    # 8 rows are 4 groups; no more than two batches ahead are built.
    assert 4 <= len(read) <= 12


@pytest.mark.parametrize("rows", [[], [3, 2], [1, 1], [-1, 0], [15, 16]])
def test_rows_that_are_not_in_the_batch_are_refused(tokenizer, rows):
    with pytest.raises(InputError, match=r"rows: .* of a batch of 16 captions"):
        train_batches(SCENES, config(), tokenizer, scl=True, seed=0, rows=rows)


def test_state_continues_with_the_next_batch(tokenizer):
    iterator = train_batches(SCENES, config(), tokenizer, scl=True, seed=3)
    first, state = next(iterator), json.loads(json.dumps(iterator.get_state()))
    second = next(iterator)
    iterator.set_state(state)
    assert iterator.get_state() == state
    assert_same(next(iterator), second)
    iterator.set_state({"step": 0})
    iterator.start_prefetch()
    assert_same(next(iterator), first)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed iterator"):
        next(iterator)


_CONTINUE = """
import hashlib, json, multiprocessing, sys
from fakes import FakeScenes
from spatial_clap_jax.data.pipeline import PipelineConfig, train_batches
from spatial_clap_jax.data.rewritten import Rewritten
from spatial_clap_jax.data.tokens import Tokenizer

if __name__ == "__main__":
    scenes, digests, left = FakeScenes(), [], []
    tokenizer = Tokenizer.train(scenes.manifest["caption_corpus"], 1000, 32)
    for workers in (2, 0):
        config = PipelineConfig(captions_per_batch=16, workers=workers)
        iterator = train_batches(scenes, config, tokenizer, scl=True, seed=5)
        iterator.set_state(json.loads(sys.argv[1]))
        for _ in range(3):
            batch = next(iterator)
            digests.append(
                hashlib.sha256(b"".join(batch[k].tobytes() for k in sorted(batch))).hexdigest()
            )
        left.append(len(multiprocessing.active_children()))
        iterator.close()  # Batches beyond the third are under way.
        left.append(len(multiprocessing.active_children()))
    print(json.dumps([digests, left]))
"""


@pytest.mark.slow
def test_a_fresh_process_continues_and_leaves_nothing_behind(tokenizer, tmp_path):
    """Saved without workers, continued with two and with none; the tracker warns of leaks."""
    iterator = train_batches(SCENES, config(), tokenizer, scl=True, seed=5)
    for _ in range(2):
        next(iterator)
    state = json.dumps(iterator.get_state())
    expected = []
    for _ in range(3):
        batch = next(iterator)
        content = b"".join(batch[name].tobytes() for name in sorted(batch))
        expected.append(hashlib.sha256(content).hexdigest())
    iterator.close()
    script = tmp_path / "continue.py"
    script.write_text(_CONTINUE)
    done = run(str(script), state)
    digests, children = json.loads(done.stdout)
    assert digests == expected + expected
    assert children == [2, 0, 0, 0]
    assert "leaked" not in done.stderr


def test_no_jax_on_the_way_of_the_workers():
    """Grain takes JAX's tree functions if it finds them; nothing of ours asks for JAX."""
    code = (
        "import sys\n"
        "sys.modules['jax'] = None\n"
        "from fakes import FakeScenes\n"
        "from spatial_clap_jax.data.pipeline import PipelineConfig, train_batches\n"
        "from spatial_clap_jax.data.tokens import Tokenizer\n"
        "scenes = FakeScenes()\n"
        "tokenizer = Tokenizer.train(scenes.manifest['caption_corpus'], 300, 64)\n"
        "config = PipelineConfig(captions_per_batch=8)\n"
        "batches = train_batches(scenes, config, tokenizer, scl=True, seed=0)\n"
        "print(next(batches)['audio'].shape, [m for m in sys.modules if m.startswith('jaxlib')])"
    )
    done = run("-c", code)
    assert done.stdout == "(8, 2, 800) []\n"


def test_collate_scales_int16_to_float32(tokenizer):
    groups = [fake_group("train", k, 1) for k in (1, 2, 3)]
    batch = collate(groups, tokenizer)
    expected = np.concatenate([g.audio.astype(np.float64) * g.scale for g in groups])
    np.testing.assert_allclose(batch["audio"], expected, rtol=1e-6)
    assert batch["group"].tolist() == [
        number
        for g, number in zip(groups, batch["group"][[0, 1, 3]], strict=True)
        for _ in g.captions
    ]


def test_meaning_is_the_set_of_contents_in_directions():
    group = fake_group("train", 2, 0)
    plain = dataclasses.replace(
        group,
        categories=("dog", "bell"),
        azimuth_deg=np.float32([60.0, 0.0]),
        permutations=np.int32([[0, 1], [1, 0]]),
    )
    straight, crossed = meanings(plain)
    assert straight != crossed
    # Told in the other order, somewhere else in the same direction, by another clip: the same.
    turned = dataclasses.replace(
        plain,
        categories=("bell", "dog"),
        clips=("x", "y"),
        azimuth_deg=np.float32([-5.0, 80.0]),
    )
    assert meanings(turned) == [straight, crossed]
    mirrored = dataclasses.replace(plain, azimuth_deg=-plain.azimuth_deg)
    assert set(meanings(mirrored)).isdisjoint({straight, crossed})
    # Without a category the captions are the content: two clips of the same words are one.
    words = (("a dog barks", "barking"), ("A bell rings",))
    nameless = dataclasses.replace(plain, categories=("", ""), contents=words)
    assert set(meanings(nameless)).isdisjoint({straight, crossed})
    same = dataclasses.replace(
        nameless, clips=("x", "y"), contents=(("barking", "a dog barks"), ("a bell rings",))
    )
    assert meanings(same) == meanings(nameless)
    other = dataclasses.replace(nameless, contents=(("a dog barks",), ("a bell rings",)))
    assert set(meanings(other)).isdisjoint(meanings(nameless))


def test_numbers_of_meanings_and_groups_never_change(tokenizer):
    """Not `hash`, which each process seeds anew; fixed here once and for all."""
    group = fake_group("train", 2, 0)
    assert collate([group], tokenizer)["group"].tolist() == [1489971749, 1489971749]
    assert meanings(group) == [-205330957, -472042642]


def test_an_empty_split_is_refused(tokenizer):
    with pytest.raises(InputError, match="split: 'train_k1' holds no scenes; render it again"):
        batches(tokenizer, 0, config(), FakeScenes(groups=0))


def said_of(caption, names=tuple(PHRASE_SETS)):
    """Content: (phrase set, direction class) of each clause of a caption."""
    said = {}
    for clause in caption.strip().rstrip(".").split(", and "):
        ((name, place, content),) = (
            (name, place, clause.removesuffix(f" {phrase}"))
            for name in names
            for place, phrase in enumerate(phrase_set(name))
            if clause.endswith(f" {phrase}")
        )
        said[content] = (name, place)
    return said


def test_a_rival_is_the_caption_of_the_exchanged_places(tokenizer):
    (batch,) = batches(tokenizer, 1, config(**PLAIN, rivals=True), scl=False)
    (named,) = batches(tokenizer, 1, config(**PLAIN), scl=False)
    added = {name: batch[name] for name in batch.keys() - named.keys()}
    assert {name: (array.dtype.name, array.shape) for name, array in added.items()} == {
        "rival_tokens": ("int32", (16, 32)),
        "rival_token_mask": ("bool", (16, 32)),
        "has_rival": ("bool", (16,)),
    }
    stored = stored_rows("train_k1") | stored_rows("train_k2")
    for row, audio in enumerate(batch["audio"]):
        group, i = stored[audio.tobytes()]
        assert batch["has_rival"][row] == (len(group.clips) == 2)
        contents = [options[0] for options in group.contents]
        # Of a single source its own caption fills the place.
        exchanged = member_directions(group)[i][::-1]
        orders = itertools.permutations(range(len(contents)))
        tokens, mask = tokenizer.encode([compose_caption(contents, exchanged, o) for o in orders])
        rival, rival_mask = batch["rival_tokens"][row], batch["rival_token_mask"][row]
        assert [rival.tolist(), rival_mask.tolist()] in [
            [t.tolist(), m.tolist()] for t, m in zip(tokens, mask, strict=True)
        ]
        assert np.array_equal(rival, batch["tokens"][row]) == (not batch["has_rival"][row])
    assert batch["has_rival"].tolist() == [False] * 4 + [True] * 12


def test_rivals_follow_every_augmentation_of_their_scene():
    tokenizer = Tokenizer.train(SCENES.manifest["caption_corpus"], 1000, 64)
    names = ("stage", "from")
    settings = config(32, mixture_share=1.0, rivals=True, phrases=names)
    seen = set()
    for batch in batches(tokenizer, 2, settings, scl=False):
        assert batch["has_rival"].all()
        assert not batch["token_mask"].all(axis=1).any()  # none is cut
        texts = [tokenizer.backend.decode_batch(batch[name]) for name in ("tokens", "rival_tokens")]
        for own, rival in zip(*texts, strict=True):
            own, rival = said_of(own, names), said_of(rival, names)
            # The same words for the same clips, from the same set, at each other's places.
            assert rival == dict(zip(own, reversed(own.values()), strict=True))
            assert len({name for name, _ in own.values()}) == 1
            seen.update(own.values())
    assert {name for name, _ in seen} == set(names)
    assert {place for _, place in seen} == set(range(5))


def events_of(group, places, classes):
    """Pairs of a class and a direction, by hand."""
    pairs = zip(group.categories, places, strict=True)
    return {(classes.index(category), place) for category, place in pairs if category}


def test_events_say_what_sounds_where_in_each_member(tokenizer):
    groups = [fake_group("train", 1, 0), fake_group("train", 2, 0)]
    classes = sorted({category for group in groups for category in group.categories} - {""})
    found = collate(groups, tokenizer, labels=("events",), classes=classes)["events"]
    members = [(group, places) for group in groups for places in member_directions(group)]
    assert found.shape == (len(members), len(classes), 5)
    assert found.dtype == np.float32
    for row, (group, places) in zip(found, members, strict=True):
        assert set(zip(*np.nonzero(row), strict=True)) == events_of(group, places, classes)
        assert set(np.unique(row)) == {0.0, 1.0}


def test_rival_events_are_those_of_the_exchanged_places(tokenizer):
    single, pair = fake_group("train", 1, 0), fake_group("train", 2, 0)
    classes = sorted({*single.categories, *pair.categories} - {""})
    labels = ("events", "rival_events")
    drawn = draw_member_among_rivals(pair, np.random.default_rng(0))
    found = collate([single, drawn], tokenizer, True, labels, classes=classes)
    of_single, of_pair = found["rival_events"]
    np.testing.assert_array_equal(of_single, found["events"][0])
    (places,) = member_directions(drawn)
    assert set(zip(*np.nonzero(of_pair), strict=True)) == events_of(drawn, places[::-1], classes)
    assert not np.array_equal(of_pair, found["events"][1])


def test_events_of_a_clip_without_a_category_are_refused(tokenizer):
    group = dataclasses.replace(fake_group("train", 1, 0), categories=("",))
    with pytest.raises(InputError, match=r"train_k1/0: its clip .* has no category, so that no la"):
        collate([group], tokenizer, labels=("events",), classes=("dog",))


def test_several_labels_of_a_clip_all_count(tokenizer):
    group = dataclasses.replace(fake_group("train", 1, 0), categories=("rain;dog",))
    ((row,),) = [collate([group], tokenizer, labels=("events",), classes=("dog", "rain"))["events"]]
    ((place,),) = member_directions(group)
    assert set(zip(*np.nonzero(row), strict=True)) == {(0, place), (1, place)}
    other = dataclasses.replace(group, categories=("dog;rain",))
    assert meanings(other) == meanings(group)


def test_events_need_classes(tokenizer):
    group = fake_group("train", 1, 0)
    with pytest.raises(InputError, match=r"the data have the class .* lack; name all classes"):
        collate([group], tokenizer, labels=("events",), classes=("nothing of the kind",))
    with pytest.raises(InputError, match="classes: there are none, but the model learns them"):
        train_batches(SCENES, config(), tokenizer, scl=False, seed=0, labels=("events",))


def test_processes_share_rivals(tokenizer):
    settings = config(8, mixture_share=0.5, rivals=True)
    (whole,) = batches(tokenizer, 1, settings, scl=False)
    for rows in ([0, 1, 2, 3], [3, 4, 7]):
        (part,) = batches(tokenizer, 1, settings, scl=False, rows=rows)
        assert_same(part, {name: x[rows] for name, x in whole.items()})


def test_collated_rivals_are_the_first_of_each_group(tokenizer):
    rng = np.random.default_rng(0)
    groups = [draw_member_among_rivals(fake_group("train", k, 2), rng) for k in (3, 1, 2)]
    groups.append(fake_group("train", 2, 5))  # both members, no rival
    batch = collate(groups, tokenizer, rivals=True)
    expected = [
        groups[0].rivals[0],
        groups[1].captions[0],
        groups[2].rivals[0],
        *groups[3].captions,
    ]
    tokens, mask = tokenizer.encode(expected, truncate=True)
    np.testing.assert_array_equal(batch["rival_tokens"], tokens)
    np.testing.assert_array_equal(batch["rival_token_mask"], mask)
    assert batch["has_rival"].tolist() == [True, False, True, False, False]
    assert "has_rival" not in collate(groups, tokenizer)


def test_rivals_with_scl_are_refused(tokenizer):
    with pytest.raises(InputError, match=r"data\.rivals: True, but with SCL .* loss\.scl to False"):
        batches(tokenizer, 0, config(rivals=True), scl=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phrases": ("from",), "redraw": False}, r"phrases: \('from',\) need redraw True"),
        ({"phrases": ("side", "from"), "redraw": False}, "need redraw True"),
        ({"phrases": ()}, r"phrases: \(\) need redraw True and at least one set"),
        ({"phrases": ("side", "clock")}, "phrases: 'clock' is none of the sets side, ahead"),
    ],
)
def test_phrases_that_cannot_be_drawn_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


FOA = FakeScenes(splits=("train_k0", "train_k1", "train_k2"), foa=True)
STILL = PLAIN | {"rotate": False}


def test_plain_clips_come_first_in_their_share(tokenizer):
    settings = config(20, mixture_share=0.5, plain_share=0.2, **STILL)
    for scl in (True, False):
        (batch,) = batches(tokenizer, 1, settings, FOA, scl=scl, labels=("has_place",))
        assert batch["audio"].shape == (20, 4, 800)
        same = (batch["audio"] == batch["audio"][:, :1]).all(axis=(1, 2))
        assert same.tolist() == [True] * 4 + [False] * 16
        assert batch["has_place"].tolist() == [False] * 4 + [True] * 8 + [False] * 8
    (none,) = batches(tokenizer, 1, config(20, **STILL), FOA)
    assert not (none["audio"] == none["audio"][:, :1]).all(axis=(1, 2)).any()
    (all_plain,) = batches(tokenizer, 1, config(8, plain_share=1.0, **STILL), FOA)
    assert (all_plain["audio"] == all_plain["audio"][:, :1]).all()


def test_processes_share_plain_clips_too(tokenizer):
    settings = config(16, mixture_share=0.5, plain_share=0.25, swap=False, rotate=True)
    (whole,) = batches(tokenizer, 1, settings, FOA, labels=tuple(LABELS))
    for rows in ([0, 1, 8, 15], [3, 4, 5]):
        (part,) = batches(tokenizer, 1, settings, FOA, rows=rows, labels=tuple(LABELS))
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][rows], err_msg=name)


def test_labels_tell_the_place_of_a_single_source(tokenizer):
    groups = [fake_foa_group("train", k, 4) for k in (0, 1, 2)]
    batch = collate(groups, tokenizer, labels=tuple(LABELS))
    for name, (shape, kind) in LABELS.items():
        assert batch[name].shape == (4, *shape)
        assert batch[name].dtype == kind
    single = groups[1]
    assert batch["has_place"].tolist() == [False, True, False, False]
    np.testing.assert_allclose(
        batch["direction"][1], unit_vectors(single.azimuth_deg, single.elevation_deg)[0], rtol=1e-6
    )
    assert batch["distance_m"][1] == single.distance_m[0]
    assert batch["floor_area_m2"].tolist() == [0, 70, 0, 0]
    attributes = batch["attributes"]
    assert attributes[1, :4].tolist() == [
        *(single.azimuth_deg[0], single.elevation_deg[0], single.distance_m[0], 210)
    ]
    np.testing.assert_array_equal(attributes[1, 4:24], single.drr_bands_db[0])
    np.testing.assert_array_equal(attributes[1, 24:], single.t30_bands_s[0])
    assert np.isnan(attributes[[0, 2, 3]]).all()
    assert not batch["direction"][[0, 2, 3]].any()
    assert not set(LABELS) & set(collate(groups, tokenizer))


def test_labels_of_stereo_know_no_bands(tokenizer):
    batch = collate([fake_group("train", 1, 0)], tokenizer, labels=("attributes", "floor_area_m2"))
    assert batch["floor_area_m2"].tolist() == [30]
    assert np.isfinite(batch["attributes"][0, :4]).all()
    assert np.isnan(batch["attributes"][0, 4:]).all()


def test_labels_turn_with_the_field(tokenizer):
    settings = config(16, mixture_share=0.0, **(PLAIN | {"rotate": True}))
    (batch,) = batches(tokenizer, 1, settings, FOA, labels=("direction",))
    (still,) = batches(tokenizer, 1, config(16, mixture_share=0.0, **STILL), FOA)
    audio = batch["audio"].astype(np.float64)
    seen = np.mean(audio[:, :1] * audio[:, [3, 1, 2]], axis=-1)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    np.testing.assert_allclose(seen, batch["direction"], atol=1e-3)
    np.testing.assert_allclose(audio[:, [0, 2]], still["audio"][:, [0, 2]], rtol=1e-5)
    assert not np.allclose(audio[:, 1], still["audio"][:, 1], atol=1e-3)


def test_scl_keeps_both_members_of_a_field(tokenizer):
    settings = config(8, mixture_share=1.0, swap=False, rotate=True)
    (batch,) = batches(tokenizer, 1, settings, FOA)
    assert (batch["group"][::2] == batch["group"][1::2]).all()
    assert (batch["meaning"][::2] != batch["meaning"][1::2]).all()


def test_what_plain_clips_labels_and_rotations_cannot_be(tokenizer):
    with pytest.raises(InputError, match=r"plain_share: 0.5 .* no split train_k0"):
        batches(tokenizer, 0, config(plain_share=0.5))
    with pytest.raises(InputError, match=r"plain_share: 1.5 is no share"):
        config(plain_share=1.5)
    with pytest.raises(InputError, match=r"labels: 'distance' is none of has_place, direction"):
        batches(tokenizer, 0, config(), labels=("distance",))
    with pytest.raises(InputError, match=r"rotate: True, but .* `swap` mirrors stereo"):
        config(rotate=True)


def test_captions_of_a_language_model_are_told_in_their_share(tokenizer):
    scenes = FakeScenes(splits=("train_k1",), foa=True)
    source = scenes.source("train_k1")
    rewrites = {
        (source[i].scene_id, 0): Rewritten(member_words(source[i])[0][0], ("zebra",))
        for i in range(len(source))
    }
    zebra, _ = tokenizer.encode(["zebra"])
    settings = {"mixture_share": 0.0, "swap": False, "rotate": True}
    for share in (0.0, 0.5, 1.0):
        config_of_share = config(64, rewritten_share=share, **settings)
        (batch,) = batches(tokenizer, 1, config_of_share, scenes, rewrites=rewrites)
        told = (batch["tokens"] == zebra).all(axis=1).mean()
        assert abs(told - share) <= (0.25 if share == 0.5 else 0.0)
    with pytest.raises(InputError, match=r"rewritten_share: 0.5, but .* `spatial-clap rewrite`"):
        batches(tokenizer, 0, config(8, rewritten_share=0.5), scenes)
