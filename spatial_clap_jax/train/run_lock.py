"""One start at a time in the folder of a run: two of them would write over each other."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import parsed_json
from spatial_clap_jax.train.description import run_folder
from spatial_clap_jax.train.processes import as_first, is_first_process

_FILE = "run.lock"
# A process that was killed gives its memory back before its locks.
_PATIENCE_S = 5.0
# What file systems that know no locks say.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
# More than is ever written into the file.
_LONGEST = 1000


@contextlib.contextmanager
def held(
    workdir: str | Path,
    tell: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Holds a run's folder for this start; all processes must enter, and process 0 holds it.

    The system gives the lock back whatever ends the process, and no process that it starts has a
    part in it, so there is nothing to clean up after a kill. The file stays, and tells who held the
    folder last.

    Args:
      workdir: the run's folder; made when missing.
      tell: is told where the file system knows no locks, and two starts are not kept apart.
      check: is called by process 0 once it holds the folder, and may refuse to begin.

    Raises:
      InputError: another start holds the folder; or what `check` raises.
      OSError: the file cannot be opened.

    Reference: flock(2); our choice.
    """
    descriptor: int | None = None
    error: InputError | OSError | None = None
    if is_first_process():
        try:
            descriptor = _taken(run_folder(workdir), tell)
            check()
        except (InputError, OSError) as caught:
            error = caught
    try:
        if not as_first(error is None):
            raise error or InputError(f"{workdir}: process 0 cannot begin here; it says why.")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _taken(folder: Path, tell: Callable[[str], None]) -> int:
    """The open file that holds the lock, or that would where there are locks."""
    folder.mkdir(parents=True, exist_ok=True)
    # Python opens files so that programs it starts do not have them. A link may lead anywhere.
    descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if not _locks(descriptor):
            raise InputError(
                f"{folder}: a training is at work here ({_holder(descriptor)}); wait for its end, "
                "or take another --workdir."
            )
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        tell(
            f"{folder}: its file system knows no locks ({error.strerror}); see that no other "
            "training is started in this folder"
        )
    except InputError:
        os.close(descriptor)
        raise
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": now}) + "\n"
    # Where the disk is full, a second start is refused without a name.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode()[:_LONGEST], 0)
    return descriptor


def _locks(descriptor: int) -> bool:
    """Whether the lock is had within some seconds."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
        time.sleep(0.1)


def _holder(descriptor: int) -> str:
    """Who holds the folder, in words."""
    try:
        found = parsed_json(os.pread(descriptor, _LONGEST, 0))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its file does not say which process"
