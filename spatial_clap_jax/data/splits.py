"""The split of every entry of a table: told, by fold, or held out by hash of its recording."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from spatial_clap_jax.data.tables import Entry
from spatial_clap_jax.errors import InputError

# Of the recordings, where a csv tells neither split nor fold.
TEST_SHARE = 0.1


def assign_splits(
    entries: Sequence[Entry],
    path: Path,
    test_folds: Sequence[int],
    validation_share: float,
    seed: int,
) -> None:
    """Gives every entry a split, in place: the one that is told, else by fold, else by hash.

    Args:
      entries: merged; `split` is '' where nothing tells it.
      path: of the csv, for messages.
      test_folds: folds to test on; empty: the highest one.
      validation_share: share of the recordings held out of train where nothing names validation.
      seed: draws the held-out recordings.

    Raises:
      InputError: folds are no numbers or leave nothing to train on, or a recording is cut.

    Reference: our choice.
    """
    folded = any(entry.fold for entry in entries)
    if test_folds and not folded:
        raise InputError(
            f"test_folds {test_folds}: {path} has no fold column in use; leave them out."
        )
    if folded:
        _split_by_fold(entries, path, test_folds)
    elif not all(entry.split for entry in entries):
        for entry in entries:
            entry.split = "train"
        _hold_out(entries, "test", TEST_SHARE, seed)
        # Of what is left, so that it is `validation_share` of all.
        _hold_out(entries, "validation", validation_share / (1 - TEST_SHARE), seed)
    if not any(entry.split == "validation" for entry in entries):
        _hold_out(entries, "validation", validation_share, seed)
    owners: dict[str, Entry] = {}
    for entry in entries:
        owner = owners.setdefault(entry.recording, entry)
        if owner.split != entry.split:
            raise InputError(
                f"{entry.where}: recording {entry.recording!r} is in {entry.split}, but in "
                f"{owner.split} at {owner.where}; keep a recording in one split."
            )


def _split_by_fold(entries: Sequence[Entry], path: Path, test_folds: Sequence[int]) -> None:
    for entry in entries:
        if not re.fullmatch(r"\d+", entry.fold):
            raise InputError(
                f"{entry.where}: fold {entry.fold!r} is no whole number; number the folds."
            )
    folds = {int(entry.fold) for entry in entries}
    test = set(test_folds) or {max(folds)}
    if not test <= folds:
        raise InputError(
            f"test_folds {test_folds}: {path} has the folds {sorted(folds)}; choose there."
        )
    if test == folds:
        raise InputError(
            f"{path}: every fold of {sorted(folds)} is a test fold; keep folds to train on, or "
            "give a split column."
        )
    for entry in entries:
        entry.split = "test" if int(entry.fold) in test else "train"


def _hold_out(entries: Sequence[Entry], split: str, share: float, seed: int) -> None:
    """Moves whole recordings out of train, a share of each category's, by hash."""
    strata: dict[str, list[str]] = {}
    category_of: dict[str, str] = {}
    for entry in entries:
        if entry.split == "train" and entry.recording not in category_of:
            category_of[entry.recording] = entry.category
            strata.setdefault(entry.category, []).append(entry.recording)
    chosen: set[str] = set()
    for recordings in strata.values():
        count = max(1, round(share * len(recordings))) if share and len(recordings) > 1 else 0
        recordings.sort(key=lambda name: hashlib.sha256(f"{seed} {split} {name}".encode()).digest())
        chosen.update(recordings[:count])
    for entry in entries:
        if entry.recording in chosen and entry.split == "train":
            entry.split = split
