"""What becomes of a record that cannot be read: it is named, or another stands for it.

The stand-in follows from the number of the bad record alone. So a run is the same whatever builds
its batches, and however often it was stopped, as long as the same records are bad.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, SupportsIndex, TypeVar

import numpy as np

from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.errors import InputError, fault_of_the_machine, not_read_now

BadRecords = Literal["stop", "skip"]
# Draws of a stand-in. Where half of all records are bad, one in a million of them needs more.
MOST_DRAWS = 20

K = TypeVar("K")
T = TypeVar("T")


class BadRecord(InputError):
    """A record that cannot be read, or is not what stands in its place.

    Attributes:
      record: its name, for a count of what was skipped.
    """

    def __init__(self, message: str, record: str = "") -> None:
        super().__init__(message)
        self.record = record


def unread(record: str, place: str, message: str, error: BaseException) -> InputError:
    """What a reader raises in place of what kept it from reading a record.

    Args:
      record: its name.
      place: where it lies.
      message: the line that says what is wrong with it.
      error: what kept it from being read.

    Returns:
      A `BadRecord`; or, where the machine is at fault and the record may be good, an `InputError`,
      which ends a run whatever becomes of bad records.
    """
    if fault_of_the_machine(error) is None:
        return BadRecord(message, record)
    return not_read_now(place, error) or InputError(message)


@dataclasses.dataclass(frozen=True)
class StandIn(SceneGroup):
    """A scene group in the place of one that cannot be read.

    Attributes:
      instead_of: names of the bad records that were drawn before it.
    """

    instead_of: tuple[str, ...] = ()


class Replacing(Sequence[SceneGroup]):
    """Groups of a split, with a `StandIn` in the place of each that cannot be read.

    Args:
      groups: raise a `BadRecord` for what cannot be read.
    """

    def __init__(self, groups: Sequence[SceneGroup]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: SupportsIndex) -> SceneGroup:  # pyright: ignore[reportIncompatibleMethodOverride]
        index = range(len(self))[index]
        group, instead_of = read_or_replace(
            self._groups.__getitem__, index, range(len(self)), seed=index
        )
        if not instead_of:
            return group
        fields = {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
        return StandIn(**fields, instead_of=instead_of)


def read_or_replace(
    read: Callable[[K], T], key: K, among: Sequence[K], seed: int | Sequence[int]
) -> tuple[T, tuple[str, ...]]:
    """A record, or, where it is bad, another one that is drawn in its place.

    Args:
      read: gives a record by its key, or raises a `BadRecord`.
      key: of the record.
      among: keys that a stand-in is drawn from.
      seed: what the draw follows from: the record alone.

    Returns:
      The record, and the names of those that were bad; none where it is the one asked for.

    Raises:
      InputError: `MOST_DRAWS` stand-ins were bad too.
    """
    rng, bad, drawn = np.random.default_rng(seed), [], key
    for _ in range(MOST_DRAWS):
        try:
            return read(drawn), tuple(bad)
        except BadRecord as error:
            bad.append(error.record)
            last = error
        drawn = among[int(rng.integers(len(among)))]
    raise InputError(
        f"data.bad_records: {MOST_DRAWS} records one after another cannot be read, too many to "
        f"skip; the last: {last}"
    )
