"""Text to token ids of one fixed length: a small trained vocabulary, or any tokenizer.json."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import (
    BertWordPieceTokenizer,
    ByteLevelBPETokenizer,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import json_of, parsed_json, text_of

# (begin, end, padding) by name: RoBERTa's, which the trained tokenizer takes too, BERT's, and
# CLIP's with the padding of OWL-ViT, which has the id 0.
_SPECIAL_TOKENS = (
    ("<s>", "</s>", "<pad>"),
    ("[CLS]", "[SEP]", "[PAD]"),
    ("<|startoftext|>", "<|endoftext|>", "!"),
)
# What CLIP's vocabulary takes for one word.
_CLIP_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Tables of embeddings have a row for each id.
_LARGEST_ID = 2**24
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Turns texts into ids `[b, n]`: begin token, text, end token, padding.

    Build one with `train`, `from_file` or `from_json`.

    Attributes:
      backend: the tokenizer proper, of the `tokenizers` library.
      max_tokens: n, the fixed length, begin and end token included.
      begin_id: id of `<s>`, `[CLS]` or `<|startoftext|>`.
      end_id: id of `</s>`, `[SEP]` or `<|endoftext|>`.
      pad_id: id of `<pad>`, `[PAD]` or, of CLIP's, `!`.
    """

    backend: tokenizers.Tokenizer
    max_tokens: int
    begin_id: int
    end_id: int
    pad_id: int

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, max_tokens: int) -> Tokenizer:
        """Trains a byte-level BPE vocabulary: any text has ids, none is unknown.

        Text is normalised first (NFKC, lower case, runs of white space as one space, none at the
        ends), so that `A dog  barks` and `a dog barks` have the same ids. The outcome depends on
        the texts alone, not on their order.

        Args:
          texts: the caption corpus.
          vocabulary: the largest number of ids; fewer are used where the corpus has no more words.
          max_tokens: fixed length of what `encode` returns.

        Returns:
          The tokenizer; ids 0, 1, 2 are `<s>`, `<pad>`, `</s>` as in RoBERTa.

        Raises:
          InputError: `vocabulary` below the 256 bytes and 3 special tokens.

        Reference:
          Our choice for the sizes without pretrained text weights.
        """
        begin, end, pad = _SPECIAL_TOKENS[0]
        specials = [begin, pad, end]
        smallest = len(_ALPHABET) + len(specials)
        if vocabulary < smallest:
            raise InputError(
                f"vocabulary: {vocabulary} ids cannot hold the 256 bytes and 3 special tokens;"
                f" give at least {smallest}."
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [
                normalizers.NFKC(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Strip(),
            ]
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(  # pyright: ignore[reportAttributeAccessIssue]
            add_prefix_space=True
        )
        backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=1,
            special_tokens=specials,
            initial_alphabet=_ALPHABET,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        ids = {name: backend.token_to_id(name) for name in specials}
        # For those who load the exported tokenizer.json with other programs.
        backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{begin} $A {end}", special_tokens=[(begin, ids[begin]), (end, ids[end])]
        )
        return _wrap(backend, max_tokens, "trained tokenizer")

    @classmethod
    def from_file(cls, path: str | Path, max_tokens: int) -> Tokenizer:
        """Reads a Hugging Face `tokenizer.json` with RoBERTa's, BERT's or CLIP's special tokens.

        Args:
          path: the file.
          max_tokens: fixed length of what `encode` returns.

        Raises:
          InputError: the file is missing, is no tokenizer, or lacks the special tokens.
        """
        try:
            text = text_of(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read as a tokenizer ({error}); give a tokenizer.json."
            ) from error
        return _parse(text, max_tokens, str(path))

    @classmethod
    def from_folder(cls, folder: str | Path, max_tokens: int) -> Tokenizer | None:
        """Reads the tokenizer in a Hugging Face folder, whichever of its forms lies there.

        Args:
          folder: with `tokenizer.json`; or RoBERTa's or CLIP's `vocab.json` and `merges.txt`; or
            BERT's `vocab.txt`, lower-cased unless `tokenizer_config.json` says otherwise. Its
            `add_prefix_space`, `strip_accents` and `tokenize_chinese_chars` count too.
          max_tokens: fixed length of what `encode` returns.

        Returns:
          The tokenizer, None where the folder has none of these files.

        Raises:
          InputError: a file cannot be read as what it is named.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            return cls.from_file(folder / "tokenizer.json", max_tokens)
        pieces = [folder / "vocab.json", folder / "merges.txt"]
        words = folder / "vocab.txt"
        if not words.is_file() and not all(path.is_file() for path in pieces):
            return None
        settings = _settings(folder / "tokenizer_config.json")
        if all(path.is_file() for path in pieces):
            _refuse_huge_ids(_vocabulary(pieces[0]), str(pieces[0]))
        try:
            with _panics_unprinted():
                built = _of_vocabulary(pieces, words, settings)
        except BaseException as error:
            said = f"{folder}: its vocabulary cannot be read ({{}}); restore its files."
            raise _refusal(error, said) from error
        return _parse(built.to_str(), max_tokens, str(folder))

    @classmethod
    def from_json(cls, text: str, max_tokens: int) -> Tokenizer:
        """Restores a tokenizer from what `to_json` gave.

        Args:
          text: content of a `tokenizer.json`.
          max_tokens: fixed length of what `encode` returns.

        Raises:
          InputError: the text is no tokenizer, or lacks the special tokens.
        """
        return _parse(text, max_tokens, "tokenizer JSON")

    def to_json(self) -> str:
        """The content of a `tokenizer.json`; `max_tokens` is not part of it."""
        return self.backend.to_str()

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id: the rows that an embedding table needs."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(
        self, texts: Sequence[str], truncate: bool = False
    ) -> tuple[Int32[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
        """Token ids of fixed length and which of them are no padding.

        Args:
          texts: b captions.
          truncate: cut a long text, keeping its end token, instead of refusing it. For captions
            out of a training set; what a user asks is never cut silently.

        Returns:
          ids: begin token, text, end token, padding.
          mask: True up to and including the end token.

        Raises:
          InputError: a text is blank, or has more tokens than fit.

        Example:
          >>> ids, mask = tokenizer.encode(["a dog barks on the left side"])
          >>> ids.shape, int(mask.sum())  # max_tokens 16, one id a word
          ((1, 16), 9)
        """
        bodies = self._bodies(texts)
        ids = np.full((len(bodies), self.max_tokens), self.pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, (text, body) in enumerate(zip(texts, bodies, strict=True)):
            if not text.strip() or not body:
                raise InputError(
                    f"text {row}: {shortened(text)} is blank; a caption needs at least one word."
                )
            count = len(body) + 2
            if count > self.max_tokens:
                if not truncate:
                    raise InputError(
                        f"text {row}: {shortened(text)} has {count} tokens with begin and end, the"
                        f" encoder reads at most {self.max_tokens}; shorten the text."
                    )
                body, count = body[: self.max_tokens - 2], self.max_tokens
            ids[row, :count] = [self.begin_id, *body, self.end_id]
            mask[row, :count] = True
        return ids, mask

    def counts(self, texts: Sequence[str]) -> Int32[np.ndarray, "b"]:
        """How many tokens each text has with begin and end, whether they fit or not."""
        return np.array([len(body) + 2 for body in self._bodies(texts)], np.int32)

    def _bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone."""
        if isinstance(texts, str):
            raise InputError(f"texts: {shortened(texts)} is one text; give a list of texts.")
        try:
            encoded = self.backend.encode_batch(list(texts), add_special_tokens=False)
        except BaseException as error:
            raise _refusal(error, _naming_text(texts)) from error
        return [encoding.ids for encoding in encoded]


def _refuse_huge_ids(vocabulary: Any, name: str) -> None:
    """Before the library sees them, which makes tables as long as the largest id."""
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    largest = max((value for value in ids if isinstance(value, int)), default=0)
    if largest > _LARGEST_ID:
        raise InputError(
            f"{name}: has the token id {largest}, above {_LARGEST_ID}; give the tokenizer.json of "
            "the text encoder."
        )


def _of_vocabulary(pieces: Sequence[Path], words: Path, settings: dict) -> tokenizers.Tokenizer:
    """The tokenizer of RoBERTa's or CLIP's two files, or of BERT's one."""
    if all(path.is_file() for path in pieces):
        vocabulary, merges = map(str, pieces)
        space = bool(settings.get("add_prefix_space", False))
        built = ByteLevelBPETokenizer(vocabulary, merges, add_prefix_space=space)
        if built.token_to_id(_SPECIAL_TOKENS[2][0]) is not None:
            return _clip_tokenizer(vocabulary, merges)
        return built  # pyright: ignore[reportReturnType]
    return BertWordPieceTokenizer(  # pyright: ignore[reportReturnType]
        str(words),
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )


@contextlib.contextmanager
def _panics_unprinted() -> Iterator[None]:
    """Rust writes the place of a panic on standard error before it becomes an exception."""
    try:
        kept = os.dup(2)
    except OSError:  # There is none.
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _clip_tokenizer(vocabulary: str, merges: str) -> tokenizers.Tokenizer:
    """CLIP's byte-level BPE, whose words end in `</w>`, out of its two files."""
    begin, end, _ = _SPECIAL_TOKENS[2]
    model = models.BPE.from_file(vocabulary, merges, end_of_word_suffix="</w>", unk_token=end)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORD), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    ids = [(name, backend.token_to_id(name)) for name in (begin, end)]
    # For those who load the exported tokenizer.json with other programs.
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{begin} $A {end}", special_tokens=ids
    )
    return backend


def _vocabulary(path: Path) -> Any:
    try:
        return json_of(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: its vocabulary cannot be read ({error}); restore the file."
        ) from error


def _settings(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return dict(json_of(path).items())
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); restore the file.") from error


def _refusal(error: BaseException, said: str) -> BaseException:
    """What to raise for an error of the library: `said` with its reason, or itself if not its own.

    The library raises bare exceptions; a panic of its Rust code is none of Python's `Exception`.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(said.replace("{}", reason))


def _naming_text(texts: Sequence[str]) -> str:
    """The words for a failure over texts: half a surrogate pair is what a text may be guilty of."""
    for row, text in enumerate(texts):
        if any("\ud800" <= char <= "\udfff" for char in text):
            return f"text {row}: {shortened(text)} is no Unicode ({{}}); write it in UTF-8."
    return "tokenizer: cannot read texts ({}); give an undamaged tokenizer.json."


def shortened(text: str, length: int = 40) -> str:
    """A text in quotes for a message, cut where it is long."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")


def _parse(text: str, max_tokens: int, name: str) -> Tokenizer:
    try:
        held = parsed_json(text)
    except ValueError as error:
        raise InputError(
            f"{name}: is not a tokenizer ({error}); give the content of a tokenizer.json."
        ) from error
    parts = held if isinstance(held, dict) else {}
    model, added = parts.get("model"), parts.get("added_tokens")
    _refuse_huge_ids(model.get("vocab") if isinstance(model, dict) else None, name)
    tokens = (
        [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    )
    _refuse_huge_ids({str(number): token.get("id") for number, token in enumerate(tokens)}, name)
    try:
        with _panics_unprinted():
            backend = tokenizers.Tokenizer.from_str(text)
    except BaseException as error:
        said = f"{name}: is not a tokenizer ({{}}); give the content of a tokenizer.json."
        raise _refusal(error, said) from error
    # A file may bring a length of its own; ours is the only one.
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        # One text must have one meaning.
        backend.model.dropout = None  # pyright: ignore[reportAttributeAccessIssue]
    return _wrap(backend, max_tokens, name)


def _wrap(backend: tokenizers.Tokenizer, max_tokens: int, name: str) -> Tokenizer:
    if max_tokens < 3:
        raise InputError(
            f"max_tokens: {max_tokens} leaves no room for text between begin and end token; give"
            " at least 3."
        )
    # A text that spells out "<s>" is text.
    backend.encode_special_tokens = True
    for names in _SPECIAL_TOKENS:
        begin, end, pad = (backend.token_to_id(token) for token in names)
        if begin is not None and end is not None and pad is not None:
            return Tokenizer(backend, max_tokens, begin, end, pad)
    raise InputError(
        f"{name}: has neither <s>, </s>, <pad> (RoBERTa) nor [CLS], [SEP], [PAD] (BERT) nor"
        " <|startoftext|>, <|endoftext|>, ! (CLIP); give a tokenizer with one of these sets."
    )
