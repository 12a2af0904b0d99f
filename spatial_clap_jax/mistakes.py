"""What ends a command and can be mended, on one line, with the exit status that goes with it."""

import errno

from spatial_clap_jax.errors import InputError, RunStopped
from spatial_clap_jax.train.interruption import EXIT_STATUS, Interrupted

# What to do about errors of the system, which say themselves what is wrong.
_ALLOW = "give yourself the right to read and write there, or name another folder"
_REMEDIES = {
    errno.ENOSPC: "make room there, or name another folder",
    errno.EDQUOT: "make room there, or name another folder",
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EROFS: "name a folder that can be written",
    errno.ENOENT: "see that the path is right, and that what is given is there",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
}


def told_of(error: BaseException) -> tuple[int, str] | None:
    """How a command ends that could not do its work.

    Args:
      error: what ended it.

    Returns:
      Exit status, and the line that says what a user can mend; None of what is ours to mend.
    """
    match error:
        case Interrupted():
            return EXIT_STATUS, str(error)
        case KeyboardInterrupt():
            return 130, "interrupted"
        case RunStopped():
            return 3, str(error)
        case InputError():
            return 2, str(error)
        case OSError():
            # A full disk, a folder that may not be written: where, what and the remedy.
            place = f"{error.filename}: " if error.filename else ""
            remedy = _REMEDIES.get(error.errno or 0, "mend that")
            return 2, f"{place}{error.strerror or error}; {remedy}, then start again."
    return None
