"""Standard streams that may be lost while a command works: their reader ends, their disk is full.

What a command makes lies in files. That nobody reads its progress any more is no reason to lose it.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Unbroken:
    """A text stream whose writes never fail; what cannot be written is left out.

    Args:
      stream: the stream; all else that is asked of this one is asked of it.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text where that is possible."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered where that is possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def unbroken_stderr() -> Any:
    """Standard error as an `Unbroken` stream; None where the process was started without one."""
    return None if sys.stderr is None else Unbroken(sys.stderr)


@contextlib.contextmanager
def unbroken_streams() -> Iterator[None]:
    """Lets a command lose stderr, and end with its own status although a stream is lost.

    Python flushes both streams at its end, and turns a failure there into status 120. A letter that
    the encoding of a stream lacks ends no command either: it is written as in a string of Python.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in streams:
        # A stream of a notebook takes all letters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with contextlib.redirect_stderr(unbroken_stderr()):
            yield
    finally:
        for stream in streams:
            _settle(stream)


@contextlib.contextmanager
def unbroken_stdout(wanted: bool = True) -> Iterator[None]:
    """Lets what is done in here lose stdout too, because what is printed lies in files as well.

    Args:
      wanted: False changes nothing.
    """
    if not wanted or sys.stdout is None:
        yield
        return
    stream: Any = Unbroken(sys.stdout)
    with contextlib.redirect_stdout(stream):
        yield


def tell(line: str) -> None:
    """Prints a line on stdout that says what is done; where it cannot be written, it is left out.

    For commands whose result is a file. What a command makes to be read is printed as usual.
    """
    try:
        print(line, flush=True)
    except OSError:
        _settle(sys.stdout)


def flush_stdout() -> None:
    """Writes what was printed.

    Raises:
      OSError: it cannot be written.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def keep_standard_files_open() -> None:
    """Opens the null device in place of each standard stream that the process was started without.

    The next file that is opened would take its number, and what native code has to say would go
    into that file. Python's own `print` would write to stdout what is for a stderr that is None.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, and those below are taken.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _settle(stream: TextIO) -> None:
    """Flushes a stream; one that fails goes to the null device from now on, with what it holds."""
    try:
        stream.flush()
    except OSError:
        # A stream of a test, or of a notebook, is no file.
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()
