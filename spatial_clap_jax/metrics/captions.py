"""Retrieval with all captions of a clip over a whole split, as figures of AudioCaps and Clotho."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from rich.progress import Progress

from spatial_clap_jax.data.wording import plain_caption
from spatial_clap_jax.metrics.embed import Embedder, embed_texts
from spatial_clap_jax.metrics.embedded import EmbeddedSplit
from spatial_clap_jax.metrics.retrieval import chance_recall, relevant_ranks, similarity
from spatial_clap_jax.metrics.scores import Outcome


def retrieve_captions(
    embedder: Embedder,
    part: EmbeddedSplit,
    recall_at: Sequence[int],
    batch_size: int,
    bar: Progress,
) -> dict[str, Outcome]:
    """Retrieval of plain clips by all that each may be told with.

    Args:
      embedder: the model.
      part: the clips, embedded; of several records of one clip the first counts.
      recall_at: ranks that count as found.
      batch_size: captions embedded at once.
      bar: where the progress is shown.

    Returns:
      See `caption_outcomes`, each name with '/plain' behind it.
    """
    _, first = np.unique(part.clips, return_index=True)
    first = np.sort(first)
    told = [{plain_caption(content) for content in part.contents[row]} for row in first]
    texts = sorted(set().union(*told))
    vectors = embed_texts(embedder, texts, batch_size, bar, "all captions")
    scores = similarity(vectors, part.identities[first])
    relevant = np.array([[text in captions for captions in told] for text in texts])
    found = caption_outcomes(scores, relevant, recall_at)
    return {f"{name}/plain": outcome for name, outcome in found.items()}


def caption_outcomes(
    scores: Float[np.ndarray, "n c"], told: Bool[np.ndarray, "n c"], recall_at: Sequence[int]
) -> dict[str, Outcome]:
    """Both ways of retrieval between clips and their captions.

    Text to audio, every caption of every clip is a query, and found where a clip that it tells of
    is among the first k clips. Audio to text, every clip is a query, and found where any of its own
    captions is among the first k of all.

    Args:
      scores: similarity of each distinct caption to each clip.
      told: whether the clip is told with the caption; each has one of the other at least.
      recall_at: the k.

    Returns:
      `t2a_all_r{k}` and `a2t_all_r{k}`, the queries of a clip as one cluster.

    Reference: the protocol of AudioCaps (Kim et al. 2019) and Clotho (Drossos et al., arXiv
      1910.09387) in audio retrieval. That clips of the very same caption are all hits is our
      choice.

    Example:
      >>> scores = np.array([[0.9, 0.1], [0.2, 0.6], [0.8, 0.7]])  # the third is the second clip's
      >>> told = np.array([[True, False], [False, True], [False, True]])
      >>> found = caption_outcomes(scores, told, (1,))
      >>> found["t2a_all_r1"].hits, found["a2t_all_r1"].hits
      (array([ True,  True, False]), array([ True,  True]))
    """
    # A caption that several clips have is a query of each.
    caption, clip = np.nonzero(told)
    by_text, by_audio = relevant_ranks(scores, told), relevant_ranks(scores.T, told.T)
    outcomes: dict[str, Outcome] = {}
    for k in recall_at:
        chance = chance_recall(told[caption], k), chance_recall(told.T, k)
        outcomes[f"t2a_all_r{k}"] = Outcome(by_text[caption] <= k, clip, chance[0])
        outcomes[f"a2t_all_r{k}"] = Outcome(by_audio <= k, np.arange(len(by_audio)), chance[1])
    return outcomes
