"""How well sound events are detected and localised: F, DOA and distance error, on-screen accuracy.

Two scorers: a corrected one, and the one that the public code of DCASE 2025 Task 3 is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from spatial_clap_jax.data.sound_events import SoundEvents, no_events
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.scores import Results, Score
from spatial_clap_jax.metrics.seld_matches import EPSILON, Tally, tallied

# How many other clips each clip's predictions are held against to tell what chance reaches.
_CHANCE_TURNS = 10


class Measure(NamedTuple):
    """A number and its 95 % interval, by the jackknife over clips; NaN where it is not defined."""

    value: float
    low: float
    high: float


class SeldMeasures(NamedTuple):
    """What is measured.

    Attributes:
      f: F of events within 20 degrees and a relative distance error of 1.
      doae_deg: mean azimuth error of matched events.
      rde: mean of the distance error over the true distance, of matched events.
      on_screen: share of matched events with the right on-screen flag.
      references: events in the truth, one a source and frame.
      matched: of them, those with a prediction of their class in the frame.
    """

    f: Measure
    doae_deg: Measure
    rde: Measure
    on_screen: Measure
    references: int
    matched: int


@dataclasses.dataclass(frozen=True)
class SeldScores:
    """Scores of a set of clips.

    Attributes:
      macro: means over classes.
      micro: of the events of all classes together.
      by_class: of each class.
    """

    macro: SeldMeasures
    micro: SeldMeasures
    by_class: dict[str, SeldMeasures]


def score(
    predictions: Mapping[str, SoundEvents],
    references: Mapping[str, SoundEvents],
    classes: Sequence[str],
    labels: int,
    official: bool = False,
    on_screen: bool = False,
) -> SeldScores:
    """Scores predictions frame by frame.

    In each frame the predictions of a class are matched with its references so that the sum of
    azimuth errors is least; azimuths behind count as those in front. A matched pair is a hit
    within 20 degrees and a relative distance error of 1. F is twice the hits over predictions and
    references together.

    The official scorer differs from the corrected one in this: the last frame that has a
    reference is not scored, nor what is predicted later, nor clips without a reference or without
    predictions; a class that is neither in the truth nor predicted has F = 0 in the mean over
    classes. It reads files, so that azimuths are whole degrees and distances whole centimetres.
    The interval of a measure that is not defined without some clip is NaN; the corrected one
    leaves such clips out. Frames with more than ten sources of one class, of which the public code
    loses some, are not followed.

    Args:
      predictions: events by clip. A clip without an entry has none.
      references: the truth of each clip.
      classes: names of the classes.
      labels: label frames of a clip.
      official: whether to score as the public code does.
      on_screen: whether a hit needs the right on-screen flag too.

    Returns:
      The scores; intervals are those of the bias-corrected jackknife with Student's t.

    Raises:
      InputError: predictions of an unknown clip, no clip to score, or events that are in no frame
        or of no class.

    Reference: evaluation of DCASE 2025 Task 3, and its public code; jackknife: Efron 1981.

    Example:
      One reference at 0 degrees, predictions at 5 and 40 degrees of the same distance: F = 2/3,
      and a DOA error of 5 degrees.
    """
    tally = tallied(predictions, references, classes, labels, official, on_screen)
    return _scores(tally, classes, official)


def seld_results(
    predictions: Mapping[str, SoundEvents],
    references: Mapping[str, SoundEvents],
    classes: Sequence[str],
    labels: int,
    official: bool = False,
    on_screen: bool = False,
) -> Results:
    """The scores as the results file has them.

    Chance of F and azimuth is what the same predictions score on other clips: a mean over up to ten
    of them. That of a distance is what the best constant scores in place of the predicted ones, and
    that of on-screen what the more frequent flag does, each chosen on the very events scored.

    Args:
      predictions: events by clip.
      references: the truth of each clip.
      classes: names of the classes.
      labels: label frames of a clip.
      official: whether to score as the public code does, see `score`.
      on_screen: whether the model tells what is on screen.

    Returns:
      `seld_f/macro`, `seld_f/micro` and `seld_f/class: NAME`, and so `seld_doae_deg`,
      `seld_rde_ratio` and, where on-screen is told, `seld_f_on_screen` and `seld_on_screen`;
      without what is not defined. n counts references, of errors matched pairs.

    Raises:
      InputError: there are fewer than two clips, or as `score`.
    """
    results: Results = {}
    for needs_flag in (False, True) if on_screen else (False,):
        tally_of = partial(
            tallied,
            references=references,
            classes=classes,
            labels=labels,
            official=official,
            on_screen=needs_flag,
        )
        tally = tally_of(predictions)
        clips = len(tally.references)
        if clips < 2:
            raise InputError("references: one clip has no interval; give two clips or more.")
        scores = _scores(tally, classes, official)
        names = sorted(references)
        turned = [
            dict(zip(names, _turned(predictions, names, turn), strict=True))
            for turn in range(1, min(clips - 1, _CHANCE_TURNS) + 1)
        ]
        by_chance = [_without_intervals(tally_of(other), classes, official) for other in turned]
        chances = {"f": by_chance, "doae_deg": by_chance}
        wanted = {"f": "seld_f_on_screen", "on_screen": "seld_on_screen"}
        if needs_flag:
            said = [_said(predictions, on_screen=flag) for flag in (False, True)]
            flags = [_without_intervals(tally_of(one), classes, official) for one in said]
            chances["on_screen"] = [max(flags, key=lambda one: one.micro.on_screen.value)]
        else:
            wanted = {"f": "seld_f", "doae_deg": "seld_doae_deg", "rde": "seld_rde_ratio"}
            said = [_said(predictions, distance_m=d) for d in _distances(references)]
            constants = [_without_intervals(tally_of(one), classes, official) for one in said]
            best = min(constants, key=lambda one: one.micro.rde.value, default=None)
            chances["rde"] = [] if best is None else [best]
        for measure, task in wanted.items():
            results |= _rows(task, measure, scores, chances[measure])
    return results


def _without_intervals(tally: Tally, classes: Sequence[str], official: bool) -> SeldScores:
    return _scores(tally.summed(0, keepdims=True), classes, official)


def _said(
    predictions: Mapping[str, SoundEvents],
    distance_m: float | None = None,
    on_screen: bool | None = None,
) -> dict[str, SoundEvents]:
    """The same events with one distance, or one flag, for all."""
    changed: dict[str, SoundEvents] = {}
    for name, events in predictions.items():
        given: dict[str, np.ndarray] = {}
        if distance_m is not None:
            given["distance_m"] = np.full(len(events), distance_m, np.float32)
        if on_screen is not None:
            given["on_screen"] = np.full(len(events), on_screen)
        changed[name] = dataclasses.replace(events, **given)
    return changed


def _distances(references: Mapping[str, SoundEvents]) -> list[float]:
    """Constants to choose from; the best one is below the median, for far ones weigh less."""
    true = [events.distance_m for events in references.values() if len(events)]
    return np.quantile(np.concatenate(true), np.arange(0.05, 0.8, 0.05)).tolist() if true else []


def _turned(
    predictions: Mapping[str, SoundEvents], names: Sequence[str], turn: int
) -> list[SoundEvents]:
    return [
        predictions.get(names[(index + turn) % len(names)], no_events())
        for index in range(len(names))
    ]


def _rows(
    task: str, measure: str, scores: SeldScores, others: Sequence[SeldScores]
) -> dict[str, Score]:
    """Rows of one measure: of all classes, and of each."""
    parts = {
        "macro": (scores.macro, [other.macro for other in others]),
        "micro": (scores.micro, [other.micro for other in others]),
    }
    for name, found in scores.by_class.items():
        parts[f"class: {name}"] = (found, [other.by_class[name] for other in others])
    overall = _mean_known([getattr(other.micro, measure).value for other in others])
    most = 1.0 if measure in ("f", "on_screen") else np.inf
    rows: dict[str, Score] = {}
    for part, (found, by_chance) in parts.items():
        value, low, high = getattr(found, measure)
        chance = _mean_known([getattr(other, measure).value for other in by_chance])
        # A class that no other clip has is told by chance what all classes are.
        chance = overall if np.isnan(chance) else chance
        if np.isfinite([value, low, high, chance]).all():
            rows[f"{task}/{part}"] = Score(
                value=value,
                low=min(max(low, 0.0), value),
                high=max(min(high, most), value),
                chance=chance,
                n=found.references if measure == "f" else found.matched,
            )
    return rows


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _scores(tally: Tally, classes: Sequence[str], official: bool) -> SeldScores:
    """Scores of clips; of a single one, without intervals."""
    whole, parts = tally.summed(0), tally.without_each()
    by_class = _intervals(_measured(whole, official), _measured(parts, official), official)
    macro = _intervals(_macro(whole, official), _macro(parts, official), official)
    micro = _intervals(
        _measured(whole.summed(-1, keepdims=True), official),
        _measured(parts.summed(-1, keepdims=True), official),
        official,
    )
    references, matched = whole.references.astype(int), whole.matched.astype(int)
    counts = (int(references.sum()), int(matched.sum()))
    return SeldScores(
        SeldMeasures(*macro[0], *counts),
        SeldMeasures(*micro[0], *counts),
        {
            name: SeldMeasures(*by_class[i], int(references[i]), int(matched[i]))
            for i, name in enumerate(classes)
        },
    )


def _measured(tally: Tally, official: bool) -> Float[np.ndarray, "4 *n c"]:
    """F, DOA error, relative distance error and on-screen accuracy of each class.

    F is 0 of a class with neither references nor predictions; the others are NaN without pairs.
    """
    # The public code adds it to divisors, which moves the last digit.
    epsilon = EPSILON if official else 0.0
    counted = 0.5 * (tally.references + tally.predictions)
    f = tally.hits / (np.where(counted > 0, counted, 1.0) + epsilon)
    pairs = np.where(tally.matched > 0, tally.matched, np.nan) + epsilon
    return np.stack([f, tally.error_deg / pairs, tally.relative / pairs, tally.right / pairs])


def _macro(tally: Tally, official: bool) -> Float[np.ndarray, "4 *n 1"]:
    """Means over classes, of errors over those that have any."""
    measured = _measured(tally, official)
    if not official:
        is_there = tally.references + tally.predictions > 0
        measured[0] = np.where(is_there, measured[0], np.nan)
    known = ~np.isnan(measured)
    total = np.where(known, measured, 0.0).sum(axis=-1, keepdims=True)
    count = known.sum(axis=-1, keepdims=True)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _intervals(
    values: Float[np.ndarray, "4 c"], parts: Float[np.ndarray, "4 n c"], official: bool
) -> list[tuple[Measure, Measure, Measure, Measure]]:
    """The four measures of each class with their jackknife intervals."""

    def of(value: float, partial: np.ndarray) -> Measure:
        known = partial if official else partial[~np.isnan(partial)]
        return Measure(value, *_jackknife(value, known))

    return [
        (of(f, left[0]), of(doae, left[1]), of(rde, left[2]), of(right, left[3]))
        for (f, doae, rde, right), left in zip(
            values.T.tolist(), np.moveaxis(parts, 2, 0), strict=True
        )
    ]


def _jackknife(value: float, partial: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """95 % interval by Student's t around the bias-corrected value; NaN of fewer than two parts."""
    n = len(partial)
    if n < 2:
        return float("nan"), float("nan")
    estimate = value - (n - 1) * (partial.mean() - value)
    half = student.ppf(0.975, n - 1) * np.sqrt((n - 1) * partial.var())
    return float(estimate - half), float(estimate + half)
