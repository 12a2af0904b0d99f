"""Which predicted sound events match which true ones, and what is counted of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from spatial_clap_jax.acoustics.stereo_view import fold_azimuth_deg
from spatial_clap_jax.data.sound_events import SoundEvents, no_events
from spatial_clap_jax.errors import InputError

EPSILON = float(np.finfo(np.float64).eps)
# A hit is at most so far off.
_HIT_DEG, _HIT_RELATIVE = 20.0, 1.0
# The least distance that a file can tell.
_CENTIMETRE = 0.01


@dataclasses.dataclass(frozen=True)
class Tally:
    """Sums over events by class, c of them, for any number of sets of clips.

    Attributes:
      references, predictions: how many there are.
      matched: pairs of a reference and a prediction.
      hits: of them, those that are near enough.
      error_deg, relative, right: sums of their errors, and of right on-screen flags.
    """

    references: Float[np.ndarray, "*n c"]
    predictions: Float[np.ndarray, "*n c"]
    matched: Float[np.ndarray, "*n c"]
    hits: Float[np.ndarray, "*n c"]
    error_deg: Float[np.ndarray, "*n c"]
    relative: Float[np.ndarray, "*n c"]
    right: Float[np.ndarray, "*n c"]

    def summed(self, axis: int, keepdims: bool = False) -> Tally:
        """Of all clips, or of all classes."""
        return Tally(*(part.sum(axis=axis, keepdims=keepdims) for part in self._parts()))

    def without_each(self) -> Tally:
        """Of all clips but one, one after the other."""
        return Tally(*(part.sum(axis=0) - part for part in self._parts()))

    def _parts(self) -> list[np.ndarray]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


class _Rows(NamedTuple):
    """Events of all clips, by clip, frame and class.

    Attributes:
      cell: number of clip, frame and class.
      events: the rows.
    """

    cell: Int[np.ndarray, "n"]
    events: SoundEvents


def tallied(
    predictions: Mapping[str, SoundEvents],
    references: Mapping[str, SoundEvents],
    classes: Sequence[str],
    labels: int,
    official: bool,
    on_screen: bool,
) -> Tally:
    """Matches each frame's predictions and counts, clip by clip; see `metrics.seld.score`.

    Args:
      predictions: events by clip.
      references: the truth of each clip.
      classes: names of the classes.
      labels: label frames of a clip.
      official: whether to count as the public code does.
      on_screen: whether a hit needs the right on-screen flag.

    Returns:
      Sums of each clip that is scored, in the order of names.

    Raises:
      InputError: predictions of an unknown clip, no clip to score, or events that are in no frame
        or of no class.
    """
    unknown = sorted(set(predictions) - set(references))
    if unknown:
        raise InputError(
            f"predictions: clip {unknown[0]!r} has no reference; give predictions of the "
            "reference's clips."
        )
    names = [name for name in sorted(references) if not official or name in predictions]
    if not names:
        raise InputError("references: no clip to score; give references and predictions of clips.")
    true = _scored_rows("references", [references[n] for n in names], len(classes), labels)
    told = [predictions.get(name, no_events()) for name in names]
    predicted = _scored_rows("predictions", told, len(classes), labels)
    if official:
        true, predicted = _as_public(true, predicted, len(names), len(classes), labels)
    ref_rows, pred_rows = _pairs(true, predicted)
    one, other = true.events.taken(ref_rows), predicted.events.taken(pred_rows)
    error_deg = np.abs(_azimuths(one) - _azimuths(other))
    distance = one.distance_m.astype(np.float64)
    relative = np.abs(distance - other.distance_m)
    relative = relative / (distance + EPSILON if official else np.maximum(distance, _CENTIMETRE))
    right = one.on_screen == other.on_screen
    hits = (error_deg <= _HIT_DEG) & (relative <= _HIT_RELATIVE) & (right | (not on_screen))

    def summed(cell: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        clip, category = cell // (labels * len(classes)), cell % len(classes)
        return (
            np.bincount(
                clip * len(classes) + category,
                None if values is None else values.astype(np.float64),
                len(names) * len(classes),
            )
            .reshape(len(names), len(classes))
            .astype(np.float64)
        )

    cell = true.cell[ref_rows]
    return Tally(
        summed(true.cell),
        summed(predicted.cell),
        summed(cell),
        *(summed(cell, values) for values in (hits, error_deg, relative, right)),
    )


def _azimuths(events: SoundEvents) -> Float[np.ndarray, "n"]:
    return fold_azimuth_deg(events.azimuth_deg.astype(np.float64))


def _scored_rows(what: str, clips: Sequence[SoundEvents], classes: int, labels: int) -> _Rows:
    """The events of all clips, those of a cell one after the other as they came."""
    fields = [field.name for field in dataclasses.fields(SoundEvents)]
    joined = SoundEvents(*(np.concatenate([getattr(e, n) for e in clips]) for n in fields))
    for name, count in (("frame", labels), ("category", classes)):
        values = getattr(joined, name)
        wrong = values[(values < 0) | (values >= count)]
        if len(wrong):
            raise InputError(
                f"{what}: {name} {wrong[0]} must lie in 0..{count - 1}; score with all classes and "
                "the whole clips."
            )
    clip = np.repeat(np.arange(len(clips)), [len(events) for events in clips])
    cell = (clip * labels + joined.frame) * classes + joined.category
    order = np.argsort(cell, kind="stable")
    return _Rows(cell[order], joined.taken(order))


def _as_public(
    true: _Rows, predicted: _Rows, clips: int, classes: int, labels: int
) -> tuple[_Rows, _Rows]:
    """What the public code sees: files' whole numbers, before the last reference of a clip."""
    last = np.zeros(clips, np.int64)
    np.maximum.at(last, true.cell // (labels * classes), true.events.frame)

    def seen(rows: _Rows) -> _Rows:
        kept = rows.events.frame < last[rows.cell // (labels * classes)]
        events = rows.events.taken(kept)
        return _Rows(
            rows.cell[kept],
            dataclasses.replace(
                events,
                azimuth_deg=np.rint(events.azimuth_deg),
                # In whole centimetres, as relative errors are taken there.
                distance_m=np.rint(events.distance_m.astype(np.float64) * 100).astype(np.float32),
            ),
        )

    return seen(true), seen(predicted)


def _pairs(true: _Rows, predicted: _Rows) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Matched rows: in each cell those with the least sum of azimuth errors."""
    true_cell, true_start, true_count = np.unique(true.cell, return_index=True, return_counts=True)
    told_cell, told_start, told_count = np.unique(
        predicted.cell, return_index=True, return_counts=True
    )
    _, i, j = np.intersect1d(true_cell, told_cell, assume_unique=True, return_indices=True)
    is_single = (true_count[i] == 1) & (told_count[j] == 1)
    ones, others = [true_start[i[is_single]]], [told_start[j[is_single]]]
    one_deg, other_deg = _azimuths(true.events), _azimuths(predicted.events)
    for a, b in zip(i[~is_single].tolist(), j[~is_single].tolist(), strict=True):
        row = true_start[a] + np.arange(int(true_count[a]))
        column = told_start[b] + np.arange(int(told_count[b]))
        chosen = linear_sum_assignment(np.abs(one_deg[row][:, None] - other_deg[column]))
        ones.append(row[chosen[0]])
        others.append(column[chosen[1]])
    return np.concatenate(ones), np.concatenate(others)
