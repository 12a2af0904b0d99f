"""What is asked of plain clips: their labels by prompt, by a trained head, by a linear probe."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int
from rich.progress import Progress

from spatial_clap_jax.acoustics.captions import labels_of
from spatial_clap_jax.data.pipeline import Scenes
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embed import Embedder
from spatial_clap_jax.metrics.embedded import EmbedAudio, EmbeddedSplit, embed_clips
from spatial_clap_jax.metrics.labels import labels_matrix, score_labels
from spatial_clap_jax.metrics.probe import Probe, linear_probe
from spatial_clap_jax.metrics.prompts import Prompts
from spatial_clap_jax.metrics.retrieval import similarity
from spatial_clap_jax.metrics.scores import Outcome, Results


def zero_shot_labels(
    embedder: Embedder,
    part: EmbeddedSplit,
    classes: Collection[str],
    batch_size: int,
    bar: Progress,
) -> tuple[dict[str, Outcome], Results]:
    """Labels of clips by prompt.

    Args:
      embedder: the model.
      part: the clips, embedded.
      classes: of the data; those that no clip of this part has compete as well.
      batch_size: prompts embedded at once.
      bar: where the progress is shown.

    Returns:
      `content/plain` and `content_map/plain`, see `score_labels`; nothing where there are fewer
      than two classes.
    """
    categories = [scene[0] for scene in part.categories]
    known = sorted({*classes, *(label for one in categories for label in labels_of(one))})
    if len(known) < 2:
        return {}, {}
    prompts = Prompts(embedder, known, (), batch_size, bar)
    scores = similarity(part.identities, prompts.of_labels())
    true, cluster = labels_matrix(categories, known), _numbers(part.clips)
    return score_labels("content", scores, true, cluster, 1 / len(known))


def trained_labels(
    embedder: Embedder, groups: Sequence[SceneGroup], name: str, batch_size: int, bar: Progress
) -> tuple[dict[str, Outcome], Results]:
    """Labels of clips by the logits of a model that has learnt them.

    Args:
      embedder: the model; what it has learnt are its `classes`, told by `classify`.
      groups: the clips.
      name: of the split, for the bar and for messages.
      batch_size: rows embedded at once.
      bar: where the progress is shown.

    Returns:
      `labels/plain` and `labels_map/plain`, see `score_labels`; nothing for other models.
    """
    classes, classify = getattr(embedder, "classes", ()), getattr(embedder, "classify", None)
    if not classes or classify is None:
        return {}, {}
    logits, categories, clips = embed_clips(
        embedder, classify, f"{name} labels", groups, batch_size, bar
    )
    true = labels_matrix(categories, classes)
    return score_labels("labels", logits, true, _numbers(clips), 1 / len(classes))


def probe_clips(
    embedder: Embedder, scenes: Scenes, split: str, batch_size: int, bar: Progress
) -> Probe:
    """A linear probe on plain clips: of their scene embeddings, where the model has such.

    Args:
      embedder: the model.
      scenes: opened data.
      split: to test on; it learns from train and chooses by validation.
      batch_size: rows embedded at once.
      bar: where the progress is shown.

    Raises:
      InputError: the data lack plain clips of a split, or categories.
    """
    # A model that has no patches has no features but its embeddings.
    has_features = getattr(embedder, "patches", None) is not None
    read: EmbedAudio = embedder.embed_scene if has_features else embedder.embed_audio  # pyright: ignore[reportAttributeAccessIssue]
    parts = []
    for part in ("train", "validation", split):
        name = f"{part}_k0"
        groups = scenes.source(name) if name in scenes.splits else ()
        if not len(groups):
            raise InputError(
                f"probe: the data hold no plain clips {name}; render some (configs/clips.py), or "
                "leave the probe out."
            )
        parts.append(embed_clips(embedder, read, f"{name} features", groups, batch_size, bar))
    return linear_probe(*parts)


def _numbers(names: Sequence[str]) -> Int[np.ndarray, "n"]:
    """The same number for the same name."""
    return np.unique(names, return_inverse=True)[1]
