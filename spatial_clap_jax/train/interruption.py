"""SIGTERM and SIGINT during a training: it saves and leaves, with an exit status of its own."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")

# EX_TEMPFAIL of sysexits.h: start the same command again.
EXIT_STATUS = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Launchers pass a signal on as another one, a moment later: that is no second wish.
_ECHO_S = 1.0
_ABANDONED = "abandoned by an interruption"


class Interrupted(KeyboardInterrupt):
    """A signal ended a training early; what it had learnt is saved."""


class Interruption:
    """Notes SIGTERM and SIGINT while it is entered; a second signal ends the process at once.

    A first signal lets the step that is under way finish, and raises `Interrupted` at once where
    the work can be abandoned. Entered inside another one, or outside the main thread, where no
    signal arrives, it changes nothing.

    Reference: our choice.
    """

    _outer: ClassVar["Interruption | None"] = None

    def __init__(self) -> None:
        self._signal: int | None = None
        self._at = 0.0
        self._abandonable = self._entered = 0
        self._before: dict[int, Any] = {}

    @classmethod
    def current(cls) -> "Interruption":
        """The one that is entered, else a new one."""
        return cls._outer or cls()

    def __enter__(self) -> Self:
        self._entered += 1
        is_main = threading.current_thread() is threading.main_thread()
        if Interruption._outer is None and is_main:
            Interruption._outer = self
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if Interruption._outer is self and not self._entered:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            Interruption._outer = None

    def listen(self) -> None:
        """Takes the signals back from libraries that have claimed them since."""
        if Interruption._outer is self:
            for number in _SIGNALS:
                signal.signal(number, self._receive)

    @property
    def is_asked(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    @contextlib.contextmanager
    def abandonable(self, wanted: bool = True) -> Iterator[None]:
        """What is done in here is given up at a signal, or not begun after one.

        Args:
          wanted: False changes nothing, where other processes would wait for this one.

        Raises:
          Interrupted: a signal came.
        """
        if not wanted:
            yield
            return
        self._abandonable += 1
        try:
            if self.is_asked:
                raise self.interrupted()
            yield
        finally:
            self._abandonable -= 1

    @property
    def name(self) -> str:
        """Of the signal that came, here or elsewhere."""
        if self._signal is None:
            return "a signal to another process"
        return signal.Signals(self._signal).name

    def interrupted(self) -> Interrupted:
        """What is to be raised where nothing is left to save."""
        return Interrupted(f"{self.name}: nothing is left to save; the same command goes on")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is not None:
            is_echo = number != self._signal and now - self._at < _ECHO_S
            if not is_echo:
                os._exit(128 + number)
            return
        self._signal, self._at = number, now
        if self._abandonable:
            raise self.interrupted()


def call_abandonably(function: Callable[[], T]) -> T:
    """Calls what does not return to Python for long, so that a signal need not wait for it.

    Args:
      function: such as a compilation; goes on in its thread when it is abandoned.

    Returns:
      What it returns.

    Raises:
      Interrupted: a signal came, inside `Interruption.abandonable`.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        done.wait()
    except BaseException:
        thread.name = _ABANDONED
        raise
    if errors:
        raise errors[0]
    return results[0]


def leave(status: int) -> None:
    """Ends the process with a status, without waiting for what has been abandoned.

    Raises:
      SystemExit: the status, where nothing was abandoned.
    """
    if any(thread.name == _ABANDONED for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)
