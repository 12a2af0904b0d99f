"""The one error that a user's input can cause, and what tells of the machine instead."""

import errno
import os
import re

# What the system says of a file or folder itself; all else is about the machine.
_OF_FILES = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG),
}
# Libraries in C++ hand the system's words on, and no number; TensorFlow's kin have their own.
_SYSTEMS_WORDS = re.compile(
    "|".join(
        re.escape(os.strerror(code))
        for code in (
            *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE),
            *(errno.EACCES, errno.EPERM, errno.ETIMEDOUT, errno.ENOTCONN),
        )
    )
)
_OUT_OF_MEANS = re.compile("RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|UNAVAILABLE")


class InputError(ValueError):
    """Something that a user gave cannot be used.

    The message is one line: the file or argument, its value, the rule it breaks and
    the remedy. The command line prints it without a traceback and exits with status 2.
    """


class RunStopped(RuntimeError):
    """A training cannot go on, though nothing that a user gave is wrong.

    The message is one line: what happened, what was kept, and where to look. The command line
    prints it without a traceback and exits with status 3.
    """


def fault_of_the_machine(error: BaseException | None) -> BaseException | None:
    """What of an error, or of those that led to it, is about the machine and not about files.

    Memory, time, open files, rights, a disk that fails, a library that is not there: the files may
    be whole.

    Args:
      error: what was raised while a file was read.

    Returns:
      The one in the chain that tells it; None where the file itself is at fault.
    """
    while error is not None:
        if isinstance(error, MemoryError | TimeoutError | ImportError):
            return error
        code = error.errno if isinstance(error, OSError) else None
        # TensorStore's errors are ValueErrors that hold it as text.
        if code is None and (found := re.search(r"os_error_code='(\d+)'", str(error))):
            code = int(found[1])
        if code is not None:
            return None if code in _OF_FILES else error
        if _OUT_OF_MEANS.search(str(error)):
            return error
        if isinstance(error, RuntimeError) and _SYSTEMS_WORDS.search(str(error)):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def not_read_now(place: object, error: BaseException) -> InputError | None:
    """What to raise where the machine kept something from being read that may be whole.

    Args:
      place: where it lies.
      error: what was raised while it was read.

    Returns:
      The error, with what to do about the machine; None where the file itself is at fault, or a
      library is missing.
    """
    fault = fault_of_the_machine(error)
    if fault is None or isinstance(fault, ImportError):
        return None
    told = fault.strerror if isinstance(fault, OSError) else None
    reason = " ".join((told or str(fault)).split())[:300] or type(fault).__name__
    remedy = "mend that"
    if "Too many open files" in reason:
        remedy = "raise `ulimit -n`, or give fewer data.workers"
    elif isinstance(fault, MemoryError):
        remedy = "give more memory, or fewer data.workers"
    return InputError(
        f"{place}: could not be read now ({reason}), which does not tell that it is bad; {remedy}, "
        "then start again."
    )
