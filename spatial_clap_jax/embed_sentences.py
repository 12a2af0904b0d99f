"""Captions as vectors in a folder that trainings read: `spatial-clap embed-text`.

A text encoder makes the vectors, or they come ready-made from one that does not run here.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spatial_clap_jax.data.sentences import (
    SHARD,
    VECTORS,
    WIDEST,
    Sentences,
    captions_of,
    write_sentences,
)
from spatial_clap_jax.data.tokens import Tokenizer, shortened
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.inference import load
from spatial_clap_jax.pretrained.read import read_text_tower
from spatial_clap_jax.small_files import check_regular
from spatial_clap_jax.stored import flatten, read_trained
from spatial_clap_jax.systems.base import in_use
from spatial_clap_jax.text_embeddings import encoder_digest, text_model

# Captions that are embedded between two steps of the progress bar.
_AT_ONCE = 256


def embed_sentences(
    captions: str | Path,
    text_encoder: str | Path,
    out: str | Path,
    progress: bool = True,
    split: str = "train",
) -> Sentences:
    """Embeds captions once, so that trainings need no text encoder; goes on where it stopped.

    Args:
      captions: a csv of captions, or a folder of mono clips; see `captions_of`.
      text_encoder: what `load_text` takes, or the folder of a run, whose whole text side it is.
      out: folder to write; one that holds these very sentences is left as it is.
      progress: show a progress bar (on standard error).
      split: of a folder of clips; see `captions_of`.

    Returns:
      The opened folder: unit vectors by caption.

    Raises:
      InputError: no captions, no text encoder, captions that are too long for it, or `out` holds
        something else.
    """
    told = captions_of(captions, split)
    embed, tokenizer, fingerprint = _encoder(text_encoder)
    _check_lengths(captions, told, tokenizer)
    width = embed(told[:1]).shape[1]
    name = Path(text_encoder).expanduser().name
    return _written(out, told, name, fingerprint, width, embed, progress)


def store_vectors(
    captions: str | Path,
    vectors: str | Path,
    out: str | Path,
    progress: bool = True,
    split: str = "train",
) -> Sentences:
    """Stores ready-made sentence embeddings as `embed_sentences` stores those that it makes.

    Args:
      captions: a csv of captions, or a folder of mono clips; see `captions_of`.
      vectors: an .npy of floats [n, e], a row for each caption in the order of `captions_of`;
        rows of any length but zero, of which the unit vectors are stored.
      out: folder to write; one that holds these very sentences is left as it is.
      progress: show a progress bar (on standard error).
      split: of a folder of clips; see `captions_of`.

    Returns:
      The opened folder.

    Raises:
      InputError: no captions, an array that is not one of their vectors, or `out` holds something
        else.
    """
    told, path = captions_of(captions, split), Path(vectors).expanduser()
    rows = _read_vectors(path, told)
    # The order of the captions is theirs too: the same rows in another order mean something else.
    digest = hashlib.sha256("\n".join(told).encode())
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    place = {caption: row for row, caption in enumerate(told)}

    def unit_vectors(texts: list[str]) -> np.ndarray:
        found = np.asarray(rows[[place[text] for text in texts]], np.float64)
        # So that no square is too small or too large for a float.
        found /= np.abs(found).max(axis=1, keepdims=True)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    width = rows.shape[1]
    name = path.name if path.suffix == VECTORS else path.name + VECTORS
    return _written(out, told, name, digest.hexdigest(), width, unit_vectors, progress)


def _written(
    out: str | Path,
    told: list[str],
    name: str,
    fingerprint: str,
    width: int,
    embed: Callable[[list[str]], np.ndarray],
    progress: bool,
) -> Sentences:
    with progress_bar(progress) as bar:
        task = bar.add_task("captions", total=len(told))

        def embed_shard(shard: list[str]) -> np.ndarray:
            rows = []
            for start in range(0, len(shard), _AT_ONCE):
                rows.append(embed(shard[start : start + _AT_ONCE]))
                bar.advance(task, len(rows[-1]))
            return np.concatenate(rows)

        return write_sentences(
            out,
            told,
            name,
            fingerprint,
            width,
            embed_shard,
            lambda count: bar.update(task, completed=count),
        )


def _read_vectors(path: Path, captions: list[str]) -> Float[np.ndarray, "n e"]:
    """The array of a file, mapped, after every row has been looked at."""
    try:
        check_regular(path)
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    # A header is a literal of Python, and each fault of it an error of its own.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--vectors {path}: cannot be read ({reason}); give an array that numpy.save wrote."
        ) from error
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or rows.ndim != 2:
        what = f"{rows.dtype}{list(rows.shape)}" if isinstance(rows, np.ndarray) else "an archive"
        raise InputError(
            f"--vectors {path}: holds {what}, and must hold floats [captions, width]; save a row "
            "for each caption."
        )
    if len(rows) != len(captions) or not 1 <= rows.shape[1] <= WIDEST:
        raise InputError(
            f"--vectors {path}: has {len(rows)} rows of {rows.shape[1]}, and must have "
            f"{len(captions)}, one for each distinct caption, of 1 to {WIDEST}; embed what "
            "captions_of lists, in its order."
        )
    for start in range(0, len(rows), SHARD):
        part = np.asarray(rows[start : start + SHARD], np.float64)
        for is_bad, what in (
            (~np.isfinite(part).all(axis=1), "holds NaN or infinite numbers"),
            (~part.any(axis=1), "is zero, which has no direction"),
        ):
            if is_bad.any():
                row = start + int(np.argmax(is_bad))
                raise InputError(
                    f"--vectors {path}: row {row} (counted from 0), of {captions[row]!r}, {what}; "
                    "embed it again."
                )
    return rows


def progress_bar(shown: bool) -> Progress:
    """A bar on standard error that counts what is embedded."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )


def _check_lengths(source: str | Path, captions: list[str], tokenizer: Tokenizer) -> None:
    """Refuses captions that are too long, before any of them is embedded."""
    parts = (captions[start : start + SHARD] for start in range(0, len(captions), SHARD))
    counts = np.fromiter((n for part in parts for n in tokenizer.counts(part)), np.int32)
    is_long = counts > tokenizer.max_tokens
    if is_long.any():
        first, others = int(np.argmax(is_long)), int(is_long.sum()) - 1
        rest = f" and {others} more" if others else ""
        raise InputError(
            f"{source}: {shortened(captions[first])} has {counts[first]} tokens with begin and "
            f"end, the encoder reads at most {tokenizer.max_tokens}; shorten it{rest}."
        )


def _encoder(source: str | Path) -> tuple[Callable[[list[str]], np.ndarray], Tokenizer, str]:
    """What embeds texts, its tokenizer, and a digest that tells it from others wherever it lies."""
    if (Path(source).expanduser() / "description.json").is_file():
        trained = read_trained(source)
        if trained.tokenizer is None:
            raise InputError(f"{source}: has no text encoder; give the one that it learnt from.")
        arrays = flatten(in_use(trained.variables))
        digest = encoder_digest(arrays, trained.tokenizer)
        return load(source).embed_text, trained.tokenizer, digest
    tower = read_text_tower(source)
    model = text_model(tower)
    digest = encoder_digest(tower.arrays, model.tokenizer, repr(tower.config))
    return model.embed_text, model.tokenizer, digest
