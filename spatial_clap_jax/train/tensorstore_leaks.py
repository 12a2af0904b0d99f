"""What Orbax asks of TensorStore at every save and is never given back, asked for in another way.

TensorStore (0.1.75 to 0.1.86) turns JSON into Python objects and keeps a reference to every value
for ever. At each save Orbax has it tell the specification of the checkpoint's folder once for every
array, and all its counters twice: a training that saves often grows by that. The first is told once
a folder here, and the counters are read from their text form, which leaves nothing behind.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import tensorstore as ts
from orbax.checkpoint._src.serialization import tensorstore_utils

# Folders of one save and of the one before it; each has a handful.
_FOLDERS = 32


@functools.cache
def mend_tensorstore() -> None:
    """Has this process save without the two leaks; a second call changes nothing."""
    ts.KvStore.Spec.to_json = _told_once(ts.KvStore.Spec.to_json)
    # Where Orbax has no such function it reads no counters by it either.
    if hasattr(tensorstore_utils, "get_tensorstore_raw_bytes"):
        tensorstore_utils.get_tensorstore_raw_bytes = raw_bytes


class _Told:
    """A specification as the key of a cache; TensorStore's own compare, and are not hashable."""

    def __init__(self, spec: ts.KvStore.Spec):
        self.spec = spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Told) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec.path)


def _told_once(to_json: Callable[..., Any]) -> Callable[..., Any]:
    """`to_json` of specifications, which makes new objects only for what it has not told lately."""

    @functools.lru_cache(_FOLDERS)
    def told(key: _Told, include_defaults: bool) -> Any:
        return to_json(key.spec, include_defaults=include_defaults)

    def to_json_once(self: ts.KvStore.Spec, include_defaults: bool = False) -> Any:
        # Who asks may change what is told.
        return copy.deepcopy(told(_Told(self), include_defaults))

    return to_json_once


def raw_bytes(direction: Any = "write") -> int:
    """Bytes that TensorStore has read or written so far, of all kinds of storage together.

    Args:
      direction: 'read' or 'write', or Orbax's name for it.

    Returns:
      The sum of the counters `tensorstore_kvstore_*_bytes_read` or `..._written`.
    """
    verb = "read" if getattr(direction, "value", direction) == "read" else "written"
    total = 0
    for line in ts.experimental_collect_prometheus_format_metrics("/tensorstore/kvstore/"):
        name, _, value = line.rpartition(" ")
        if name.partition("{")[0].endswith(f"_bytes_{verb}") and not name.startswith("#"):
            total += int(value)
    return total
