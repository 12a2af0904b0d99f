"""Checkpoints of a run.

A run's folder holds, beside its description,

    checkpoints/<step>/     state (arrays), data_state (the place in the data) and digests
    set_aside/<step>/       checkpoints that were found damaged, never deleted

We take Orbax's v1 API. A trial of 0.12.8 saw it do all that is needed: saves in the
background that a donated step cannot disturb, retention of the newest N and every K-th,
items of our own written by every process, restore of a part of the tree and onto another
mesh, a save on SIGTERM through `jax.distributed`, and after a kill in mid-save nothing but
a temporary folder that is never listed. It refuses a wrong shape late and casts a wrong
dtype in silence, so both are checked here before anything is read; and no checksum of it tells
a flipped bit in an array, so each has a digest of ours.
"""

import contextlib
import functools
import gc
import json
import logging
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import processes
from spatial_clap_jax.train.description import run_folder
from spatial_clap_jax.train.digests import digests

PyTree = Any
T = TypeVar("T")

_JSON = "value.json"
# What Orbax writes last.
_MARKERS = ("_CHECKPOINT_METADATA", "commit_success.txt")


class SaveError(InputError):
    """A checkpoint could not be written; those before it are whole, and the run may go on."""


class RunCheckpoints:
    """The checkpoints of one run: saved in the background, listed only when whole.

    Every process of a run makes one and calls its methods in the same order. The folder
    must be one that all of them see.

    Args:
      workdir: the run's folder; made when missing.
      keep: how many of the newest checkpoints stay.
      keep_every: checkpoints whose step is a multiple of this stay as well.

    Raises:
      InputError: `workdir` is a bucket's address, or a count is below 1.

    Reference: our choice.
    """

    def __init__(self, workdir: str | Path, keep: int = 3, keep_every: int | None = None):
        for name, count in (("keep", keep), ("keep_every", keep_every)):
            if count is not None and count < 1:
                raise InputError(f"{name}: {count} is below 1; keep at least one checkpoint.")
        policies = ocp.training.preservation_policies
        newest = policies.LatestN(keep)
        kept = [newest] if keep_every is None else [newest, policies.EveryNSteps(keep_every)]
        self._folder = run_folder(workdir) / "checkpoints"
        with _orbax_kept_quiet():
            self._checkpointer = ocp.training.Checkpointer(
                str(self._folder.absolute()),
                # Orbax annotates its own policies with a protocol that they do not fit.
                preservation_policy=policies.AnyPreservationPolicy(kept),  # pyright: ignore[reportArgumentType]
                cleanup_tmp_directories=True,
            )
        self._aside = self._folder.parent / "set_aside"
        self._saving = 0
        self._response: Any = None
        _quieten_orbax()

    def save(self, step: int, state: PyTree, data_state: dict, *, wait: bool = False) -> None:
        """Saves a step in the background; a step that is already saved is left as it is.

        Args:
          step: the number of steps taken so far.
          state: pytree of JAX or NumPy arrays and Python numbers; PRNG keys as raw uint32
            key data. Its arrays may be donated as soon as this returns.
          data_state: plain JSON place in the data, the same for all processes.
          wait: whether to return only when the checkpoint is whole on disk.

        Raises:
          InputError: the folder holds a later step, so this run is not its continuation.
          SaveError: the save before this one failed, or this one.
        """
        self.wait()
        newest = self._checkpointer.latest
        if newest is not None and newest.step > step:
            raise InputError(
                f"{self._folder}: holds step {newest.step}, later than step {step} to be saved; "
                "resume from the newest step, or take another workdir."
            )
        if newest is None or newest.step < step:
            items = {
                "state": state,
                "data_state": _JsonFile(data_state),
                "digests": _JsonFile(digests(state)),
            }
            self._saving = step
            try:
                self._response = self._checkpointer.save_checkpointables_async(
                    step, items, force=True
                )
            except Exception as error:
                self._fail(error)
        if wait:
            self.wait()

    def check(self) -> None:
        """Says what went wrong with the last save, if it has ended; does not wait for it.

        Raises:
          SaveError: it failed.
        """
        if not self._checkpointer.is_saving_in_progress():
            self.wait()

    def latest(self) -> int | None:
        """Returns the newest step on disk, or None; waits for a save that is under way."""
        self.wait()
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict]:
        """Restores a state bit for bit, onto whatever devices `abstract_state` asks for.

        Neither the number of processes nor that of devices need be that of the save.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings (Python numbers
            where the state has them), of the saved tree's structure.
          step: which one; the newest when None.

        Returns:
          The state, and the place in the data.

        Raises:
          InputError: there is no such checkpoint, it cannot be read, its bits are not those that
            were saved, or its arrays are not those of `abstract_state`.
        """
        self.wait()
        folder = _step_folder(self._folder, step)

        def read() -> tuple[PyTree, dict]:
            _check_committed(folder)
            _check_fits(folder, _saved_tree(folder), abstract_state)
            data_state, saved = _JsonFile(), _JsonFile()
            items = {"data_state": data_state, "digests": saved}
            ocp.load_checkpointables(str(folder), items)
            loaded = ocp.load_checkpointables(str(folder), {"state": abstract_state})
            _check_digests(saved.value, digests(loaded["state"]))
            return loaded["state"], data_state.value

        return _read_whole(folder, read)

    def restore_newest(
        self, abstract_state: PyTree, tell: Callable[[str], None]
    ) -> tuple[PyTree, dict, int]:
        """Restores the newest checkpoint that is whole; newer ones are set aside, not removed.

        Args:
          abstract_state: see `restore`.
          tell: is told of each one that is set aside.

        Returns:
          The state, the place in the data and the step.

        Raises:
          InputError: none is whole; nothing is moved then.
        """
        self.wait()
        steps, reasons = _steps(self._folder), {}
        for step in reversed(steps):
            restored = None
            try:
                restored = self.restore(abstract_state, step)
            except InputError as error:
                reasons[step] = str(error)
            if processes.all_agree(restored is not None):
                assert restored is not None
                for broken, reason in reasons.items():
                    tell(f"{reason}; set aside as {self._set_aside(broken)}")
                if reasons:
                    tell(f"goes on from step {step}")
                self._checkpointer.reload()
                return *restored, step
            reasons.setdefault(step, f"{self._folder / str(step)}: cannot be read elsewhere")
        if reasons:
            raise InputError(
                f"{next(iter(reasons.values()))} No checkpoint of {self._folder} is whole; copy "
                "one there again, or take another --workdir to start anew."
            )
        raise InputError(
            f"{self._folder}: holds no checkpoint, but {self._aside} holds damaged ones; put a "
            "whole one there, or take another --workdir to start anew."
        )

    def is_empty(self) -> bool:
        """Whether nothing was ever saved: there is no checkpoint, whole or not."""
        was_damaged = self._aside.is_dir() and any(self._aside.iterdir())
        return not _steps(self._folder) and not was_damaged

    def _set_aside(self, step: int) -> Path:
        names = [str(step), *(f"{step}-{again}" for again in range(2, 1000))]
        place = next(self._aside / name for name in names if not (self._aside / name).exists())
        # All have looked before the first one moves it.
        processes.wait_for_all(f"set aside {step}")
        if processes.is_first_process():
            self._aside.mkdir(parents=True, exist_ok=True)
            (self._folder / str(step)).rename(place)
        processes.wait_for_all(f"set {step} aside")
        return place

    def wait(self) -> None:
        """Waits until all that was saved is on disk.

        Raises:
          SaveError: it could not be written; what was saved before is whole.
        """
        response, self._response = self._response, None
        try:
            with _orbax_kept_quiet():
                try:
                    if response is not None:
                        # Asked for, it gives back its thread and three files.
                        response.result()
                finally:
                    # A save that failed tells it to both, and else it would to the next save.
                    self._checkpointer.wait()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        step = self._saving
        reason = _root_reason(error)
        # Orbax gives up its list of what is on disk with the save.
        self._checkpointer.reload()
        if processes.is_first_process():
            for left in self._folder.glob(f"{step}.*tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        steps = _steps(self._folder)
        kept = f"step {steps[-1]} is the last whole one" if steps else "none is whole yet"
        raise SaveError(
            f"{self._folder}: step {step} could not be saved ({reason}); {kept}. Make room or give "
            "the right to write there."
        ) from error

    def close(self) -> None:
        """Waits for the last save and ends the background work."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()


def has_checkpoints(workdir: str | Path) -> bool:
    """Whether a run's folder holds a whole checkpoint."""
    return bool(_steps(run_folder(workdir) / "checkpoints"))


def load_params(
    workdir: str | Path,
    step: int | None = None,
    subtrees: tuple[str, ...] = ("variables", "average"),
) -> tuple[dict[str, PyTree], int]:
    """Loads parts of a checkpoint as NumPy arrays, without its model, mesh or optimiser.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the newest when None.
      subtrees: top-level names of the state; those that this run has not are left out,
        except the first.

    Returns:
      A dict of name to tree (nested dicts and lists), and the step.

    Raises:
      InputError: there is no such checkpoint, it cannot be read, or it has no `subtrees[0]`.
    """
    folder = _step_folder(run_folder(workdir) / "checkpoints", step)

    def read() -> dict[str, PyTree]:
        _check_committed(folder)
        saved = _saved_tree(folder)
        if subtrees[0] not in saved:
            raise InputError(
                f"{folder}: its state has no {subtrees[0]!r} (it has {', '.join(sorted(saved))}); "
                "give the folder of a run that trained a model."
            )
        wanted = {name: saved[name] for name in subtrees if saved.get(name) is not None}
        abstract = jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf,
            wanted,
        )
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            loaded: Any = ocp.load(str(folder), abstract, checkpointable_name="state")
        if (folder / "digests").is_dir():
            digest_file = _JsonFile()
            ocp.load_checkpointables(str(folder), {"digests": digest_file})
            _check_digests(digest_file.value, digests(loaded))
        return loaded

    return _read_whole(folder, read), int(folder.name)


class _JsonFile:
    """A JSON file with a checksum, saved and restored by Orbax beside the arrays."""

    def __init__(self, value: dict | None = None):
        # Encoded at once: the value may change while the save runs in the background.
        self._text = _with_checksum(value or {})

    @property
    def value(self) -> dict:
        return json.loads(self._text)["value"]

    async def save(self, directory: Any) -> Awaitable[None]:
        async def write() -> None:
            folder = Path(await directory.await_creation())
            if processes.is_first_process():
                (folder / _JSON).write_text(self._text, "utf-8")

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        async def read() -> None:
            path = Path(directory) / _JSON
            self._text = path.read_text("utf-8")
            found = json.loads(self._text)
            if not isinstance(found, dict) or _with_checksum(found.get("value")) != self._text:
                raise ValueError(f"{path.name} is damaged")

        return read()


def _with_checksum(value: Any) -> str:
    text = json.dumps(value)
    return json.dumps({"value": value, "crc32": zlib.crc32(text.encode())})


def _check_committed(folder: Path) -> None:
    for name in _MARKERS:
        if not (folder / name).is_file():
            raise ValueError(f"its {name} is missing, it was never finished")
    # Reading a pipe may never end.
    odd = [path for path in folder.rglob("*") if not (path.is_file() or path.is_dir())]
    if odd:
        raise ValueError(f"{odd[0].relative_to(folder)} is no file")


def _check_digests(saved: Mapping[str, int], loaded: Mapping[str, int]) -> None:
    """Raises ValueError, naming the first array, unless all bits are those that were saved."""
    for path, digest in loaded.items():
        if saved.get(path) != digest:
            raise ValueError(f"{path} is not what was saved, a bit has changed")


def _saved_tree(folder: Path) -> Any:
    """The saved tree's structure, shapes and dtypes."""
    tree = ocp.metadata(str(folder), "state").metadata
    # Orbax logs a damaged file and gives None.
    if tree is None:
        raise ValueError("the list of its arrays is damaged")
    return tree


def _steps(folder: Path) -> list[int]:
    """Steps on disk; Orbax gives a folder its plain number only when it is whole."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _step_folder(folder: Path, step: int | None) -> Path:
    steps = _steps(folder)
    if not steps:
        raise InputError(
            f"{folder}: holds no checkpoint; give the workdir of a run that has saved one."
        )
    if step is not None and step not in steps:
        listed = ", ".join(map(str, steps))
        raise InputError(f"{folder}: has no step {step}; take one of {listed}.")
    return folder.absolute() / str(steps[-1] if step is None else step)


def _read_whole(folder: Path, read: Callable[[], T]) -> T:
    """Calls `read`, turning what a damaged file raises into an InputError."""
    with _orbax_kept_quiet():
        try:
            return read()
        except InputError:
            raise
        # Orbax and TensorStore raise many kinds for a damaged file, among them KeyError,
        # ValueError, FileNotFoundError and their own.
        except Exception as error:
            _ignore_abandoned_reads()
            reason = _root_reason(error)
        # Collected here, the abandoned reads do not complain at the program's end.
        gc.collect()
    earlier = [step for step in _steps(folder.parent) if step < int(folder.name)]
    remedy = f"go on from step {earlier[-1]}" if earlier else "start anew"
    raise InputError(
        f"{folder}: cannot be read, a checkpoint must be whole ({reason}); "
        f"copy it again, or remove this folder to {remedy}."
    )


@contextlib.contextmanager
def _orbax_kept_quiet() -> Iterator[None]:
    """Orbax logs what it also raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        logging.disable(disabled)


@functools.cache
def _quieten_orbax() -> None:
    """Leaves out of absl's log what Orbax's background work also raises later."""
    orbax = str(Path(ocp.__file__).parents[2])
    logging.getLogger("absl").addFilter(lambda record: not record.pathname.startswith(orbax))


@functools.cache
def _ignore_abandoned_reads() -> None:
    """Keeps stderr clean of the reads that Orbax abandons, from now on and only of them.

    When one read of many fails, Orbax closes its event loop under the others, and each of
    them says so when it ends: seconds later for a large checkpoint.
    """
    report = sys.unraisablehook
    complaints = ("Event loop is closed", "Encountered error while reading array index")

    def report_others(unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(complaints):
            report(unraisable)

    sys.unraisablehook = report_others


def _root_reason(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    # TensorStore says first which of its many files it was.
    text = re.sub(r'Failed \w+: "[^"]*": ', "", str(error)).split(" [tensorstore_spec")[0]
    return " ".join(text.split())[:300] or type(error).__name__


def _check_fits(folder: Path, saved: PyTree, abstract: PyTree) -> None:
    """Raises InputError, naming the first path, unless shapes and dtypes are the saved ones."""
    there, here = _shapes(saved), _shapes(abstract)
    for path in sorted(there.keys() | here.keys()):
        if there.get(path, "absent") != here.get(path, "absent"):
            raise InputError(
                f"{folder}: {path} is {there.get(path, 'absent')} in the checkpoint and "
                f"{here.get(path, 'absent')} in this model; use the configuration it was "
                "trained with."
            )


def _shapes(tree: PyTree) -> dict[str, str]:
    def kind(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else "a number"

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): kind(leaf) for path, leaf in leaves
    }
