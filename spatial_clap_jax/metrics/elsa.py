"""What ELSA's paper asks of scenes of one source, from their embeddings and text prototypes.

Of embeddings alone, so that each question can be asked of any model.

Reference: ELSA, arXiv 2409.11369; bins, chance levels and intervals are our choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from spatial_clap_jax.acoustics.foa import unit_vectors
from spatial_clap_jax.acoustics.spatial_words import DIRECTIONS, DIRECTIONS_8, DISTANCES
from spatial_clap_jax.metrics.arithmetic import remove, swap
from spatial_clap_jax.metrics.attributes import ATTRIBUTES, answers
from spatial_clap_jax.metrics.clusters import cluster_distance
from spatial_clap_jax.metrics.embedded import EmbeddedSplit, Places
from spatial_clap_jax.metrics.localisation import (
    Localiser,
    angular_error_deg,
    best_constant,
    fit_localiser,
)
from spatial_clap_jax.metrics.resampling import bootstrap
from spatial_clap_jax.metrics.retrieval import chance_recall, relevant_ranks, similarity
from spatial_clap_jax.metrics.scores import Outcome, Results, Score, measure_of
from spatial_clap_jax.metrics.zero_shot import choose, confusion_matrix

# Recall of contents before and after a swap.
CONTENT_RECALL_AT = (1, 10)
# Scenes in the smaller of two clusters, below which no distance is told.
_LEAST_CLUSTER = 4
# Edges of the bins by which errors are broken down; those of distance and area part the words.
_ELEVATION_EDGES_DEG = (-20.0, 20.0)
_DISTANCE_EDGES_M = (1.0, 2.0)
_FLOOR_AREA_EDGES_M2 = (50.0, 100.0)
_T30_EDGES_S = (0.2, 0.4, 0.6, 1.0)


def zero_shot_attributes(
    part: EmbeddedSplit, prototypes: Mapping[str, Float[np.ndarray, "c d"]]
) -> tuple[dict[str, Outcome], Int[np.ndarray, "4 4"] | None]:
    """Each attribute of scenes of one source, by the nearest prototype.

    Only scenes that have a word are asked: between the ranges no answer is right. Words are not
    equally frequent, so chance is the share of the most frequent one, which the best constant
    answer reaches. Scenes of one room share its size and its reverberation, those of one place its
    response: what is asked of the room has the room as its cluster, what is asked of the source the
    place.

    Args:
      part: the scenes.
      prototypes: of the words of each of the `ATTRIBUTES`.

    Returns:
      `direction_4/1`, `elevation/1`, ... where any scene has a word; the confusion of the four
      directions by true (row) and chosen (column), None where none has one.
    """
    outcomes, confusion = {}, None
    for name, true in answers(_places(part)).items():
        asked = np.flatnonzero(true >= 0)
        if not len(asked):
            continue
        vectors = prototypes[name]
        chosen = choose(similarity(part.identities[asked], vectors), true[asked])
        chance = float(np.bincount(true[asked]).max() / len(asked))
        cluster = (part.room if ATTRIBUTES[name].of_room else part.place)[asked]
        outcomes[f"{name}/1"] = Outcome(chosen == true[asked], cluster, chance)
        if name == "direction_4":
            confusion = confusion_matrix(true[asked], chosen, len(vectors))
    return outcomes, confusion


def direction_swap(
    part: EmbeddedSplit,
    directions: Float[np.ndarray, "4 d"],
    contents: Sequence[str],
    content_vectors: Float[np.ndarray, "g d"],
    localiser: Localiser | None = None,
) -> tuple[dict[str, Outcome], Results]:
    """Directions exchanged in the embedding space by text prototypes, and what contents suffer.

    Of each scene with a direction word, the prototype of its direction is subtracted and each of
    the three others added (`swapped`), or nothing (`removed`). What is added is also what is asked
    for, at a length that outweighs most of what was there: embeddings that say nothing reach nearly
    100 % too. So read it beside what a listener trained on audio makes of it, which is asked where
    there is one, and beside the recall of contents.

    Args:
      part: scenes of one source.
      directions: prototypes of the four directions.
      contents: the distinct contents that scenes are described with, the gallery of contents.
      content_vectors: their embeddings.
      localiser: a network that has learnt to localise from audio.

    Returns:
      `direction_4/swapped`: the new direction is heard; `direction_4/removed`: the old one still
      is; `direction_4_localised/1`, `/swapped`, `/removed`: the same of the nearest of the four
      directions to where the localiser hears it; `content_r10/1`, `/swapped`, `/removed`: recall of
      the scene's contents, said without a place, as it was, after a swap, and after the removal
      (R@1 too). Then the differences to what it was, `content_r10_change/swapped` and so on, in
      shares, chance 0.
    """
    true = answers(_places(part))["direction_4"]
    rows = np.flatnonzero(true >= 0)
    if not len(rows):
        return {}, {}
    old, place = true[rows], part.place[rows]
    # Three queries a scene: its other directions.
    turns = np.concatenate([(old + turn) % len(directions) for turn in (1, 2, 3)])
    again = np.tile(np.arange(len(rows)), 3)
    embeddings = part.identities[rows]
    swapped = swap(embeddings[again], directions[old[again]], directions[turns])
    removed = remove(embeddings, directions[old])
    chance = 1 / len(directions)
    outcomes = {
        "direction_4/swapped": _heard_at(swapped, directions, turns, place[again], chance),
        "direction_4/removed": _heard_at(removed, directions, old, place, chance),
    }
    if localiser is not None:
        for what, vectors, wanted, cluster in (
            ("1", embeddings, old, place),
            ("swapped", swapped, turns, place[again]),
            ("removed", removed, old, place),
        ):
            hits = _nearest_of_four(localiser, vectors) == wanted
            outcomes[f"direction_4_localised/{what}"] = Outcome(hits, cluster, chance)
    relevant = _says(part, contents)[rows]
    before = relevant_ranks(similarity(embeddings, content_vectors), relevant)
    results: Results = {}
    for at in CONTENT_RECALL_AT:
        name, level = f"content_r{at}", chance_recall(relevant, at)
        outcomes[f"{name}/1"] = Outcome(before <= at, rows, level)
        for what, moved, of in (
            ("swapped", swapped, again),
            ("removed", removed, np.arange(len(rows))),
        ):
            ranks = relevant_ranks(similarity(moved, content_vectors), relevant[of])
            outcomes[f"{name}/{what}"] = Outcome(ranks <= at, rows[of], level)
            results[f"{name}_change/{what}"] = _change(ranks <= at, before[of] <= at, rows[of])
    return outcomes, results


def learn_localisation(train: EmbeddedSplit, seed: int = 0) -> Localiser:
    """A network of two layers that localises scenes of one source from frozen embeddings.

    Args:
      train: the scenes that it learns from.
      seed: of its weights and batches.
    """
    known = _places(train)
    directions = unit_vectors(known.azimuth_deg, known.elevation_deg)
    return fit_localiser(train.identities, directions, known.distance_m, seed=seed)


def localisation(localiser: Localiser, train: EmbeddedSplit, test: EmbeddedSplit) -> Results:
    """How far off 3-D localisation from frozen embeddings is.

    Args:
      localiser: what `learn_localisation` made of `train`.
      train: the scenes that it learnt from, whose best constant answer is chance.
      test: other scenes, that it is asked about.

    Returns:
      `angular_error_deg/1` (mean), `angular_error_median_deg/1`, `distance_error_m/1` (mean), each
      beside the error of the best constant answer; and the mean angular error of parts of the
      scenes, `angular_error_deg/azimuth: left`, `.../T30: 0.2 to 0.4 s`, `.../category: rain`.
    """
    learnt, asked, place = _places(train), _places(test), test.place
    known = unit_vectors(learnt.azimuth_deg, learnt.elevation_deg)
    directions, distance_m = localiser.predict(test.identities)
    target = unit_vectors(asked.azimuth_deg, asked.elevation_deg)
    error = angular_error_deg(directions, target)
    blind = angular_error_deg(np.broadcast_to(best_constant(known), target.shape), target)
    distance_error = np.abs(distance_m - asked.distance_m)
    blind_m = np.abs(np.median(learnt.distance_m) - asked.distance_m)
    results = {
        "angular_error_deg/1": measure_of(error, float(blind.mean()), cluster=place),
        "angular_error_median_deg/1": measure_of(
            error, float(np.median(blind)), np.median, cluster=place
        ),
        "distance_error_m/1": measure_of(distance_error, float(blind_m.mean()), cluster=place),
    }
    for name, rows in _parts(test):
        if rows.any():
            results[f"angular_error_deg/{name}"] = measure_of(
                error[rows], float(blind[rows].mean()), cluster=place[rows]
            )
    return results


def cluster_distances(part: EmbeddedSplit, seed: int = 0) -> Results:
    """Wasserstein distances between scenes of different directions, and of near and far ones.

    Args:
      part: scenes of one source.
      seed: of the samples, see `cluster_distance`.

    Returns:
      `wasserstein/front - left` and the other pairs of the four directions, and
      `wasserstein/near - far`, where both clusters hold at least four scenes.
    """
    true, results = answers(_places(part)), {}
    for attribute, words in (("direction_4", DIRECTIONS), ("distance", DISTANCES)):
        clusters = [part.identities[true[attribute] == index] for index in range(len(words))]
        for one, other in itertools.combinations(range(len(words)), 2):
            if min(len(clusters[one]), len(clusters[other])) >= _LEAST_CLUSTER:
                results[f"wasserstein/{words[one]} - {words[other]}"] = cluster_distance(
                    clusters[one], clusters[other], seed
                )
    return results


def content_keys(part: EmbeddedSplit) -> list[str]:
    """What each scene's source is known by: its category, or, without one, what it is called."""
    return [
        f"category {category[0]}" if category[0] else f"captions {sorted(map(str.lower, contents))}"
        for category, contents in zip(part.categories, part.contents, strict=True)
    ]


def _places(part: EmbeddedSplit) -> Places:
    if part.places is None:
        raise ValueError("no places; give scenes of one source with ELSA's words.")
    return part.places


def _says(part: EmbeddedSplit, contents: Sequence[str]) -> Bool[np.ndarray, "s g"]:
    """Whether a content may be said of a scene, or of another of its category."""
    keys = content_keys(part)
    said: dict[str, set[str]] = {}
    for key, of_scene in zip(keys, part.contents, strict=True):
        said.setdefault(key, set()).update(of_scene)
    return np.array([[content in said[key] for content in contents] for key in keys])


def _heard_at(
    embeddings: Float[np.ndarray, "n d"],
    directions: Float[np.ndarray, "4 d"],
    wanted: Int[np.ndarray, "n"],
    place: Int[np.ndarray, "n"],
    chance: float,
) -> Outcome:
    chosen = choose(similarity(embeddings, directions), wanted)
    return Outcome(chosen == wanted, place, chance)


def _nearest_of_four(
    localiser: Localiser, embeddings: Float[np.ndarray, "n d"]
) -> Int[np.ndarray, "n"]:
    """Index into `DIRECTIONS`, which follow each other by 90 degrees, of the nearest direction."""
    directions, _ = localiser.predict(embeddings)
    azimuth_deg = np.degrees(np.arctan2(directions[:, 1], directions[:, 0]))
    return np.rint(azimuth_deg / 90).astype(int) % len(DIRECTIONS)


def _change(
    after: Bool[np.ndarray, "n"], before: Bool[np.ndarray, "n"], scene: Int[np.ndarray, "n"]
) -> Score:
    found = bootstrap(after[None], scene, before[None])
    return Score(value=found.value, low=found.low, high=found.high, chance=0.0, n=len(after))


def _parts(test: EmbeddedSplit) -> Iterator[tuple[str, Bool[np.ndarray, "s"]]]:
    """Parts of the scenes by name: eight directions, bins of the other quantities, categories."""
    places = _places(test)
    sector = answers(places)["direction_8"]
    for index, word in enumerate(DIRECTIONS_8):
        yield f"azimuth: {word}", sector == index
    for name, unit, values, edges in (
        ("elevation", "deg", places.elevation_deg, _ELEVATION_EDGES_DEG),
        ("distance", "m", places.distance_m, _DISTANCE_EDGES_M),
        ("floor area", "m2", places.floor_area_m2, _FLOOR_AREA_EDGES_M2),
        ("T30", "s", places.t30_s, _T30_EDGES_S),
    ):
        for low, high in itertools.pairwise((-np.inf, *edges, np.inf)):
            said = f"{low:g} to {high:g}"
            if low == -np.inf:
                said = f"below {high:g}"
            elif high == np.inf:
                said = f"from {low:g}"
            yield f"{name}: {said} {unit}", (values >= low) & (values < high)
    names = [scene[0] for scene in test.categories]
    for category in sorted(set(names) - {""}):
        yield f"category: {category}", np.array([name == category for name in names])
