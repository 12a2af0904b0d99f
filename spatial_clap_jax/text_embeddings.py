"""Texts in use: a text encoder by itself, and texts in batches of few lengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Float32

from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embed import embed_in_batches
from spatial_clap_jax.models.layers import unit
from spatial_clap_jax.models.text import TextEncoder, TextOutput
from spatial_clap_jax.pretrained.mapping import Tensors, nested, weights_digest
from spatial_clap_jax.pretrained.read import read_text_tower
from spatial_clap_jax.pretrained.towers import TextTower
from spatial_clap_jax.systems.base import Variables

# Rows of every batch.
_BATCH = 8


@dataclass(frozen=True, eq=False)
class TextModel:
    """A text encoder by itself, which embeds texts.

    Attributes:
      tokenizer: of its texts.
      text_program: tokens [b, n] int32, mask [b, n] bool -> [b, d] unit embeddings.
      text_lengths: values of n that the text program is called with, ascending.
    """

    tokenizer: Tokenizer
    text_program: Callable[..., Any]
    text_lengths: tuple[int, ...]

    @property
    def max_tokens(self) -> int:
        """Length of the longest text, in tokens."""
        return self.tokenizer.max_tokens

    def embed_text(self, texts: Sequence[str]) -> Float32[np.ndarray, "b d"]:
        """Unit embeddings of texts; see `AudioTextModel.embed_text`."""
        return embed_texts(self.tokenizer, self.text_program, self.text_lengths, texts)


def embed_texts(
    tokenizer: Tokenizer,
    text_program: Callable[..., Any],
    lengths: tuple[int, ...],
    texts: Sequence[str],
) -> Float32[np.ndarray, "b d"]:
    """Embeds each text at the shortest length that holds it, so that its answer is its own.

    Args:
      tokenizer: of the texts.
      text_program: tokens [b, n] int32, mask [b, n] bool -> [b, d].
      lengths: values of n that it is called with, ascending; the tokenizer's alone where empty.
      texts: at least one.

    Raises:
      InputError: no text, a blank one, or one of more tokens than the tokenizer gives.
    """
    if not isinstance(texts, str):
        texts = list(texts)
        if not texts:
            raise InputError("texts: the list is empty; give at least one text.")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {row}: {text!r} is no text; give a list of strings.")
    ids, mask = tokenizer.encode(texts)
    lengths = lengths or (tokenizer.max_tokens,)
    own = np.asarray(lengths)[np.searchsorted(lengths, mask.sum(axis=1))]
    embeddings: dict[int, Any] = {}
    for length in sorted(set(own.tolist())):
        rows = np.flatnonzero(own == length)
        vectors = embed_in_batches(
            zip(ids[rows, :length], mask[rows, :length], strict=True),
            lambda batch: np.asarray(
                text_program(*(np.stack(part) for part in zip(*batch, strict=True)))
            ),
            _BATCH,
            "texts",
        )
        embeddings |= zip(rows.tolist(), vectors, strict=True)
    return np.stack([embeddings[row] for row in range(len(ids))])


def text_lengths(max_tokens: int) -> tuple[int, ...]:
    """Lengths that texts are padded to: a few, so that a short text does not cost as a long one.

    Example:
      >>> text_lengths(77)
      (32, 64, 77)
    """
    powers = (2**power for power in range(5, max_tokens.bit_length()))
    return (*(length for length in powers if length < max_tokens), max_tokens)


def encoder_digest(arrays: Tensors, tokenizer: Tokenizer, described: str = "") -> str:
    """Tells a text encoder from others, wherever it lies.

    Args:
      arrays: its weights by path.
      tokenizer: of its texts.
      described: whatever else decides what it computes.

    Returns:
      Hexadecimal SHA-256, the fingerprint of the sentence embeddings that it makes.
    """
    return weights_digest(arrays, f"{tokenizer.to_json()}{tokenizer.max_tokens}{described}")


def load_text(source: str | Path) -> TextModel:
    """Loads a text encoder by itself: published weights, a converted one, or that of an export.

    Args:
      source: a folder of Hugging Face's (RoBERTa, BERT, sentence-transformers, CLAP) or its name
        on the hub; a folder that `convert` or `export --format safetensors` wrote.

    Raises:
      InputError: there is no text encoder, it cannot be read, or it has no tokenizer.

    Example:
      >>> load_text("sentence-transformers/all-MiniLM-L6-v2").embed_text(["a dog barks"]).shape
      (1, 384)
    """
    return text_model(read_text_tower(source))


def text_model(tower: TextTower) -> TextModel:
    """A text encoder in use; see `load_text`.

    Raises:
      InputError: it has no tokenizer.
    """
    if tower.tokenizer is None:
        raise InputError(
            f"{tower.report.source}: brings no tokenizer; put the tokenizer.json of its vocabulary "
            "beside it."
        )
    encoder = TextEncoder(tower.config)
    variables = jax.device_put(nested(tower.arrays))

    def embed(variables: Variables, tokens: Any, mask: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            output = cast(TextOutput, encoder.apply(variables, tokens, mask))
            return unit(output.pooled)

    return TextModel(
        tower.tokenizer, partial(jax.jit(embed), variables), text_lengths(tower.config.max_tokens)
    )
