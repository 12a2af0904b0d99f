"""Sentence embeddings on disk: each caption's own, resumed, never overwritten, in batches."""

import hashlib
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from fakes import CATEGORIES, FakeScenes, fake_clip, fake_group

from spatial_clap_jax.data import sentences as module
from spatial_clap_jax.data.labels import check_clips, check_labels, multi_hot
from spatial_clap_jax.data.pipeline import PipelineConfig, collate, train_batches
from spatial_clap_jax.data.sentences import Sentences, captions_of, write_sentences
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError

CAPTIONS = [f"a sound of number {n}" for n in range(11)]
CLASSES = ("siren", "bell", "dog", "rain", "never heard")


def vector(text: str) -> np.ndarray:
    seed = list(hashlib.sha256(text.encode()).digest())
    return np.random.default_rng(seed).normal(size=6).astype(np.float32)


def embed(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def write(out: Path, captions=CAPTIONS, fingerprint="1", width=6, embed=embed, **options):
    return write_sentences(out, captions, "fake", fingerprint, width, embed, **options)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 4)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_caption_has_its_own_vector(tmp_path):
    dealt = []
    found = write(tmp_path / "s", [*CAPTIONS, "a sound of number 3."], done=dealt.append)
    assert (len(found), found.width, dealt) == (11, 6, [4, 8, 11])
    # Told with a period; in any order, repeatedly, and with or without one.
    asked = ["a sound of number 7.", *CAPTIONS, " a sound of number 7"]
    wanted = embed([f"{text.strip().rstrip('.')}." for text in asked])
    np.testing.assert_array_equal(found.vectors(asked), wanted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).vectors(asked), wanted)
    assert {name: len(data) > 0 for name, data in contents_of(tmp_path / "s").items()} == {
        "index.npy": True,
        "sentences-00000-of-00003.array_record": True,
        "sentences-00001-of-00003.array_record": True,
        "sentences-00002-of-00003.array_record": True,
        "sentences.json": True,
    }


def test_the_order_of_captions_changes_no_byte(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", CAPTIONS[::-1])
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")


@pytest.mark.parametrize("survives", [0, 1, 2])
def test_a_start_after_a_kill_goes_on(tmp_path, survives):
    write(tmp_path / "whole")
    asked: list[str] = []

    def killed(texts):
        if len(asked) == 4 * survives:
            raise KeyboardInterrupt
        asked.extend(texts)
        return embed(texts)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", embed=killed)
    with pytest.raises(InputError, match=r"lacks sentences-0000.*; run embed-text again"):
        Sentences(tmp_path / "s")
    # What a kill in the middle of a file leaves behind.
    (tmp_path / "s" / ".sentences-00002-of-00003.array_record.partial").write_bytes(b"half")
    write(tmp_path / "s", embed=lambda texts: asked.extend(texts) or embed(texts))
    assert len(asked) == 11
    assert contents_of(tmp_path / "s") == contents_of(tmp_path / "whole")


def test_a_kill_before_the_first_file(tmp_path):
    (tmp_path / ".sentences.json.partial").write_text("{")
    assert len(write(tmp_path)) == 11


def test_what_is_finished_is_left_as_it_is(tmp_path):
    write(tmp_path / "s")
    before = contents_of(tmp_path / "s")

    def never(texts):
        raise AssertionError

    write(tmp_path / "s", embed=never)
    for change, named in (
        ({"captions": CAPTIONS[:-1]}, "count is 11 there and 10 here"),
        ({"captions": [*CAPTIONS[:-1], "another"]}, "captions is"),
        ({"fingerprint": "2"}, "fingerprint is '1' there and '2' here"),
        ({"width": 7}, "width is 6 there and 7 here"),
    ):
        with pytest.raises(InputError, match=f"holds other sentences: {named}.*another --out"):
            write(tmp_path / "s", embed=never, **change)
    assert contents_of(tmp_path / "s") == before


def test_what_is_foreign_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(InputError, match=r"holds no sentences\.json; .* an empty place"):
        write(tmp_path)
    assert contents_of(tmp_path) == {"thesis.tex": b"ten years of work"}
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "thesis.tex")
    for text, named in (("{", "cannot be read"), ('{"format": "x"}', "cannot be read")):
        (tmp_path / "sentences.json").write_text(text)
        with pytest.raises(InputError, match=named):
            Sentences(tmp_path)
    with pytest.raises(InputError, match="is no folder with a"):
        Sentences(tmp_path / "nowhere")
    with pytest.raises(InputError, match="there are none; give at least one"):
        write(tmp_path / "none", [])


def test_a_missing_caption_is_named(tmp_path):
    found = write(tmp_path / "s")
    with pytest.raises(InputError, match=r"no vector of 'a cow\.'; run embed-text again"):
        found.vectors(["a sound of number 0", "a cow"])
    with pytest.raises(InputError, match=r"no vector of 'a cow\.' and 1 more"):
        found.check(["a cow", "a sound of number 0", "a horse"])
    found.check(CAPTIONS)


def test_an_index_of_other_shards_is_found_out(tmp_path):
    write(tmp_path / "s")
    other = write(tmp_path / "t", [f"another {n}" for n in range(11)])
    for shard in (tmp_path / "s").glob("*.array_record"):
        shard.write_bytes((tmp_path / "t" / shard.name).read_bytes())
    assert len(other) == 11
    with pytest.raises(InputError, match=r"index\.npy and its shards disagree"):
        Sentences(tmp_path / "s").vectors(CAPTIONS[:1])


def test_captions_of_tables(tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text("audiocap_id,caption\n1,A man talks.\n2,a dog  barks\n3,A man talks\n")
    assert captions_of(table) == ["A man talks.", "a dog barks."]
    table.write_text("file_name,caption_1,caption_2\na.wav,one,two\nb.wav,three,\n")
    assert captions_of(table) == ["one.", "two.", "three."]
    table.write_text("filename,category\na.wav,rain;Wind\nb.wav,gong\n")
    assert captions_of(table)[:2] == ["the sound of rain and wind.", "the sound of gong."]
    table.write_text("filename,category,caption\na.wav,Dog;Rain,\nb.wav,,a bell rings\n")
    assert captions_of(table) == ["the sound of dog and rain.", "a bell rings."]
    table.write_text("filename,category\na.wav,rain\nb.wav,;\n")
    with pytest.raises(InputError, match=r"captions\.csv: row 3: category ';' is empty; give each"):
        captions_of(table)
    table.write_text("filename,sound\na.wav,rain\n")
    with pytest.raises(InputError, match="lacks column caption or category; it has filename"):
        captions_of(table)
    table.write_text("filename,caption\na.wav,rain\nb.wav,.\n")
    with pytest.raises(InputError, match="row 3: has no caption"):
        captions_of(table)


def test_captions_of_scenes(tiny_scenes):
    with pytest.raises(InputError, match=r"captions tell places .*configs/clips\.py"):
        captions_of(tiny_scenes)


def plain_captions() -> list[str]:
    return [content for _, contents in CATEGORIES.values() for content in contents]


@pytest.fixture
def stored(tmp_path) -> Sentences:
    return write(tmp_path / "stored", plain_captions())


def test_batches_hold_the_vector_of_the_caption_that_is_told(stored):
    scenes = FakeScenes(splits=("train_k0",))
    tokenizer = Tokenizer.train(plain_captions(), 400, 16)
    config = PipelineConfig(captions_per_batch=8, swap=False)
    batches = train_batches(
        scenes,
        config,
        tokenizer,
        scl=False,
        seed=3,
        labels=("sentence",),
        sentences=stored,
    )
    of_tokens = {
        tokenizer.encode([f"{text}."])[0].tobytes(): vector(f"{text}.") for text in plain_captions()
    }
    told = set()
    for batch in itertools.islice(batches, 6):
        assert batch["sentence"].dtype == np.float32
        for tokens, found in zip(batch["tokens"], batch["sentence"], strict=True):
            np.testing.assert_array_equal(found, of_tokens[tokens.tobytes()])
            told.add(found.tobytes())
    batches.close()
    # Drawn anew in each epoch, of all that a clip may be told with.
    assert len(told) > len({group.captions for group in scenes.source("train_k0")})


def test_batches_hold_the_categories_of_each_row():
    groups = [fake_clip("train", i) for i in range(6)]
    tokenizer = Tokenizer.train(plain_captions(), 400, 16)
    found = collate(groups, tokenizer, labels=("categories",), classes=CLASSES)["categories"]
    for group, row in zip(groups, found, strict=True):
        named = [name for name, value in zip(CLASSES, row, strict=True) if value]
        assert named == [name for name in group.categories if name]
    pair = fake_group("train", 2, 1)
    of_pair = collate([pair], tokenizer, labels=("categories",), classes=CLASSES)["categories"]
    assert of_pair.shape == (2, 5)
    np.testing.assert_array_equal(of_pair[0], of_pair[1])
    assert of_pair[0].sum() == sum(map(bool, pair.categories))
    assert multi_hot(["rain; dog|rain", "", "bell"], CLASSES).tolist() == [
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
    ]


def test_workers_read_sentences(stored):
    scenes = FakeScenes(splits=("train_k0",))
    tokenizer = Tokenizer.train(plain_captions(), 400, 16)
    found = []
    for workers in (0, 1):
        config = PipelineConfig(captions_per_batch=4, swap=False, workers=workers)
        batches = train_batches(
            scenes,
            config,
            tokenizer,
            scl=False,
            seed=0,
            labels=("sentence", "categories"),
            sentences=stored,
            classes=CLASSES,
        )
        found.append(list(itertools.islice(batches, 2)))
        batches.close()
    for one, other in zip(*found, strict=True):
        for name in ("sentence", "categories"):
            np.testing.assert_array_equal(one[name], other[name])


def test_labels_that_cannot_be_told(stored):
    with pytest.raises(InputError, match=r"data\.sentences: None, but the model .* embed-text"):
        check_labels(("sentence",), None, ())
    with pytest.raises(InputError, match="classes: there are none"):
        check_labels(("categories",), None, ())
    with pytest.raises(InputError, match=r"'loudness' is none of has_place, .* categories"):
        check_labels(("loudness",), None, ())
    manifest = {
        "recipe": {"receiver": {"kind": "Mono"}},
        "caption_corpus": plain_captions(),
        "categories": [name for name in CATEGORIES if name],
    }
    both = ("sentence", "categories")
    check_clips(manifest, both, stored, CLASSES)
    more = {**manifest, "caption_corpus": [*plain_captions(), "a goat"]}
    with pytest.raises(InputError, match=r"no vector of 'a goat\.'"):
        check_clips(more, both, stored, CLASSES)
    with pytest.raises(InputError, match=r"have the class 'bell' and 1 more, .* 2 classes lack"):
        check_clips(manifest, both, stored, ("siren", "dog"))
    stereo = {**manifest, "recipe": {"receiver": {"kind": "StereoPair"}}}
    with pytest.raises(InputError, match=r"these scenes tell places too; render clips"):
        check_clips(stereo, both, stored, CLASSES)
    with pytest.raises(InputError, match="have the class 'zebra'"):
        multi_hot(["zebra"], CLASSES)


def test_the_header_is_for_people(tmp_path):
    write(tmp_path / "s")
    header = json.loads((tmp_path / "s" / "sentences.json").read_text())
    assert (header["encoder"], header["width"], header["count"]) == ("fake", 6, 11)
