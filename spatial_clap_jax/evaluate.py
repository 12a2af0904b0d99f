"""The numbers of a trained model: retrieval, zero-shot direction and content, assignment.

Scores are flat by name, `{task}/{number of sources}`; a person's own recordings, whose number of
sources nobody counts, are scored under `{task}/recordings`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spatial_clap_jax.acoustics.captions import category_phrasings, compose_caption
from spatial_clap_jax.acoustics.directions import phrase_set
from spatial_clap_jax.data.audio import read_audio
from spatial_clap_jax.data.pipeline import Scenes, meanings
from spatial_clap_jax.data.recordings import read_recordings
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.transforms import member_directions
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embed import Embedder, check_finite, embed_in_batches, embed_texts
from spatial_clap_jax.metrics.retrieval import chance_recall, relevant_ranks, similarity
from spatial_clap_jax.metrics.scores import Results, check_results_path, score_of, write_results
from spatial_clap_jax.metrics.zero_shot import (
    assignment_hits,
    choose,
    confusion_matrix,
    prototype,
)

__all__ = [
    "EmbeddedSplit",
    "Embedder",
    "Evaluation",
    "Outcome",
    "Results",
    "check_results_path",
    "evaluate",
    "evaluate_in_detail",
    "evaluate_recordings",
    "write_results",
]

RECALL_AT = (1, 5, 10)
SOURCES = (1, 2, 3)
# What a clip of no known category is called in the prompts of the direction classes.
ANY_SOUND = "a sound"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All scores, and what they leave out.

    Attributes:
      results: the flat scores.
      direction_confusion: 1-source scenes by true (row) and chosen (column) direction class;
        None where the data have none.
      content_by_category: the content score of each category apart.
      outcomes: what each score of `results` was counted from, query by query.
      embedded: the scenes by number of sources.
    """

    results: Results
    direction_confusion: Int[np.ndarray, "5 5"] | None
    content_by_category: Results
    outcomes: dict[str, Outcome]
    embedded: dict[int, EmbeddedSplit]


class Outcome(NamedTuple):
    """The queries behind a score.

    Attributes:
      hits: whether each succeeded.
      cluster: the scene that it belongs to.
      chance: the share that chance alone reaches.
    """

    hits: Bool[np.ndarray, "n"]
    cluster: Int[np.ndarray, "n"]
    chance: float


@dataclasses.dataclass(frozen=True)
class EmbeddedSplit:
    """The scene groups of one split: every member embedded, its audio forgotten.

    Attributes:
      audio, text: embeddings of all members and their captions, groups one after another.
      starts: the row of each group's first member, the identity; then the number of rows.
      meaning, directions, categories: of the identity members; equal numbers mean the same.
    """

    audio: Float[np.ndarray, "n d"]
    text: Float[np.ndarray, "n d"]
    starts: Int[np.ndarray, "s_and_1"]
    meaning: Int[np.ndarray, "s"]
    directions: Int[np.ndarray, "s k"]
    categories: list[tuple[str, ...]]


def evaluate(
    embedder: Embedder,
    scenes: Scenes,
    split: str = "test",
    gallery: int = 200,
    seed: int = 0,
    progress: bool = True,
    batch_size: int = 32,
) -> Results:
    """Scores a model on the scene groups of one split; see `evaluate_in_detail`."""
    return evaluate_in_detail(embedder, scenes, split, gallery, seed, progress, batch_size).results


def evaluate_in_detail(
    embedder: Embedder,
    scenes: Scenes,
    split: str = "test",
    gallery: int = 200,
    seed: int = 0,
    progress: bool = True,
    batch_size: int = 32,
    phrases: str = "side",
) -> Evaluation:
    """Scores a model on the scene groups of one split, and says where it errs.

    Retrieval searches galleries of the identity members: the split, shuffled by `seed`, is cut
    into as many galleries as it fills; where it fills none, all of it is one gallery (its n then
    stays below `gallery`). An item of the same meaning (the set of (category, direction class),
    the clip's id where it has no category) is a hit. Assignment asks every member of every group.
    Zero-shot scores are of 1-source scenes, against prototypes made of prompts.

    Args:
      embedder: the model.
      scenes: opened data; the names of its splits are `{split}_k{sources}`.
      split: which split; its 1-, 2- and 3-source parts are scored where they exist.
      gallery: scenes in a gallery.
      seed: of the cut into galleries.
      progress: whether to show a progress bar (on standard error).
      batch_size: rows embedded at once; every batch is filled up to it.
      phrases: set of direction phrases (`PHRASE_SETS`) of the zero-shot prompts.

    Returns:
      Scores `t2a_r1/K`, `t2a_r5/K`, `t2a_r10/K`, `a2t_r1/K`, ... for K sources, `direction/1`,
      `content/1` (where at least two categories are known) and `assignment/2`, `assignment/3`
      (where groups have several members); the confusion of directions; the score by category.

    Raises:
      InputError: a gallery or batch below 1, a split that is absent or empty, or embeddings that
        are not finite.
    """
    for name, value in (("gallery", gallery), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} {value}: must be at least 1; give a larger number.")
    names = {k: f"{split}_k{k}" for k in SOURCES}
    sources = {k: scenes.source(name) for k, name in names.items() if name in scenes.splits}
    sources = {k: source for k, source in sources.items() if len(source)}
    if not sources:
        held = sorted({name.rpartition("_k")[0] for name in scenes.splits})
        raise InputError(
            f"split '{split}': the data hold no scene of {', '.join(names.values())}; "
            f"give one of their splits ({', '.join(held) or 'they have none'})."
        )
    outcomes: dict[str, Outcome] = {}
    embedded: dict[int, EmbeddedSplit] = {}
    with _progress(progress) as bar:
        for k, source in sources.items():
            embedded[k] = _embed_split(embedder, names[k], source, batch_size, bar)
            outcomes |= _retrieval(embedded[k], gallery, seed, str(k))
            if k > 1:
                outcomes |= _assignment(embedded[k], str(k))
        confusion, by_category = None, {}
        if 1 in embedded:
            known = {c for part in embedded.values() for scene in part.categories for c in scene}
            categories = sorted(known - {""})
            prompts = _Prompts(embedder, categories, phrase_set(phrases), batch_size, bar)
            found, confusion = _zero_shot_direction(prompts, embedded[1])
            outcomes |= found
            if len(categories) > 1:
                found, by_category = _zero_shot_content(prompts, embedded[1])
                outcomes |= found
    results = {name: score_of(*outcome) for name, outcome in outcomes.items()}
    return Evaluation(results, confusion, by_category, outcomes, embedded)


def evaluate_recordings(
    embedder: Embedder, csv_path: str | Path, progress: bool = True, batch_size: int = 32
) -> Results:
    """Scores a model on a person's own stereo recordings.

    Args:
      embedder: the model.
      csv_path: a table of `filename` (inside the csv's folder), `caption` and `wrong_captions`
        (separated by `|`; may be blank, then the row is left out of the assignment).
      progress: whether to show a progress bar (on standard error).
      batch_size: texts embedded at once; recordings, each with its length and rate, go one by one.

    Returns:
      Scores `t2a_r1/recordings` and so on, where each distinct caption is one query and one
      gallery item, and `assignment/recordings`: the caption above all wrong ones of its row.

    Raises:
      InputError: the file, a column, a row or a recording cannot be used; the message names it.
    """
    rows = read_recordings(csv_path)
    captions = sorted({row.caption for row in rows})
    texts = sorted({text for row in rows for text in (row.caption, *row.wrong)})
    with _progress(progress) as bar:
        # Texts first: one that is too long is found before the long part.
        try:
            vectors = embed_texts(embedder, texts, batch_size, bar, "captions")
        except InputError as error:
            raise InputError(f"{csv_path}: {error}") from error
        task = bar.add_task("recordings", total=len(rows))
        audio = []
        for row in rows:
            try:
                waveform, sample_rate_hz = read_audio(row.path)
            except InputError as error:
                raise InputError(f"{row.place}: {error}") from error
            if waveform.shape[0] != 2:
                raise InputError(
                    f"{row.place}: '{row.path.name}' has {waveform.shape[0]} channel(s); "
                    "recordings must be stereo (left, right); give a 2-channel file."
                )
            audio.append(
                check_finite(embedder.embed_audio(waveform[None], sample_rate_hz), "audio")[0]
            )
            bar.advance(task)
        audio = np.stack(audio)
    text_of = dict(zip(texts, vectors, strict=True))

    relevant = np.array([[caption == row.caption for row in rows] for caption in captions])
    scores = similarity(np.stack([text_of[c] for c in captions]), audio)
    results: Results = {}
    for task_name, scored, hit in (("t2a", scores, relevant), ("a2t", scores.T, relevant.T)):
        ranks, cluster = relevant_ranks(scored, hit), np.arange(len(scored))
        for at in RECALL_AT:
            key = f"{task_name}_r{at}/recordings"
            results[key] = score_of(ranks <= at, cluster, chance_recall(hit, at))
    hits, chances = [], []
    for row, vector in zip(rows, audio, strict=True):
        if row.wrong:
            choices = np.stack([text_of[text] for text in (row.caption, *row.wrong)])
            hits.append(choose(similarity(vector[None], choices), np.array([0]))[0] == 0)
            chances.append(1 / len(choices))
    if hits:
        results["assignment/recordings"] = score_of(
            np.array(hits), np.arange(len(hits)), float(np.mean(chances))
        )
    return results


def _embed_split(
    embedder: Embedder, name: str, groups: Sequence[SceneGroup], batch_size: int, bar: Progress
) -> EmbeddedSplit:
    captions: list[str] = []
    starts = [0]
    meaning, directions, categories = [], [], []
    sample_rate_hz = int(groups[0].sample_rate_hz)
    for index in range(len(groups)):
        group = groups[index]
        if group.sample_rate_hz != sample_rate_hz:
            raise InputError(
                f"{group.scene_id}: sample_rate_hz {group.sample_rate_hz}; all scenes of a "
                f"split must have the rate of the first, {sample_rate_hz}: render them again."
            )
        captions.extend(group.captions)
        starts.append(len(captions))
        meaning.append(meanings(group)[0])
        directions.append(member_directions(group)[0])
        categories.append(group.categories)
    # Texts first: a caption that is too long for the model is found before the long part.
    try:
        text = embed_texts(embedder, captions, batch_size, bar, f"{name} captions")
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    task = bar.add_task(name, total=len(groups))

    def members() -> Iterator[Float32[np.ndarray, "c t"]]:
        # Read again: the audio of a split need not fit into memory.
        for index in range(len(groups)):
            yield from groups[index].waveforms()
            bar.advance(task)

    def embed(batch: list[Float32[np.ndarray, "c t"]]) -> Float32[np.ndarray, "b d"]:
        return embedder.embed_audio(np.stack(batch), sample_rate_hz)

    audio = embed_in_batches(members(), embed, batch_size, f"audio of {name}")
    return EmbeddedSplit(
        audio, text, np.array(starts), np.array(meaning), np.array(directions), categories
    )


def _galleries(scenes: int, size: int, seed: int) -> list[Int[np.ndarray, "g"]]:
    order = np.random.default_rng(seed).permutation(scenes)
    if scenes < size:
        return [order]
    return list(order[: scenes // size * size].reshape(-1, size))


def _retrieval(part: EmbeddedSplit, size: int, seed: int, suffix: str) -> dict[str, Outcome]:
    first = part.starts[:-1]
    galleries = _galleries(len(first), size, seed)
    scene = np.concatenate(galleries)
    relevant = [part.meaning[rows][:, None] == part.meaning[rows] for rows in galleries]
    scores = [similarity(part.text[first[r]], part.audio[first[r]]) for r in galleries]
    outcomes: dict[str, Outcome] = {}
    for name, scored in (("t2a", scores), ("a2t", [s.T for s in scores])):
        ranks = np.concatenate(list(map(relevant_ranks, scored, relevant)))
        for at in RECALL_AT:
            chance = float(np.mean([chance_recall(r, at) for r in relevant]))
            outcomes[f"{name}_r{at}/{suffix}"] = Outcome(ranks <= at, scene, chance)
    return outcomes


def _assignment(part: EmbeddedSplit, suffix: str) -> dict[str, Outcome]:
    hits, scene, chances = [], [], []
    for index, (start, stop) in enumerate(zip(part.starts[:-1], part.starts[1:], strict=True)):
        members = stop - start
        if members > 1:
            hits.extend(assignment_hits(part.audio[start:stop], part.text[start:stop]))
            scene.extend([index] * members)
            chances.extend([1 / members] * members)
    if not hits:
        return {}
    outcome = Outcome(np.array(hits), np.array(scene), float(np.mean(chances)))
    return {f"assignment/{suffix}": outcome}


@dataclasses.dataclass(frozen=True)
class _Prompts:
    """Prompts of classes become vectors of classes.

    Attributes:
      categories: all that are known.
      phrases: what is said of each direction class.
    """

    embedder: Embedder
    categories: list[str]
    phrases: Sequence[str]
    batch_size: int
    bar: Progress

    def of_directions(self) -> Float[np.ndarray, "5 d"]:
        contents = [p for c in self.categories for p in category_phrasings(c)] or [ANY_SOUND]
        classes = range(len(self.phrases))
        return self._prototypes([self._said(contents, [d]) for d in classes], "direction prompts")

    def of_categories(self) -> Float[np.ndarray, "c d"]:
        classes = range(len(self.phrases))
        texts = [self._said(category_phrasings(c), classes) for c in self.categories]
        return self._prototypes(texts, "content prompts")

    def _said(self, contents: Sequence[str], directions: Sequence[int]) -> list[str]:
        return [
            compose_caption([content], [d], phrases=self.phrases)
            for content in contents
            for d in directions
        ]

    def _prototypes(self, texts: list[list[str]], name: str) -> Float[np.ndarray, "classes d"]:
        flat = [text for of_class in texts for text in of_class]
        vectors = embed_texts(self.embedder, flat, self.batch_size, self.bar, name)
        ends = np.cumsum([len(of_class) for of_class in texts])[:-1]
        return np.stack([prototype(of_class) for of_class in np.split(vectors, ends)])


def _zero_shot_direction(
    prompts: _Prompts, part: EmbeddedSplit
) -> tuple[dict[str, Outcome], Int[np.ndarray, "5 5"]]:
    prototypes, true = prompts.of_directions(), part.directions[:, 0]
    chosen = choose(similarity(part.audio[part.starts[:-1]], prototypes), true)
    outcome = Outcome(chosen == true, np.arange(len(true)), 1 / len(prototypes))
    return {"direction/1": outcome}, confusion_matrix(true, chosen, len(prototypes))


def _zero_shot_content(
    prompts: _Prompts, part: EmbeddedSplit
) -> tuple[dict[str, Outcome], Results]:
    labelled = np.array([i for i, scene in enumerate(part.categories) if scene[0]], dtype=int)
    if not len(labelled):
        return {}, {}
    categories = prompts.categories
    prototypes = prompts.of_categories()
    true = np.array([categories.index(part.categories[i][0]) for i in labelled])
    audio = part.audio[part.starts[:-1][labelled]]
    hits = choose(similarity(audio, prototypes), true) == true
    chance = 1 / len(categories)
    by_category = {
        name: score_of(hits[true == index], labelled[true == index], chance)
        for index, name in enumerate(categories)
        if (true == index).any()
    }
    return {"content/1": Outcome(hits, labelled, chance)}, by_category


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
