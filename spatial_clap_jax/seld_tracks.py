"""From the tracks that a SELD network gives to what sounds where: threshold, smooth, merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import permutations
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import median_filter, uniform_filter1d

from spatial_clap_jax.acoustics.stereo_view import fold_azimuth_deg
from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.errors import InputError

# Tracks of each pair that may be one source.
_PAIRS = ((0, 1), (1, 2), (2, 0))
# The first track of each group of merged ones: for no pair that is near, for one, for more.
_APART, _MERGED = (0, 1, 2), (0, 0, 0)
_PAIRED = ((0, 0, 2), (0, 1, 1), (0, 1, 0))


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How outputs become events; the defaults are those of the task's baseline, unsmoothed.

    Attributes:
      threshold: a track is active where its vector is longer; one number, or one a class.
      merge_deg: tracks of a class are one source where they are less apart; 0 merges none.
      smoothing: of outputs over frames, by the 'median' or the 'mean' of `smoothing_frames`; it
        suits networks whose sources keep their tracks.
      smoothing_frames: odd; 1 smooths nothing.
      fill_frames: silences of a track, at most so long, between two sounds are filled with what
        was heard last.
      least_frames: sounds of a track that are shorter are left out.
      on_screen_threshold: a source is on screen where its probability is higher.

    Reference: threshold and merging: baseline of DCASE 2025 Task 3. The rest is our choice.
    """

    threshold: float | tuple[float, ...] = 0.5
    merge_deg: float = 15.0
    smoothing: Literal["median", "mean"] = "median"
    smoothing_frames: int = 1
    fill_frames: int = 0
    least_frames: int = 1
    on_screen_threshold: float = 0.5

    def __post_init__(self) -> None:
        thresholds = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        if not thresholds or not all(0 < value < 1 for value in thresholds):
            raise InputError(
                f"DecodingConfig.threshold: {self.threshold} must lie in (0, 1); give 0.5, or one "
                "number a class."
            )
        if not 0 <= self.merge_deg <= 180:
            raise InputError(f"DecodingConfig.merge_deg: {self.merge_deg} must lie in [0, 180].")
        if self.smoothing_frames < 1 or self.smoothing_frames % 2 == 0:
            raise InputError(
                f"DecodingConfig.smoothing_frames: {self.smoothing_frames} must be odd; give 1 for "
                "no smoothing."
            )
        for name, value, least in (
            ("fill_frames", self.fill_frames, 0),
            ("least_frames", self.least_frames, 1),
        ):
            if value < least:
                raise InputError(f"DecodingConfig.{name}: {value} must be at least {least}.")
        if not 0 <= self.on_screen_threshold < 1:
            raise InputError(
                f"DecodingConfig.on_screen_threshold: {self.on_screen_threshold} must lie in "
                "[0, 1); give 0.5."
            )


def decode(outputs: Float[np.ndarray, "l 3 k c"], config: DecodingConfig) -> SoundEvents:
    """What one clip's outputs say.

    Outputs are smoothed, tracks held against the threshold, short silences filled and short
    sounds left out, and then the tracks of a class merged where they are near: one pair to their
    mean, all three where two pairs are. A direction behind is folded to the front.

    Args:
      outputs: three tracks of x, y, distance in m and (k = 4) probability of on screen, for each
        label frame and class.
      config: settings.

    Returns:
      Events by frame, class and track; `source` is the number of the track, the first of merged
      ones. Without a probability nothing is on screen.

    Raises:
      InputError: outputs have other elements or are not finite, or there is a threshold for each
        of other classes.

    Example:
      Tracks (0.9, 0, 2 m), (0.8, 0.1, 4 m) and (0.1, 0, 1 m): two are active and 7 degrees apart,
      so that one event is told, at 3.4 degrees and 3 m.
    """
    check_outputs("outputs", outputs)
    thresholds = np.asarray(config.threshold, np.float64)
    if thresholds.ndim and len(thresholds) != outputs.shape[3]:
        raise InputError(
            f"threshold: {len(thresholds)} of them for {outputs.shape[3]} classes; give one each."
        )
    outputs = _smoothed(outputs.astype(np.float64), config)
    heard = np.hypot(outputs[:, :, 0], outputs[:, :, 1]) > thresholds
    filled = _filled(heard, config.fill_frames)
    outputs = _held(outputs, heard, filled)
    active = _without_blips(filled, config.least_frames)
    first = _first_of_group(outputs, active, config.merge_deg)
    rows: list[SoundEvents] = []
    for track in range(3):
        members = active & (first == track)
        count = members.sum(axis=1)
        frame, category = np.nonzero(count)
        held = np.where(members[:, :, None], outputs, 0.0).sum(axis=1)
        mean = held[frame, :, category] / count[frame, category][:, None]
        probability = mean[:, 3] if outputs.shape[2] == 4 else np.zeros(len(mean))
        rows.append(
            SoundEvents(
                frame.astype(np.int32),
                category.astype(np.int32),
                np.full(len(frame), track, np.int32),
                azimuth_deg_of(mean[:, 0], mean[:, 1]),
                np.maximum(mean[:, 2], 0.0).astype(np.float32),
                probability > config.on_screen_threshold,
            )
        )
    fields = [field.name for field in dataclasses.fields(SoundEvents)]
    events = SoundEvents(*(np.concatenate([getattr(row, n) for row in rows]) for n in fields))
    return events.taken(np.lexsort((events.source, events.category, events.frame)))


def azimuth_deg_of(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Azimuth of (x ahead, y left), folded to the front, float32.

    Example:
      >>> azimuth_deg_of(np.array([0.0, -1.0]), np.array([1.0, 1.0]))
      array([90., 45.], dtype=float32)
    """
    return fold_azimuth_deg(np.degrees(np.arctan2(y, x))).astype(np.float32)


def average_outputs(
    outputs: Sequence[Float[np.ndarray, "*b l 3 k c"]],
    tells: Sequence[bool] | None = None,
) -> Float[np.ndarray, "*b l 3 k c"]:
    """The ensemble of several checkpoints: the mean of what they give for the same clips.

    Which source has which track is each network's own affair. In each frame and class the tracks
    of all are put in the order in which they are nearest to the first's, by x, y and distance.

    Args:
      outputs: of each checkpoint, with probabilities of on screen, not logits.
      tells: whether each one was trained to tell what is on screen; the probability is the mean
        over those that were. None if all were.

    Returns:
      Outputs as one network gives them.

    Raises:
      InputError: there are none, they are of different shapes, or one is not finite.

    Reference: our choice.

    Example:
      A network and the same one with exchanged tracks have the mean of the first.
    """
    if not outputs:
        raise InputError("outputs: there are none to average; give those of one checkpoint or more")
    for number, each in enumerate(outputs):
        check_outputs(f"outputs {number}", each)
        if each.shape != outputs[0].shape:
            raise InputError(
                f"outputs {number}: {each.shape} are not of the shape {outputs[0].shape} of the "
                "first; average checkpoints of one network on the same clips."
            )
    first, orders = outputs[0], np.array(list(permutations(range(3))))
    # Of x, y, distance, on screen: how much each checkpoint counts.
    shares = np.ones((len(outputs), first.shape[-2], 1))
    if tells is not None:
        shares[:, 3:, 0] = np.array(tells)[:, None]
    total = first * shares[0]
    for each, share in zip(outputs[1:], shares[1:], strict=True):
        # The tracks in every order: [..., l, order, track, k, c].
        ordered = each[..., orders, :, :]
        apart = (ordered[..., :3, :] - first[..., None, :, :3, :]) ** 2
        nearest = apart.sum(axis=(-3, -2)).argmin(axis=-2)
        chosen = nearest[..., None, None, None, :]
        total += share * np.take_along_axis(ordered, chosen, axis=-4).squeeze(-4)
    return (total / np.maximum(shares.sum(axis=0), 1)).astype(first.dtype)


def check_outputs(name: str, outputs: Float[np.ndarray, "..."]) -> None:
    """Refuses what are no outputs of a SELD network.

    Raises:
      InputError: other axes than [..., frames, 3, 3 or 4, classes], or a number is not finite.
    """
    if outputs.ndim < 4 or outputs.shape[-3] != 3 or outputs.shape[-2] not in (3, 4):
        raise InputError(
            f"{name}: {outputs.shape} are no tracks; give label frames, 3 tracks, 3 or 4 elements, "
            "classes."
        )
    if not np.isfinite(outputs).all():
        raise InputError(f"{name}: hold what is no finite number; take another checkpoint.")


def _smoothed(outputs: Float[np.ndarray, "l 3 k c"], config: DecodingConfig) -> np.ndarray:
    frames = config.smoothing_frames
    if frames == 1:
        return outputs
    if config.smoothing == "median":
        return median_filter(outputs, size=(frames, 1, 1, 1), mode="nearest")
    return uniform_filter1d(outputs, frames, axis=0, mode="nearest")


def _held(
    outputs: Float[np.ndarray, "l 3 k c"],
    heard: Bool[np.ndarray, "l 3 c"],
    filled: Bool[np.ndarray, "l 3 c"],
) -> np.ndarray:
    """Outputs of which those of filled silences are what was heard last."""
    frames = np.arange(len(outputs))[:, None, None]
    last = np.maximum(np.maximum.accumulate(np.where(heard, frames, -1)), 0)
    before = np.take_along_axis(outputs, last[:, :, None], axis=0)
    return np.where((filled & ~heard)[:, :, None], before, outputs)


def _filled(active: Bool[np.ndarray, "l 3 c"], longest: int) -> Bool[np.ndarray, "l 3 c"]:
    """With silences of at most `longest` frames between two sounds filled."""
    if not longest:
        return active
    silent = ~active
    kept = _without_blips(silent, longest + 1)
    inside = np.logical_or.accumulate(active) & np.logical_or.accumulate(active[::-1])[::-1]
    return active | (silent & ~kept & inside)


def _without_blips(active: Bool[np.ndarray, "l 3 c"], least: int) -> Bool[np.ndarray, "l 3 c"]:
    """Without runs of fewer than `least` frames."""
    if least == 1:
        return active
    frames = np.arange(len(active))[:, None, None]
    before = np.maximum.accumulate(np.where(active, -1, frames))
    after = np.minimum.accumulate(np.where(active, len(active), frames)[::-1])[::-1]
    return active & (after - before - 1 >= least)


def _first_of_group(
    outputs: Float[np.ndarray, "l 3 k c"], active: Bool[np.ndarray, "l 3 c"], merge_deg: float
) -> np.ndarray:
    """For each track the first of those that it is merged with, by frame and class."""
    x, y = outputs[:, :, 0], outputs[:, :, 1]
    near = np.stack(
        [
            active[:, i]
            & active[:, j]
            & (_apart_deg(x[:, i], y[:, i], x[:, j], y[:, j]) < merge_deg)
            for i, j in _PAIRS
        ],
        axis=1,
    )
    groups = np.where(
        near.sum(axis=1)[:, None] > 1,
        np.reshape(_MERGED, (1, 3, 1)),
        np.reshape(_APART, (1, 3, 1)),
    )
    single = near & (near.sum(axis=1, keepdims=True) == 1)
    for pair, grouped in enumerate(_PAIRED):
        groups = np.where(single[:, pair, None], np.reshape(grouped, (1, 3, 1)), groups)
    return groups


def _apart_deg(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> np.ndarray:
    return np.degrees(np.abs(np.arctan2(x1 * y2 - y1 * x2, x1 * x2 + y1 * y2)))
