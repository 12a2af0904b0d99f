"""Captions through a text encoder into a folder that trainings read: `spatial-clap embed-text`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spatial_clap_jax.data.sentences import Sentences, captions_of, write_sentences
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.inference import load
from spatial_clap_jax.pretrained.mapping import weights_digest
from spatial_clap_jax.pretrained.read import read_text_tower
from spatial_clap_jax.stored import flatten, read_trained
from spatial_clap_jax.systems.base import in_use
from spatial_clap_jax.text_embeddings import text_model

# Captions that are embedded between two steps of the progress bar.
_AT_ONCE = 256


def embed_sentences(
    captions: str | Path, text_encoder: str | Path, out: str | Path, progress: bool = True
) -> Sentences:
    """Embeds captions once, so that trainings need no text encoder; goes on where it stopped.

    Args:
      captions: a csv of captions, or a folder of mono clips; see `captions_of`.
      text_encoder: what `load_text` takes, or the folder of a run, whose whole text side it is.
      out: folder to write; one that holds these very sentences is left as it is.
      progress: show a progress bar (on standard error).

    Returns:
      The opened folder: unit vectors by caption.

    Raises:
      InputError: no captions, no text encoder, a caption that is too long for it, or `out` holds
        something else.
    """
    told = captions_of(captions)
    embed, fingerprint = _encoder(text_encoder)
    width = embed(told[:1]).shape[1]
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
            Path(text_encoder).expanduser().name,
            fingerprint,
            width,
            embed_shard,
            lambda count: bar.update(task, completed=count),
        )


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


def _encoder(source: str | Path) -> tuple[Callable[[list[str]], np.ndarray], str]:
    """What embeds texts, and a digest that tells it from others; where it lies does not count."""
    if (Path(source).expanduser() / "description.json").is_file():
        trained = read_trained(source)
        if trained.tokenizer is None:
            raise InputError(f"{source}: has no text encoder; give the one that it learnt from.")
        arrays = flatten(in_use(trained.variables))
        return load(source).embed_text, weights_digest(arrays, _described(trained.tokenizer))
    tower = read_text_tower(source)
    model = text_model(tower)
    described = f"{_described(model.tokenizer)}{tower.config!r}"
    return model.embed_text, weights_digest(tower.arrays, described)


def _described(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.to_json()}{tokenizer.max_tokens}"
