"""Checkpoints of a run.

A run's folder holds, beside its description,

    checkpoints/<step>/     state (arrays), data_state (the place in the data), digests and shapes
    set_aside/<step>/       checkpoints that were found damaged, never deleted
    saved.json              the first step known to have been saved whole, which outlives them all

We take Orbax's v1 API. A trial of 0.12.8 saw it do all that is needed: saves in the
background that a donated step cannot disturb, retention of the newest N and every K-th,
items of our own written by every process, restore of a part of the tree and onto another
mesh, a save on SIGTERM through `jax.distributed`, and after a kill in mid-save nothing but
a temporary folder that is never listed. It refuses a wrong shape late and casts a wrong
dtype in silence, so both are checked here before anything is read; and no checksum of it tells
a flipped bit in an array, so each has a digest of ours.
"""

import contextlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import count_of, json_of
from spatial_clap_jax.train import processes
from spatial_clap_jax.train.checkpoint_files import (
    DamagedCheckpoint,
    JsonFile,
    check_arrays,
    check_committed,
    check_digests,
    orbax_kept_quiet,
    quieten_orbax,
    read_json,
    read_whole,
    root_reason,
    saved_tree,
    shapes,
    steps_in,
)
from spatial_clap_jax.train.description import run_folder, write_atomically
from spatial_clap_jax.train.digests import digests
from spatial_clap_jax.train.metrics_log import has_metrics
from spatial_clap_jax.train.tensorstore_leaks import mend_tensorstore

PyTree = Any
T = TypeVar("T")

_SAVED = "saved.json"
# Bytes of an error that other processes are told.
_TOLD = 2000


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
      save_timeout_s: how long a save may take; where one process cannot write, the others wait
        for it so long, and then none has saved.

    Raises:
      InputError: `workdir` is a bucket's address, or a count is below 1.

    Reference: our choice.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep: int = 3,
        keep_every: int | None = None,
        save_timeout_s: int = 600,
    ):
        for name, count in (("keep", keep), ("keep_every", keep_every)):
            if count is not None and count < 1:
                raise InputError(f"{name}: {count} is below 1; keep at least one checkpoint.")
        policies = ocp.training.preservation_policies
        newest = policies.LatestN(keep)
        kept = [newest] if keep_every is None else [newest, policies.EveryNSteps(keep_every)]
        self._folder = run_folder(workdir) / "checkpoints"
        # Folders made in the background leave threads, where they may not be made, that wait for
        # them for minutes, and keep a program that stops from ending.
        bounded = ocp.options.AsyncOptions(
            timeout_secs=save_timeout_s, create_directories_asynchronously=False
        )
        with orbax_kept_quiet():
            self._checkpointer = ocp.training.Checkpointer(
                str(self._folder.absolute()),
                # Orbax annotates its own policies with a protocol that they do not fit.
                preservation_policy=policies.AnyPreservationPolicy(kept),  # pyright: ignore[reportArgumentType]
                cleanup_tmp_directories=True,
                context=ocp.Context(async_options=bounded),
            )
        self._aside = self._folder.parent / "set_aside"
        self._timeout_s = save_timeout_s
        self._noting = threading.Lock()
        # A run of before this file was written has a log, and what it has saved is not known.
        if self._looks_unsaved() and not has_metrics(workdir):
            self._note_saved(None)
        self._saving = 0
        self._response: Any = None
        quieten_orbax()
        mend_tensorstore()

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
                "data_state": JsonFile(data_state),
                "digests": JsonFile(digests(state)),
                "shapes": JsonFile(shapes(state)),
            }
            self._saving = step
            try:
                self._response = self._checkpointer.save_checkpointables_async(
                    step, items, force=True
                )
            except Exception as error:
                self._fail(error)
            if self._response is not None:
                # Whoever waits for it notes it too, but may be killed before.
                self._response.on_complete(lambda _: self._note_in_background(step))
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
          DamagedCheckpoint: it cannot be read whole, or its bits are not those that were saved.
          InputError: there is no such checkpoint, its arrays are not those of `abstract_state`, or
            memory, rights or the disk keep it from being read. Whatever fails in one process
            fails in all of them.
        """
        self.wait()
        return self._restored(_step_folder(self._folder, step), abstract_state)

    def _restored(
        self,
        folder: Path,
        abstract_state: PyTree,
        check_place: Callable[[Any], None] = lambda place: None,
    ) -> tuple[PyTree, dict]:
        def check() -> tuple[dict, dict]:
            check_committed(folder)
            _check_fits(folder, saved_tree(folder), abstract_state)
            place, saved = read_json(folder / "data_state"), read_json(folder / "digests")
            check_place(place)
            if jax.process_count() > 1:
                check_arrays(folder / "state", jax.process_index(), jax.process_count())
            return place, saved

        # Orbax's load waits, five minutes at most, for a process in which it fails: so each looks
        # first by itself, and all load or none.
        place, saved = _in_all_or_none(folder, check)

        def load() -> PyTree:
            state = ocp.load_checkpointables(str(folder), {"state": abstract_state})["state"]
            check_digests(saved, digests(state))
            return state

        return _in_all_or_none(folder, load), place

    def restore_newest(
        self,
        abstract_state: PyTree,
        tell: Callable[[str], None],
        check_place: Callable[[Any], None] = lambda place: None,
    ) -> tuple[PyTree, dict, int]:
        """Restores the newest checkpoint that is whole; newer ones are set aside, not removed.

        Args:
          abstract_state: see `restore`.
          tell: is told of each one that is set aside.
          check_place: raises ValueError for a place that the run cannot go on from; such a
            checkpoint is damaged, though its checksums are right.

        Returns:
          The state, the place in the data and the step.

        Raises:
          InputError: none is whole; or the newest that may be is of another model, or cannot be
            read for now. Nothing is moved then.
        """
        self.wait()
        damaged: dict[int, DamagedCheckpoint] = {}
        for step in reversed(_steps_of_first(self._folder)):
            try:
                folder = self._folder.absolute() / str(step)
                restored = self._restored(folder, abstract_state, check_place)
            except DamagedCheckpoint as error:
                damaged[step] = error
                continue
            for broken, reason in damaged.items():
                tell(f"{reason}; set aside as {self._set_aside(broken)}")
            if damaged:
                tell(f"goes on from step {step}")
            self._checkpointer.reload()
            self._note_saved(step)
            return *restored, step
        if damaged:
            raise InputError(
                f"{next(iter(damaged.values()))} No checkpoint of {self._folder} is whole; copy "
                "one there again, or take another --workdir to start anew."
            )
        raise InputError(
            f"{self._folder}: holds no checkpoint, but {self._aside} holds damaged ones; put a "
            "whole one there, or take another --workdir to start anew."
        )

    def is_empty(self) -> bool:
        """Whether no process sees a checkpoint, whole or not; all must ask."""
        return processes.all_agree(self._looks_unsaved())

    def _looks_unsaved(self) -> bool:
        was_damaged = self._aside.is_dir() and any(self._aside.iterdir())
        return not steps_in(self._folder) and not was_damaged

    def _note_saved(self, step: int | None) -> None:
        """Notes the first step known to be saved whole, or that there is none so far."""
        path = self._folder.parent / _SAVED
        if not processes.is_first_process():
            return
        with self._noting:
            if first_saved_step(path.parent) is None:
                # What cannot be written now follows with the next save.
                with contextlib.suppress(OSError):
                    write_atomically(path, json.dumps({"step": step}) + "\n")

    def _note_in_background(self, step: int) -> None:
        # A note that is damaged is told by whoever waits.
        with contextlib.suppress(InputError):
            self._note_saved(step)

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
        under_way = sys.exc_info()[1]
        try:
            with orbax_kept_quiet():
                try:
                    if response is not None:
                        # Asked for, it gives back its thread and three files.
                        response.result()
                finally:
                    # A save that failed tells it to both, and else it would to the next save.
                    self._checkpointer.wait()
        except Exception as error:
            _part(error, under_way)
            self._fail(error)
        if response is not None:
            self._note_saved(self._saving)

    def _fail(self, error: Exception) -> NoReturn:
        step = self._saving
        reason = root_reason(error)
        if jax.process_count() > 1 and re.search("DEADLINE_EXCEEDED|did not complete", reason):
            reason = f"another process did not end its part in {self._timeout_s} s"
        # Orbax gives up its list of what is on disk with the save.
        self._checkpointer.reload()
        if processes.is_first_process():
            for left in self._folder.glob(f"{step}.*tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        steps = steps_in(self._folder)
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
    return bool(steps_in(run_folder(workdir) / "checkpoints"))


def has_noted_saves(workdir: str | Path) -> bool:
    """Whether a run notes what it has saved; those of older versions do not."""
    return (run_folder(workdir) / _SAVED).is_file()


def first_saved_step(workdir: str | Path) -> int | None:
    """The first step that is known to have been saved whole, whatever became of it; or None.

    Raises:
      InputError: the note of it is damaged.
    """
    path = run_folder(workdir) / _SAVED
    if not has_noted_saves(workdir):
        return None
    try:
        step = json_of(path)["step"]
        return None if step is None else count_of(step)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); remove it if checkpoints/ is in its place."
        ) from error


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
        check_committed(folder)
        saved = saved_tree(folder)
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
            check_digests(read_json(folder / "digests"), digests(loaded))
        return loaded

    return read_whole(folder, read), int(folder.name)


def _part(error: BaseException, under_way: BaseException | None) -> None:
    """Parts an error from one that ends the run already: it came after that, and not of it."""
    while (context := error.__context__) is not None and context is not under_way:
        error = context
    error.__context__ = None


def _step_folder(folder: Path, step: int | None) -> Path:
    steps = steps_in(folder)
    if not steps:
        raise InputError(
            f"{folder}: holds no checkpoint; give the workdir of a run that has saved one."
        )
    if step is not None and step not in steps:
        listed = ", ".join(map(str, steps))
        raise InputError(f"{folder}: has no step {step}; take one of {listed}.")
    return folder.absolute() / str(steps[-1] if step is None else step)


def _steps_of_first(folder: Path) -> list[int]:
    """Steps on disk as process 0 sees them; a network's file system may show others less."""
    steps = np.array(steps_in(folder), np.int64)
    if jax.process_count() == 1:
        return steps.tolist()
    count = int(multihost_utils.broadcast_one_to_all(np.array(len(steps), np.int32)))
    # As bytes: JAX makes 32 bits of 64.
    told = multihost_utils.broadcast_one_to_all(np.resize(steps, count).view(np.uint8))
    return np.asarray(told).view(np.int64).tolist()


def _in_all_or_none(folder: Path, read: Callable[[], T]) -> T:
    """Calls `read` in every process; what it raises in one of them, all of them raise.

    A damaged file is told before an error of another kind: who waits in vain for a process that
    fails has one too.
    """
    try:
        found, error = read_whole(folder, read), None
    except InputError as caught:
        found, error = None, caught
    if jax.process_count() > 1:
        row = np.zeros(1 + _TOLD, np.uint8)
        if error is not None:
            # A path may be no UTF-8.
            text = str(error).encode(errors="backslashreplace")[:_TOLD]
            row[0] = 2 if isinstance(error, DamagedCheckpoint) else 1
            row[1 : 1 + len(text)] = np.frombuffer(text, np.uint8)
        rows = multihost_utils.process_allgather(row)
        worst = rows[int(np.argmax(rows[:, 0]))]
        text = bytes(worst[1:]).rstrip(b"\0").decode(errors="replace")
        error = (None, InputError(text), DamagedCheckpoint(text))[worst[0]]
    if error is not None:
        raise error
    assert found is not None
    return found


def _check_fits(folder: Path, saved: PyTree, abstract: PyTree) -> None:
    """Raises InputError, naming the first path, unless shapes and dtypes are the saved ones."""
    there, here = shapes(saved), shapes(abstract)
    for path in sorted(there.keys() | here.keys()):
        if there.get(path, "absent") != here.get(path, "absent"):
            raise InputError(
                f"{folder}: {path} is {there.get(path, 'absent')} in the checkpoint and "
                f"{here.get(path, 'absent')} in this model; use the configuration it was "
                "trained with, or take another --workdir for this one."
            )
