"""Embeddings of many items, in batches of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32
from rich.progress import Progress

from spatial_clap_jax.errors import InputError

T = TypeVar("T")


@runtime_checkable
class Embedder(Protocol):
    """What evaluation needs of a model; each row is embedded independently of the others."""

    def embed_audio(
        self, audio: Float32[np.ndarray, "b c t"], sample_rate_hz: int
    ) -> Float32[np.ndarray, "b d"]:
        """Unit embeddings of audio."""
        ...

    def embed_text(self, texts: list[str]) -> Float32[np.ndarray, "b d"]:
        """Unit embeddings of texts."""
        ...


def embed_texts(
    embedder: Embedder, texts: Sequence[str], batch_size: int, bar: Progress, name: str
) -> Float[np.ndarray, "n d"]:
    """Embeds texts; each distinct one once, so that equal texts score equally.

    Args:
      embedder: the model.
      texts: in any order, with repetitions.
      batch_size: texts in a batch.
      bar: where the progress is shown.
      name: of the texts, for the bar and for messages.

    Returns:
      One row a text, in the order of `texts`.

    Raises:
      InputError: an embedding is not finite, or the model does not read a text.
    """
    distinct = sorted(set(texts))
    # A model that reads some texts alone says which are missing of all of them.
    check = getattr(embedder, "check_texts", None)
    if check is not None:
        check(distinct)
    watched = bar.track(distinct, description=name)
    vectors = embed_in_batches(watched, embedder.embed_text, batch_size, f"text of {name}")
    row = {text: index for index, text in enumerate(distinct)}
    return vectors[[row[text] for text in texts]]


def embed_in_batches(
    items: Iterable[T],
    embed: Callable[[list[T]], Float[np.ndarray, "b d"]],
    batch_size: int,
    name: str,
) -> Float[np.ndarray, "n d"]:
    """Embeds a stream in batches of one shape: one compilation, one batch in memory.

    Args:
      items: what is embedded; the last batch is filled up by repeating its last item.
      embed: embeds exactly `batch_size` items.
      batch_size: items in a batch.
      name: of the items, for messages.

    Returns:
      One row an item, in order.

    Raises:
      InputError: an embedding is not finite.
    """
    rows, waiting = [], iter(items)
    while batch := list(islice(waiting, batch_size)):
        filled = batch + [batch[-1]] * (batch_size - len(batch))
        rows.append(check_finite(embed(filled), name)[: len(batch)])
    return np.concatenate(rows)


def check_finite(vectors: Float[np.ndarray, "*b d"], name: str) -> Float[np.ndarray, "*b d"]:
    """Passes embeddings on, and refuses what a diverged model gives."""
    vectors = np.asarray(vectors)
    if not np.isfinite(vectors).all():
        raise InputError(
            f"{name}: the model's embeddings hold NaN or infinity; they must be finite: "
            "give a checkpoint that has not diverged."
        )
    return vectors
