"""The processes of one training: how they find each other and wait for each other."""

import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import failures
from spatial_clap_jax.train.environment import AUTOMATIC, BY_HAND, PATIENCE
from spatial_clap_jax.train.interruption import EXIT_STATUS, Interruption, end_at_once

# How often others are looked for that have not come to the same point yet.
_ASKED_EVERY_S = 0.1
_PATIENCE_S = 300.0
# Where a signal comes while the others are waited for: those that come soon are told of it.
_LATECOMERS_S = 15.0
# JAX ends the process with a trace of C++ where its own time is over, so ours must come before.
_JAX_PATIENCE_S = 10**6
_points = itertools.count()


def join_processes() -> bool:
    """Joins the other processes of a training, if the environment speaks of any.

    Either JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    tell all, whatever Slurm or another cluster says beside them, and a process has all devices that
    it sees (or those of JAX_LOCAL_DEVICE_IDS); or SPATIAL_CLAP_PROCESSES=auto lets JAX ask Slurm,
    Open MPI or the TPU's metadata. The scripts in `launch/` set them. Must come before anything
    that looks at devices.

    The others are waited for during SPATIAL_CLAP_JOIN_TIMEOUT_S, 300 seconds if it is not set;
    where they do not come by then, the process ends with status 4 and a line. After a signal it
    waits 15 s more, for others that have to be told of it, and ends with status 75.

    Returns:
      Whether there is more than one process.

    Raises:
      InputError: variables are missing or make no sense, or JAX cannot use them.
    """
    given = {name: os.environ[name] for name in BY_HAND if os.environ.get(name)}
    automatic = os.environ.get(AUTOMATIC, "")
    if automatic not in ("", "auto"):
        raise InputError(f"{AUTOMATIC}: {automatic!r} is unknown; set it to 'auto', or unset it.")
    if not given and not automatic:
        return False
    if not automatic and len(given) < len(BY_HAND):
        missing = [name for name in BY_HAND if name not in given]
        raise InputError(
            f"{', '.join(missing)}: not set, but {', '.join(given)} is; set all of "
            f"{', '.join(BY_HAND)}, or {AUTOMATIC}=auto."
        )
    numbers = {}
    for name in BY_HAND[1:]:
        value = given.get(name)
        if value is not None and not (value.isascii() and value.isdigit()):
            raise InputError(f"{name}: {value!r} is no number; set it to one, from 0.")
        numbers[name] = None if value is None else int(value)
    try:
        with _watched(_patience_s()):
            jax.distributed.initialize(
                coordinator_address=given.get(BY_HAND[0]),
                num_processes=numbers[BY_HAND[1]],
                process_id=numbers[BY_HAND[2]],
                # Else JAX asks the cluster still, which takes each process of Slurm for one GPU.
                cluster_detection_method="deactivate" if len(given) == len(BY_HAND) else None,
                initialization_timeout=_JAX_PATIENCE_S,
            )
    except InputError:
        raise
    # JAX raises ValueError for what is not told, RuntimeError for an address that cannot be used.
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"processes: cannot join the training ({reason}); start it with a script of launch/."
        ) from error
    return jax.process_count() > 1


def _patience_s() -> float:
    told = os.environ.get(PATIENCE) or _PATIENCE_S
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(told)) < math.inf:
            return min(seconds, _JAX_PATIENCE_S / 2)
    raise InputError(f"{PATIENCE}: {told!r} is no number of seconds above 0; set it to one.")


@contextlib.contextmanager
def _watched(patience_s: float) -> Iterator[None]:
    """Ends the process where the others do not come in time, or a signal comes before them."""
    has_joined, interruption = threading.Event(), Interruption.current()

    def watch() -> None:
        began, asked = time.monotonic(), math.inf
        while not has_joined.wait(_ASKED_EVERY_S):
            now = time.monotonic()
            if interruption.is_asked:
                asked = min(asked, now)
            if now - asked > _LATECOMERS_S:
                end_at_once(EXIT_STATUS, f"spatial-clap: {interruption.interrupted()}\n")
            if now - began > patience_s:
                end_at_once(
                    failures.LOST_STATUS,
                    f"spatial-clap: processes: not all of them came within {patience_s:g} s; see "
                    "whether each was started and reaches the first one, or set "
                    f"{PATIENCE} to more, then start again.\n",
                )

    watching = threading.Thread(target=watch, name="others", daemon=True)
    watching.start()
    try:
        yield
    finally:
        has_joined.set()
        watching.join()


def wait_for_all(what: str) -> None:
    """Returns when every process has come to the point of this name, however long that takes."""
    if jax.process_count() == 1:
        return
    # First without a collective: Gloo gives up where processes come to one 30 s apart.
    client, place = failures.client(), f"spatial_clap_jax/points/{next(_points)}/"
    client.key_value_set(f"{place}{jax.process_index()}", what)
    while len(client.key_value_dir_get(place)) < jax.process_count():
        time.sleep(_ASKED_EVERY_S)
    multihost_utils.sync_global_devices(what)


def all_agree(wish: bool) -> bool:
    """Whether every process says so; all must ask, and all wait for the answers."""
    if jax.process_count() == 1:
        return wish
    return bool(np.all(multihost_utils.process_allgather(np.array(wish))))


def as_first(wish: bool) -> bool:
    """What process 0 wishes; all must ask, and all wait for the answer."""
    if jax.process_count() == 1:
        return wish
    return bool(multihost_utils.broadcast_one_to_all(np.array(wish)))


def total_of_all(count: int) -> int:
    """The sum of what every process counts; all must ask, and all wait for the answers."""
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.array(count))))


def greatest_of_all(value: float) -> float:
    """The greatest of what every process has; all must ask, and all wait for the answers."""
    if jax.process_count() == 1:
        return value
    # As float32, which is what JAX moves between processes.
    return float(np.max(multihost_utils.process_allgather(np.float32(value))))


def on_host(tree: Any) -> Any:
    """A tree of global arrays as NumPy arrays, whole on every process; all must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


class Vote:
    """Whether any process wants something: asked at every step, and known one step later.

    The answer is computed by the devices as a part of their queue, so that no process waits for
    another, and all get it at the same step.

    Args:
      mesh: the devices of all processes.
    """

    def __init__(self, mesh: Mesh):
        self._place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._any = jax.jit(jnp.any, out_shardings=everywhere)
        self._shape = (mesh.size,)
        self._asked: jax.Array | None = None

    def cast(self, wish: bool) -> bool:
        """Casts this step's vote.

        Args:
          wish: of this process.

        Returns:
          The result of the vote before this one; of this one where there is one process alone.
        """
        if jax.process_count() == 1:
            return wish
        before = self._asked
        # To a guard, what is made of each process' part is unasked.
        with jax.transfer_guard("allow"):
            votes = jax.make_array_from_callback(
                self._shape, self._place, lambda index: np.full(self._shape, wish)[index]
            )
        self._asked = self._any(votes)
        return before is not None and bool(jax.device_get(before))


def is_first_process() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return jax.process_index() == 0
