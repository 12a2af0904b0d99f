"""The numbers of a trained model: retrieval, zero-shot direction and content, assignment.

Scores are flat by name, `{task}/{number of sources}`; plain clips, which have no place, are scored
under `{task}/plain`, and a person's own recordings, whose number of sources nobody counts, under
`{task}/recordings`. Scenes in ELSA's words are asked what its paper asks; see `metrics/elsa.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spatial_clap_jax.acoustics.directions import phrase_set
from spatial_clap_jax.acoustics.foa import FoaFormat, as_acn_sn3d, check_declared, mono_as_foa
from spatial_clap_jax.data.audio import read_audio
from spatial_clap_jax.data.manifests import LEVELLED
from spatial_clap_jax.data.pipeline import Scenes
from spatial_clap_jax.data.recordings import Recording, read_recordings
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.captions import retrieve_captions
from spatial_clap_jax.metrics.clips import probe_clips, trained_labels, zero_shot_labels
from spatial_clap_jax.metrics.elsa import (
    cluster_distances,
    direction_swap,
    learn_localisation,
    localisation,
    zero_shot_attributes,
)
from spatial_clap_jax.metrics.embed import Embedder, check_finite, embed_texts
from spatial_clap_jax.metrics.embedded import EmbeddedSplit, embed_split
from spatial_clap_jax.metrics.prompts import Prompts
from spatial_clap_jax.metrics.retrieval import (
    average_precision,
    chance_average_precision,
    chance_recall,
    relevant_ranks,
    similarity,
)
from spatial_clap_jax.metrics.scores import (
    Outcome,
    Results,
    check_results_path,
    measure_of,
    score_of,
    write_results,
)
from spatial_clap_jax.metrics.zero_shot import (
    assignment_hits,
    choose,
    confusion_matrix,
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
PRECISION_AT = 10
# Number of sources that are placed, and what their scores are called; none: the plain clip.
SOURCES = {0: "plain", 1: "1", 2: "2", 3: "3"}
# Where scenes of one source to learn from lie.
_LEARNT = "train_k1"
_LAYOUTS = {
    1: "mono",
    2: "stereo (left, right)",
    4: "first-order ambisonics",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All scores, and what they leave out.

    Attributes:
      results: the flat scores.
      direction_confusion: 1-source scenes by true (row) and chosen (column) direction class, five
        of stereo scenes, four of those in ELSA's words; None where the data have none.
      content_by_category: the content score of each category apart.
      outcomes: what each share of `results` was counted from, query by query.
      embedded: the scenes by number of sources.
      learnt: the training scenes that localisation learnt from; None without it.
      probe_strength: inverse strength of regularisation that the linear probe chose; None
        without one.
    """

    results: Results
    direction_confusion: Int[np.ndarray, "d d"] | None
    content_by_category: Results
    outcomes: dict[str, Outcome]
    embedded: dict[int, EmbeddedSplit]
    learnt: EmbeddedSplit | None = None
    probe_strength: float | None = None


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
    localise: int = 8000,
    probe: bool = False,
    captions: Literal["drawn", "all"] = "drawn",
) -> Evaluation:
    """Scores a model on the scene groups of one split, and says where it errs.

    Retrieval searches galleries of the identity members: the split, shuffled by `seed`, is cut
    into as many galleries as it fills; where it fills none, all of it is one gallery (its n then
    stays below `gallery`). An item of the same meaning (the set of (category, direction class),
    the clip's id where it has no category) is a hit. Assignment asks every member of every group.
    Zero-shot scores are of 1-source scenes, against prototypes made of prompts. Of scenes in
    ELSA's words, retrieval has mAP@10 too, plain clips have galleries of their own, and 1-source
    scenes are asked about direction, elevation, distance and room, localised in 3-D, and moved to
    other directions by arithmetic. Mono clips are asked for their labels, by prompt and, of a model
    that has a trained head for classes, by its logits; a linear probe learns them from features.
    Of a model that reads no texts these two are all that is asked.

    Args:
      embedder: the model.
      scenes: opened data; the names of its splits are `{split}_k{sources}`.
      split: which split; its plain clips and 1-, 2- and 3-source parts are scored where they exist.
      gallery: scenes in a gallery.
      seed: of the cut into galleries.
      progress: whether to show a progress bar (on standard error).
      batch_size: rows embedded at once; every batch is filled up to it.
      phrases: set of direction phrases (`PHRASE_SETS`) of the zero-shot prompts of stereo scenes.
      localise: of scenes in ELSA's words, how many training scenes are embedded to learn
        localisation from; 0 leaves it out, as do data without `train_k1`, or that split itself.
      probe: whether to train and test a linear probe on plain clips; it learns from all of
        `train_k0` and chooses by `validation_k0`.
      captions: 'all' searches the whole split of mono clips by all captions of each clip besides,
        see `metrics/captions.py`; 'drawn' keeps to the one that a record has.

    Returns:
      Scores `t2a_r1/K`, `t2a_r5/K`, `t2a_r10/K`, `a2t_r1/K`, ... for K sources, `direction/1`,
      `content/1` (where at least two categories are known) and `assignment/2`, `assignment/3`
      (where groups have several members); the confusion of directions; the score by category.
      Of scenes in ELSA's words `t2a_map10/K`, `a2t_map10/K`, the attributes in place of
      `direction/1`, and what `metrics/elsa.py` tells. Of mono clips `content/plain` (where each
      has one label) and `content_map/plain`, and likewise `labels` and `probe`; and by all captions
      `t2a_all_r1/plain`, `a2t_all_r1/plain`, ...

    Raises:
      InputError: a gallery or batch below 1, a split that is absent or empty, a model of other
        channels or one that reads no texts, embeddings that are not finite, a probe of data
        without plain clips of all three splits or without categories or of a split that it learns
        from, or all captions of data without mono clips.
    """
    for name, value, least in (
        ("gallery", gallery, 1),
        ("batch_size", batch_size, 1),
        ("localise", localise, 0),
    ):
        if value < least:
            raise InputError(f"{name} {value}: must be at least {least}; give a larger number.")
    if probe and split in ("train", "validation"):
        raise InputError(
            f"--probe: learns from train and chooses by validation, and --split {split} would test "
            "it on the same clips; give --split test, or leave the probe out."
        )
    said = phrase_set(phrases)
    embedder = _for_records_of(embedder, scenes)
    names = {k: f"{split}_k{k}" for k in SOURCES}
    sources = {k: scenes.source(name) for k, name in names.items() if name in scenes.splits}
    sources = {k: source for k, source in sources.items() if len(source)}
    if not sources:
        held = sorted({name.rpartition("_k")[0] for name in scenes.splits})
        raise InputError(
            f"split '{split}': the data hold no scene of {', '.join(names.values())}; "
            f"give one of their splits ({', '.join(held) or 'they have none'})."
        )
    plain = sources.get(0)
    if not getattr(embedder, "reads_texts", True):
        if plain is None or not (probe or getattr(embedder, "classes", ())):
            raise InputError(
                "this model reads no texts, so that nothing can be told of the scenes; give the "
                "text encoder that it learnt from or its vectors, or clips and a probe; one that "
                "was told labels must be trained with captions first, by --init.model."
            )
        sources = {}
    if captions == "all" and 0 not in sources:
        raise InputError(
            f"captions 'all': needs mono clips ({names[0]}) and a model that reads texts; give "
            "clips (configs/clips.py), or leave it out."
        )
    outcomes: dict[str, Outcome] = {}
    measures: Results = {}
    embedded: dict[int, EmbeddedSplit] = {}
    confusion, by_category, learnt, probed = None, {}, None, None
    with _progress(progress) as bar:
        for k, source in sources.items():
            part = embedded[k] = embed_split(embedder, names[k], source, batch_size, bar)
            outcomes |= _retrieval(part, gallery, seed, SOURCES[k])
            if part.words == "elsa":
                measures |= _mean_precision(part, gallery, seed, SOURCES[k])
            if k > 1:
                outcomes |= _assignment(part, SOURCES[k])
            if k == 0 and captions == "all":
                outcomes |= retrieve_captions(embedder, part, RECALL_AT, batch_size, bar)
            if k == 0 and part.words == "stereo":
                classes = getattr(scenes, "manifest", {}).get("categories", ())
                found, measured = zero_shot_labels(embedder, part, classes, batch_size, bar)
                outcomes |= found
                measures |= measured
        if plain is not None:
            found, measured = trained_labels(embedder, plain, names[0], batch_size, bar)
            outcomes |= found
            measures |= measured
        if probe:
            probed = probe_clips(embedder, scenes, split, batch_size, bar)
            outcomes |= probed.outcomes
            measures |= probed.measures
        if 1 in embedded:
            known = {c for part in embedded.values() for scene in part.categories for c in scene}
            prompts = Prompts(embedder, sorted(known - {""}), said, batch_size, bar)
            part = embedded[1]
            if part.words == "stereo":
                found, confusion = _zero_shot_direction(prompts, part)
            else:
                if localise and split != "train" and _LEARNT in scenes.splits:
                    some = _some(scenes.source(_LEARNT), localise, seed)
                    learnt = embed_split(embedder, _LEARNT, some, batch_size, bar)
                found, confusion, measured = _elsa(prompts, part, learnt, seed)
                measures |= measured
            outcomes |= found
            if len(prompts.categories) > 1:
                found, by_category = _zero_shot_content(prompts, part)
                outcomes |= found
    results = {name: score_of(*outcome) for name, outcome in outcomes.items()} | measures
    return Evaluation(
        results,
        confusion,
        by_category,
        outcomes,
        embedded,
        learnt,
        probed.strength if probed else None,
    )


def _for_records_of(embedder: Embedder, scenes: Scenes) -> Embedder:
    """The model that hears records as they are where rendering brought them to their level."""
    recipe = getattr(scenes, "manifest", {}).get("recipe", {})
    hears_records = getattr(embedder, "of_records", None)
    if hears_records is None or recipe.get("level", LEVELLED) != LEVELLED:
        return embedder
    return hears_records()


def evaluate_recordings(
    embedder: Embedder,
    csv_path: str | Path,
    progress: bool = True,
    batch_size: int = 32,
    plain: bool = False,
    foa_format: FoaFormat = "acn-sn3d",
) -> Results:
    """Scores a model on a person's own recordings, of the channels that it takes.

    Args:
      embedder: the model.
      csv_path: a table of `filename` (inside the csv's folder), `caption` and `wrong_captions`
        (separated by `|`; may be blank, then the row is left out of the assignment).
      progress: whether to show a progress bar (on standard error).
      batch_size: texts embedded at once; recordings, each with its length and rate, go one by one.
      plain: the recordings are of one channel and have no place; for a model of first-order
        ambisonics, which hears them in all four channels, as it was trained to.
      foa_format: how recordings of first-order ambisonics order and scale their channels; what is
        not in ACN order with SN3D gains is converted.

    Returns:
      Scores `t2a_r1/recordings` and so on, where each distinct caption is one query and one
      gallery item, and `assignment/recordings`: the caption above all wrong ones of its row.

    Raises:
      InputError: the file, a column, a row or a recording cannot be used, and the message names
        it; `plain` or `foa_format` of a model that does not take ambisonics.
    """
    channels = getattr(embedder, "channels", 2)
    check_declared(channels, plain, foa_format)
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
            heard, sample_rate_hz = _heard(row, channels, plain, foa_format)
            audio.append(
                check_finite(embedder.embed_audio(heard[None], sample_rate_hz), "audio")[0]
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


def _heard(
    row: Recording, channels: int, plain: bool, foa_format: FoaFormat
) -> tuple[Float[np.ndarray, "c t"], int]:
    """A recording as a model of so many channels hears it, and its rate."""
    try:
        waveform, sample_rate_hz = read_audio(row.path)
    except InputError as error:
        raise InputError(f"{row.place}: {error}") from error
    wanted = 1 if plain else channels
    if waveform.shape[0] != wanted:
        layout = _LAYOUTS[wanted] + (f" ({foa_format})" if wanted == 4 else "")
        raise InputError(
            f"{row.place}: '{row.path.name}' has {waveform.shape[0]} channel(s); recordings must "
            f"be {layout}; give a {wanted}-channel file."
        )
    if plain:
        return mono_as_foa(waveform[0]), sample_rate_hz
    return as_acn_sn3d(waveform, foa_format) if wanted == 4 else waveform, sample_rate_hz


def _galleries(scenes: int, size: int, seed: int) -> list[Int[np.ndarray, "g"]]:
    order = np.random.default_rng(seed).permutation(scenes)
    if scenes < size:
        return [order]
    return list(order[: scenes // size * size].reshape(-1, size))


@dataclasses.dataclass(frozen=True)
class _Galleries:
    """The identity members of a split, cut into galleries.

    Attributes:
      scene: the scene of each query, galleries one after another.
      scores: of each gallery, similarity of its captions (rows) to its audio.
      relevant: of each gallery, whether they mean the same.
    """

    scene: Int[np.ndarray, "q"]
    scores: list[Float[np.ndarray, "g g"]]
    relevant: list[Bool[np.ndarray, "g g"]]

    @classmethod
    def of(cls, part: EmbeddedSplit, size: int, seed: int) -> _Galleries:
        first = part.starts[:-1]
        cut = _galleries(len(first), size, seed)
        return cls(
            np.concatenate(cut),
            [similarity(part.text[first[rows]], part.audio[first[rows]]) for rows in cut],
            [part.meaning[rows][:, None] == part.meaning[rows] for rows in cut],
        )

    def both_ways(self) -> dict[str, list[Float[np.ndarray, "g g"]]]:
        return {"t2a": self.scores, "a2t": [scores.T for scores in self.scores]}


def _retrieval(part: EmbeddedSplit, size: int, seed: int, suffix: str) -> dict[str, Outcome]:
    galleries = _Galleries.of(part, size, seed)
    scene, relevant = galleries.scene, galleries.relevant
    outcomes: dict[str, Outcome] = {}
    for name, scored in galleries.both_ways().items():
        ranks = np.concatenate(list(map(relevant_ranks, scored, relevant)))
        for at in RECALL_AT:
            chance = float(np.mean([chance_recall(r, at) for r in relevant]))
            outcomes[f"{name}_r{at}/{suffix}"] = Outcome(ranks <= at, scene, chance)
    return outcomes


def _mean_precision(part: EmbeddedSplit, size: int, seed: int, suffix: str) -> Results:
    galleries = _Galleries.of(part, size, seed)
    chance = float(np.mean([chance_average_precision(r, PRECISION_AT) for r in galleries.relevant]))
    results: Results = {}
    for name, scored in galleries.both_ways().items():
        values = [
            average_precision(scores, relevant, PRECISION_AT)
            for scores, relevant in zip(scored, galleries.relevant, strict=True)
        ]
        results[f"{name}_map{PRECISION_AT}/{suffix}"] = measure_of(np.concatenate(values), chance)
    return results


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


def _zero_shot_direction(
    prompts: Prompts, part: EmbeddedSplit
) -> tuple[dict[str, Outcome], Int[np.ndarray, "5 5"]]:
    prototypes, true = prompts.of_directions(), part.directions[:, 0]
    chosen = choose(similarity(part.audio[part.starts[:-1]], prototypes), true)
    outcome = Outcome(chosen == true, np.arange(len(true)), 1 / len(prototypes))
    return {"direction/1": outcome}, confusion_matrix(true, chosen, len(prototypes))


def _elsa(
    prompts: Prompts, part: EmbeddedSplit, learnt: EmbeddedSplit | None, seed: int
) -> tuple[dict[str, Outcome], Int[np.ndarray, "4 4"] | None, Results]:
    """Attributes, their confusion; localisation, swaps of directions, distances of clusters."""
    prototypes = prompts.of_attributes()
    outcomes, confusion = zero_shot_attributes(part, prototypes)
    localiser, measures = None, {}
    if learnt is not None:
        localiser = learn_localisation(learnt, seed)
        measures = localisation(localiser, learnt, part)
    contents = sorted({text for scene in part.contents for text in scene})
    moved, changes = direction_swap(
        part, prototypes["direction_4"], contents, prompts.of_texts(contents), localiser
    )
    return outcomes | moved, confusion, measures | changes | cluster_distances(part, seed)


def _some(source: Sequence[SceneGroup], count: int, seed: int) -> Sequence[SceneGroup]:
    """At most so many of the groups, drawn; read only when asked for."""
    drawn = np.random.default_rng(seed).permutation(len(source))[:count]
    return _Chosen(source, tuple(sorted(drawn.tolist())))


@dataclasses.dataclass(frozen=True)
class _Chosen(Sequence[SceneGroup]):
    source: Sequence[SceneGroup]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> SceneGroup:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.source[self.rows[index]]


def _zero_shot_content(prompts: Prompts, part: EmbeddedSplit) -> tuple[dict[str, Outcome], Results]:
    labelled = np.array([i for i, scene in enumerate(part.categories) if scene[0]], dtype=int)
    if not len(labelled):
        return {}, {}
    categories = prompts.categories
    in_stereo = part.words == "stereo"
    prototypes = prompts.of_categories() if in_stereo else prompts.of_contents_anywhere()
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
