"""Scores as the results file holds them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.intervals import share_interval
from spatial_clap_jax.metrics.resampling import bootstrap_interval
from spatial_clap_jax.small_files import json_of


class Outcome(NamedTuple):
    """The queries behind a score.

    Attributes:
      hits: whether each succeeded.
      cluster: the scene or the place that it belongs to; the room, where it asks about the room.
      chance: the share that chance alone reaches.
    """

    hits: Bool[np.ndarray, "n"]
    cluster: Int[np.ndarray, "n"]
    chance: float


class Score(TypedDict):
    """A share of hits among n queries, its 95 % interval, and what chance reaches.

    Of a measure that is no share, the name says the unit (`angular_error_deg`) or, by its first
    word, that it has none (`wasserstein`).
    """

    value: float
    low: float
    high: float
    chance: float
    n: int


Results = dict[str, Score]


def score_of(hits: Bool[np.ndarray, "n"], cluster: Int[np.ndarray, "n"], chance: float) -> Score:
    """The score of n hits and misses.

    Args:
      hits: whether each query succeeded.
      cluster: which scene or room it belongs to, see `share_interval`.
      chance: the share that chance alone reaches.
    """
    low, high = share_interval(hits, cluster)
    return Score(value=float(np.mean(hits)), low=low, high=high, chance=chance, n=len(hits))


def measure_of(
    values: Float[np.ndarray, "n"],
    chance: float,
    statistic: Callable[..., Float[np.ndarray, "..."]] = np.mean,
    cluster: Int[np.ndarray, "n"] | None = None,
) -> Score:
    """The score of a number a scene, such as an error in degrees.

    Args:
      values: one number a scene.
      chance: what the statistic is by chance alone.
      statistic: `np.mean` or `np.median`.
      cluster: which scenes are not independent, see `bootstrap_interval`.
    """
    low, high = bootstrap_interval(values, statistic, cluster=cluster)
    value = float(statistic(values[None], axis=1)[0])
    return Score(value=value, low=low, high=high, chance=chance, n=len(values))


def check_results_path(path: str | Path) -> None:
    """Refuses a path where results must not be written; worth a call before a long evaluation.

    Raises:
      InputError: `path` is a folder, or a file that holds something other than results.
    """
    path = Path(path)
    if path.exists() and not _holds_results(path):
        raise InputError(
            f"{path}: exists and is not a file of results; only such a file is replaced: "
            "give another path or remove it."
        )


def write_results(results: Mapping[str, Score], path: str | Path) -> None:
    """Writes scores as JSON: wholly or not at all, and never over something else.

    Args:
      results: scores by name.
      path: the file; missing folders are made, an older results file is replaced.

    Raises:
      InputError: `path` is a folder, a file that holds something other than results, or cannot
        be written.
    """
    path = Path(path)
    check_results_path(path)
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); give a path in a writable folder."
        ) from error


def _holds_results(path: Path) -> bool:
    try:
        found = json_of(path)
    except (OSError, ValueError):
        return False
    keys = set(Score.__annotations__)
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(score, dict) and set(score) == keys for score in found.values())
    )
