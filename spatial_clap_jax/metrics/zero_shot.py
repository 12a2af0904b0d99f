"""Forced choice among texts: zero-shot classes from prototypes, and true against wrong captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from spatial_clap_jax.acoustics.captions import CLASS, LABEL_PROMPT, label_prompt
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embed import Embedder
from spatial_clap_jax.metrics.retrieval import TIE


def zero_shot(
    model: Embedder,
    audio: Float[np.ndarray, "*b c t"],
    sample_rate_hz: int,
    classes: Sequence[str],
    prompt: str = LABEL_PROMPT,
) -> Float32[np.ndarray, "*b classes"]:
    """Cosines between recordings and a prompt of each class; the greatest is the answer.

    Args:
      model: any that reads texts.
      audio: see `inference.AudioTextModel.embed_audio`.
      sample_rate_hz: its rate.
      classes: their names, asked for in lower case; '_' and '-' are read as blanks.
      prompt: what is said of a class, "{class}" standing for its name.

    Raises:
      InputError: no class, or a prompt without "{class}".

    Reference: the prompt is M2D-CLAP's, arXiv 2503.22104, with a final period as captions have it
      in our trainings (our choice).

    Example:
      >>> cosines = zero_shot(model, audio, 44_100, ["dog", "rain"])
      >>> ["dog", "rain"][cosines.argmax()]
      'rain'
    """
    if isinstance(classes, str) or not len(classes):
        raise InputError(f"classes: {classes!r}; give a list of at least one name.")
    if CLASS not in prompt:
        raise InputError(f"prompt: {prompt!r} has no {CLASS}; say where the name of a class goes.")
    texts = model.embed_text([label_prompt(name, prompt) for name in classes])
    return model.embed_audio(audio, sample_rate_hz) @ texts.T


def prototype(embeddings: Float[np.ndarray, "v d"]) -> Float[np.ndarray, "d"]:
    """A class as the normalised mean of the embeddings of its prompts.

    Args:
      embeddings: unit embeddings of the prompts of one class.

    Returns:
      A unit vector; zeros where the prompts cancel out.

    Reference:
      Prompt ensembles in embedding space, Radford et al. 2021 (arXiv 2103.00020), section 3.1.4.
    """
    mean = embeddings.astype(np.float64).mean(axis=0)
    length = np.linalg.norm(mean)
    return mean / length if length > 1e-9 else np.zeros_like(mean)


def choose(
    scores: Float[np.ndarray, "*b c"], true: Int[np.ndarray, "*b"], tie: float = TIE
) -> Int[np.ndarray, "*b"]:
    """The choice that is scored highest, where a tie with the true one goes to the wrong one.

    Args:
      scores: similarity of each query to each of c >= 2 choices.
      true: index of the right choice.
      tie: scores this close are equal.

    Returns:
      Index of the choice; equal to `true` only where the true one stands strictly above all.

    Raises:
      ValueError: a score is not finite.

    Example:
      >>> choose(np.array([[0.7, 0.1], [0.5, 0.5]]), np.array([0, 0]))
      array([0, 1])
    """
    if not np.isfinite(scores).all():
        raise ValueError("choose: scores hold NaN or infinity; every score must be finite.")
    index = true[..., None]
    score_of_true = np.take_along_axis(scores, index, axis=-1)
    others = np.array(scores)
    np.put_along_axis(others, index, -np.inf, axis=-1)
    best_other = others.argmax(axis=-1)
    won = score_of_true[..., 0] > others.max(axis=-1) + tie
    return np.where(won, true, best_other)


def assignment_hits(
    audio: Float[np.ndarray, "p d"], captions: Float[np.ndarray, "p d"]
) -> Bool[np.ndarray, "p"]:
    """Content-space assignment: each mixture against all captions of its scene group.

    The members of a group hold the same contents at the same places, so that only the binding
    of content to place tells the true caption from the p - 1 others; chance is 1 / p.

    Args:
      audio: unit embeddings of the p mixtures of one scene group.
      captions: unit embeddings of their captions, aligned with `audio`.

    Returns:
      Whether the true caption stands strictly above every wrong one.
    """
    members = np.arange(len(audio))
    scores = audio.astype(np.float64) @ captions.astype(np.float64).T
    return choose(scores, members) == members


def confusion_matrix(
    true: Int[np.ndarray, "n"], chosen: Int[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts of choices: rows are the true class, columns the chosen one.

    Args:
      true: index of the true class of each query.
      chosen: index of the chosen one.
      classes: number of classes.

    Returns:
      Counts that sum to n.
    """
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (true, chosen), 1)
    return counts
