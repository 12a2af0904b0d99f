"""Every form of a published tokenizer gives the ids that transformers' own classes give."""

# ruff: noqa: RUF001

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from fakes import FakeScenes

from spatial_clap_jax.data.tokens import Tokenizer

transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytestmark = pytest.mark.parity

CAPTIONS = Path(__file__).parents[3] / "shared" / "data" / "audiocaps" / "val.csv"
ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = 512
ODD = [
    "a",
    "A",
    ".",
    "a dog barks",
    "A Dog Barks On The LEFT",
    "  a dog barks",
    "a dog  barks   twice",
    "a dog barks ",
    " a ",
    "a\tdog\nbarks",
    "a\r\ndog",
    "a\u00a0dog\u2003barks",
    "a dog's bark isn't a cat's, we've heard; they'll say it's 'loud'",
    "DON'T I'M YOU'RE HE'D",
    "rain—heavy—falls… then “stops”",
    "1 2 3 10 100 1000000 3.14 1,000 50% -7 +8 2x4",
    "at 440Hz, 60dB(A), 16/44.1kHz",
    "hello@example.com http://a.b/c?d=e&f#g",
    "!?.,;:()[]{}<>/\\|@#$%^&*-_=+~`'\"",
    "....,,,,!!!!????",
    "naïve café über straße Ünïcödé",
    "cafe\u0301 e\u0308 n\u0303",
    "İstanbul ıI ẞß ſs ﬁ ﬂ",
    "Ελληνικά άέήίόύώ",
    "Собака лает слева",
    "Ёжик йод",
    "犬が左で吠える",
    "狗在左边叫 a dog 狗barks",
    "개가 짖다",
    "कुत्ता भौंकता है",
    "كلب ينبح على اليسار",
    "כלב נובח",
    "สุนัขเห่า",
    "🐕 barks 🐕🐕 loudly 🔊",
    "👨‍👩‍👧‍👦 talk 👍🏽 🇩🇪",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "barks" * 60,
    "犬" * 120,
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "a\u200bdog\u200d\ufeffbarks",
    "a\u00addog",
    "\x7f\x01 a",
    "a\ufffdb \U0001d11e",
    "①②③ ½ ² ™ ℃ Å Ⅷ",
    "ｆｕｌｌ　ｗｉｄｔｈ",
    "a-b a_b a/b a+b",
    "'s 't 're ' s",
    "dog.barks,loud(ly)now",
    "$5 £5 €5 ¥5",
    "\u0130 \u01c5 \u1e9e",
    "##s ##bark Ġa",
    "a<b>c",
]


def captions() -> list[str]:
    """Real captions where the data set lies beside the repository, else built-in ones."""
    if not CAPTIONS.is_file():
        return [*FakeScenes().manifest["caption_corpus"], *ODD]
    with CAPTIONS.open(encoding="utf-8", newline="") as file:
        return [row["caption"] for row in csv.DictReader(file)][:400]


TEXTS = [*ODD, *captions()[:60]]


@pytest.fixture(scope="module")
def byte_pieces() -> tokenizers.ByteLevelBPETokenizer:
    built = tokenizers.ByteLevelBPETokenizer()
    built.train_from_iterator(captions(), 600, 2, False, ROBERTA_SPECIALS)
    return built


@pytest.fixture(scope="module", params=[True, False], ids=["lower", "cased"])
def words(request) -> tuple[tokenizers.BertWordPieceTokenizer, bool]:
    built = tokenizers.BertWordPieceTokenizer(lowercase=request.param)
    built.train_from_iterator([*captions(), *ODD], 600, 2, 1000, special_tokens=BERT_SPECIALS)
    return built, request.param


def assert_same_ids(ours: Tokenizer | None, theirs, least=30):
    assert ours is not None
    assert (ours.begin_id, ours.end_id, ours.pad_id) == (
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.pad_token_id,
    )
    assert ours.vocabulary_size == len(theirs)
    different = set()
    for text in TEXTS:
        ids, mask = ours.encode([text])
        expected = theirs(text, padding="max_length", max_length=TOKENS)
        np.testing.assert_array_equal(ids[0], expected["input_ids"], err_msg=repr(text))
        np.testing.assert_array_equal(mask[0], expected["attention_mask"], err_msg=repr(text))
        different.update(ids[0].tolist())
    assert len(different) > least
    # At once, too.
    ids, _ = ours.encode(TEXTS)
    together = theirs(TEXTS, padding="max_length", max_length=TOKENS)["input_ids"]
    np.testing.assert_array_equal(ids, together)


def config(folder: Path, **settings) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_there_are_a_hundred_texts():
    assert len(set(TEXTS)) >= 100


@pytest.mark.parametrize("prefix_space", [None, False, True])
def test_vocab_json_and_merges(tmp_path, byte_pieces, prefix_space):
    byte_pieces.save_model(str(tmp_path))
    options = {} if prefix_space is None else {"add_prefix_space": prefix_space}
    if options:
        config(tmp_path, **options)
    theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path, **options)
    assert_same_ids(Tokenizer.from_folder(tmp_path, TOKENS), theirs)


def test_roberta_as_one_file(tmp_path, byte_pieces):
    byte_pieces.save_model(str(tmp_path))
    theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
    theirs.model_max_length = 6
    both = tmp_path / "both"
    theirs.save_pretrained(both)
    assert (both / "tokenizer.json").is_file()
    assert_same_ids(Tokenizer.from_folder(both, TOKENS), theirs)


@pytest.mark.parametrize("as_file", [False, True])
def test_vocab_txt(tmp_path, words, as_file):
    built, lower = words
    built.save_model(str(tmp_path))
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path, do_lower_case=lower)
    if as_file:
        tmp_path = tmp_path / "both"
        theirs.save_pretrained(tmp_path)
        assert (tmp_path / "tokenizer.json").is_file()
    elif not lower:
        config(tmp_path, do_lower_case=False)
    assert_same_ids(Tokenizer.from_folder(tmp_path, TOKENS), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
    ],
)
def test_the_settings_beside_a_vocab_txt(tmp_path, words, settings):
    words[0].save_model(str(tmp_path))
    config(tmp_path, **settings)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path, **settings)
    assert_same_ids(Tokenizer.from_folder(tmp_path, TOKENS), theirs)


def test_lower_case_does_count(tmp_path, words):
    """So that the two forms above are two."""
    built, lower = words
    built.save_model(str(tmp_path))
    config(tmp_path, do_lower_case=lower)
    tokenizer = Tokenizer.from_folder(tmp_path, TOKENS)
    assert tokenizer is not None
    ids, _ = tokenizer.encode(["a dog café", "A Dog Cafe"])
    assert (ids[0] == ids[1]).all() == lower


def test_what_is_cut_is_cut_as_there(tmp_path, byte_pieces):
    byte_pieces.save_model(str(tmp_path))
    theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path, 12)
    assert ours is not None
    ids, mask = ours.encode(TEXTS, truncate=True)
    expected = theirs(TEXTS, padding="max_length", max_length=12, truncation=True)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
