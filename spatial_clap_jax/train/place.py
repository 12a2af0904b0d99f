"""What a run saves beside its arrays: where it stands in the data, in its log and in its health."""

from collections.abc import Callable, Mapping
from typing import Any

from spatial_clap_jax.small_files import count_of, parsed_json
from spatial_clap_jax.train.health import check_incident
from spatial_clap_jax.train.metrics_log import row_of

_Check = Callable[[Any], Any]
# What a value of a wrong kind raises where it is used.
_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OverflowError)


def check_place(place: Any) -> None:
    """Refuses what no run has saved, though its checksum is right.

    What is not there a run of an older version did not save.

    Args:
      place: as it was read.

    Raises:
      ValueError: it is none; the part is named.
    """
    _SAVED({"data_state": place})


def _object(**parts: _Check) -> _Check:
    """A check of an object, of whose parts those that are there are checked."""

    def check(value: Any) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r:.40} is no object")
        for name, part in parts.items():
            fault = _fault(part, value[name]) if name in value else None
            if fault is not None:
                raise ValueError(f"{name}: {fault}")

    return check


def _fault(check: _Check, value: Any) -> str | None:
    """What a check says; raised anew, where an error that led to it would be told in its place."""
    try:
        check(value)
    except _ERRORS as error:
        return str(error)
    return None


def _list(of: _Check) -> _Check:
    """A check of a list, and of each that is in it."""

    def check(value: Any) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{value!r:.40} is no list")
        for one in value:
            of(one)

    return check


def _number(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is no number")
    # JSON knows numbers that no float holds.
    float(value)


def _name(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no name")


def _line(of: _Check) -> _Check:
    """A check of a line that waited to be written to a file of lines."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or value.find("\n") != len(value) - 1:
            raise ValueError(f"{value!r:.40} is no line")
        of(value)

    return check


_HEALTH = _object(
    losses=_list(_number),
    bad=_list(check_incident),
    waiting=_list(_line(lambda line: check_incident(parsed_json(line)))),
    records=_object(times=count_of, names=_list(_name)),
)
_SAVED = _object(data_state=_object(step=count_of, log=_list(_line(row_of)), health=_HEALTH))
