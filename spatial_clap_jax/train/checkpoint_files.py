"""The files of one checkpoint: whether they are whole, said without waiting for other processes."""

import contextlib
import functools
import gc
import json
import logging
import re
import sys
import warnings
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import jax
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

from spatial_clap_jax.errors import InputError, fault_of_the_machine
from spatial_clap_jax.train import processes

PyTree = Any
T = TypeVar("T")

_JSON = "value.json"
# What Orbax writes last.
_MARKERS = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Chunks that are read at once; each is on the host as a whole.
_READERS = 4
# As Orbax names them, in 64 bits; Unicode has more digits, and a number can be written otherwise.
_STEP = re.compile("0|[1-9][0-9]{0,17}")


class DamagedCheckpoint(InputError):
    """The files of a checkpoint are not those that were saved."""


class JsonFile:
    """A JSON file with a checksum, saved and restored by Orbax beside the arrays."""

    def __init__(self, value: dict | None = None):
        # Encoded at once: the value may change while the save runs in the background.
        self._text = _with_checksum(value or {})

    async def save(self, directory: Any) -> Awaitable[None]:
        """Writes it, in process 0 alone."""

        async def write() -> None:
            folder = Path(await directory.await_creation())
            if processes.is_first_process():
                (folder / _JSON).write_text(self._text, "utf-8")

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Orbax asks for this beside `save`; see `read_json`, for which no process waits."""

        async def read() -> None:
            self._text = _with_checksum(read_json(Path(directory)))

        return read()


def read_json(folder: Path) -> dict:
    """What a `JsonFile` holds.

    Raises:
      ValueError, OSError: it is damaged, or cannot be read.
    """
    path = folder / _JSON
    text = path.read_text("utf-8")
    found = json.loads(text)
    if not isinstance(found, dict) or _with_checksum(found.get("value")) != text:
        raise ValueError(f"{folder.name}/{path.name} is damaged")
    return found["value"]


def _with_checksum(value: Any) -> str:
    text = json.dumps(value)
    return json.dumps({"value": value, "crc32": zlib.crc32(text.encode())})


def check_committed(folder: Path) -> None:
    """Raises ValueError unless the save of a checkpoint came to its end."""
    for name in _MARKERS:
        if not (folder / name).is_file():
            raise ValueError(f"its {name} is missing, it was never finished")
    # Reading a pipe may never end.
    odd = [path for path in folder.rglob("*") if not (path.is_file() or path.is_dir())]
    if odd:
        raise ValueError(f"{odd[0].relative_to(folder)} is no file")


def saved_tree(folder: Path) -> Any:
    """The saved tree's structure, shapes and dtypes.

    Raises:
      ValueError: they cannot be read, or are not those that were saved.
    """
    tree = ocp.metadata(str(folder), "state").metadata
    # Orbax logs a damaged file and gives None.
    if tree is None:
        raise ValueError("the list of its arrays is damaged")
    # Without these, a flipped bit in the list would pass for another model.
    if (folder / "shapes").is_dir() and read_json(folder / "shapes") != shapes(tree):
        raise ValueError("the list of its arrays is not what was saved")
    return tree


def shapes(tree: PyTree) -> dict[str, str]:
    """The dtype and shape of every leaf by its '/'-joined path, in words."""

    def kind(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else "a number"

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): kind(leaf) for path, leaf in leaves
    }


def check_arrays(state: Path, share: int, shares: int) -> None:
    """Reads and decodes this process's share of all chunks, on the host and one after another.

    All shares together are the whole checkpoint, read once. It tells what is cut, gone or no
    longer decodes; a flipped bit that decodes is told by its digest.

    Args:
      state: the folder of the arrays.
      share: which share, from 0.
      shares: how many there are.

    Raises:
      ValueError: a chunk cannot be read; TensorStore's message names it.
    """
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}}
    keys = ts.KvStore.open(store).result().list().result()
    names = sorted(k.decode().removesuffix("zarr.json") for k in keys if k.endswith(b"/zarr.json"))
    opening = [ts.open({"driver": "zarr3", "kvstore": {**store, "path": n}}) for n in names]
    chunks = [chunk for array in opening for chunk in _chunks(array.result())]
    # The large ones first, so that they are spread evenly.
    chunks.sort(key=lambda chunk: chunk.size * chunk.dtype.numpy_dtype.itemsize, reverse=True)
    with ThreadPoolExecutor(_READERS) as readers:
        for _ in readers.map(_read_and_drop, chunks[share::shares]):
            pass


def _chunks(array: ts.TensorStore) -> Iterator[ts.TensorStore]:
    sizes = [size or 1 for size in array.chunk_layout.read_chunk.shape or array.shape]
    starts = [range(0, length, size) for length, size in zip(array.shape, sizes, strict=True)]
    for start in product(*starts):
        ends = (min(s + size, n) for s, size, n in zip(start, sizes, array.shape, strict=True))
        yield array[tuple(slice(s, end) for s, end in zip(start, ends, strict=True))]


def _read_and_drop(chunk: ts.TensorStore) -> None:
    chunk.read().result()


def check_digests(saved: Mapping[str, int], loaded: Mapping[str, int]) -> None:
    """Raises ValueError, naming the first array, unless all bits are those that were saved."""
    for path, digest in loaded.items():
        if saved.get(path) != digest:
            raise ValueError(f"{path} is not what was saved, a bit has changed")


def steps_in(folder: Path) -> list[int]:
    """Steps on disk; Orbax gives a folder its plain number only when it is whole."""
    if not folder.is_dir():
        return []
    named = (path for path in folder.iterdir() if _STEP.fullmatch(path.name))
    return sorted(int(path.name) for path in named if path.is_dir())


def read_whole(folder: Path, read: Callable[[], T]) -> T:
    """Calls `read`, turning what it raises into an InputError.

    Args:
      folder: of the checkpoint that it reads.
      read: reads it; an InputError of its own stays as it is.

    Raises:
      DamagedCheckpoint: the files are not whole.
      InputError: memory, open files, rights or the disk kept it from being read.
    """
    with orbax_kept_quiet():
        try:
            return read()
        except InputError:
            raise
        # Orbax and TensorStore raise many kinds for a damaged file, among them KeyError,
        # ValueError, FileNotFoundError and their own.
        except Exception as error:
            _ignore_abandoned_reads()
            reason, is_damage = root_reason(error), fault_of_the_machine(error) is None
        # Collected here, the abandoned reads do not complain at the program's end.
        gc.collect()
    earlier = [step for step in steps_in(folder.parent) if step < int(folder.name)]
    remedy = f"go on from step {earlier[-1]}" if earlier else "start anew"
    if is_damage:
        raise DamagedCheckpoint(
            f"{folder}: cannot be read, a checkpoint must be whole ({reason}); "
            f"copy it again, or remove this folder to {remedy}."
        )
    raise InputError(
        f"{folder}: could not be read now ({reason}), which does not tell that it is damaged; "
        f"mend that and start again, or move this folder away to {remedy}."
    )


def root_reason(error: BaseException) -> str:
    """What began it all, in one line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    # TensorStore says first which of its many files it was.
    text = re.sub(r'Failed \w+: "[^"]*": ', "", str(error)).split(" [tensorstore_spec")[0]
    return " ".join(text.split())[:300] or type(error).__name__


@contextlib.contextmanager
def orbax_kept_quiet() -> Iterator[None]:
    """Orbax logs what it also raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        logging.disable(disabled)


@functools.cache
def quieten_orbax() -> None:
    """Leaves out of absl's log what Orbax's background work also raises later."""
    orbax = str(Path(ocp.__file__).parents[2])
    logging.getLogger("absl").addFilter(lambda record: not record.pathname.startswith(orbax))


@functools.cache
def _ignore_abandoned_reads() -> None:
    """Keeps stderr clean of the reads that Orbax abandons, from now on and only of them.

    When one read of many fails, Orbax closes its event loop under the others, and each of
    them says so when it ends: seconds later for a large checkpoint. One that failed too has its
    error logged by asyncio, whenever it is collected.
    """
    report = sys.unraisablehook
    complaints = ("Event loop is closed", "Encountered error while reading array index")

    def report_others(unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(complaints):
            report(unraisable)

    def is_other(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "never retrieved" not in text or "tensorstore_spec" not in text

    sys.unraisablehook = report_others
    logging.getLogger("asyncio").addFilter(is_other)
