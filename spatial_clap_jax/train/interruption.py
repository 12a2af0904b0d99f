"""SIGTERM and SIGINT during a training: it saves and leaves, with an exit status of its own."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, ClassVar, NoReturn, Self, TypeVar

T = TypeVar("T")

# EX_TEMPFAIL of sysexits.h: start the same command again.
EXIT_STATUS = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Has the main thread give up what it does. The system ignores it where nobody listens.
_GIVE_UP = signal.SIGURG
# Launchers pass a signal on, as another one or the same, that has reached the whole group already:
# what comes a moment later is no second wish.
_ECHO_S = 0.8
_ABANDONABLE = "can be abandoned"
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A signal ended a training early; what it had learnt is saved."""


class Interruption:
    """Listens for SIGTERM and SIGINT while it is entered; a second signal ends the process at once.

    A thread listens, so that signals are heard while the main thread is in native code, too, as
    long as that gives up the interpreter's lock (imports, compilations and the wait for other
    processes do). A first signal

    - ends a process that `exits` at once while it starts up: nothing is there to save, and an
      exception amid imports would crash extension modules;
    - raises `Interrupted` in the main thread where the work can be abandoned;
    - lets the step that is under way finish elsewhere.

    A second one ends the process with 128 + its number, wherever it is. What comes within `_ECHO_S`
    of the first is an echo of it, and is waited for before others get the signals back.

    Entered inside another one, or outside the main thread, where no signal arrives, it changes
    nothing.

    Args:
      exits: the process is a command, and may be ended with `EXIT_STATUS` and a line on stderr
        until its start-up, the first `abandonable` work, is done.

    Reference: our choice; `signal.set_wakeup_fd`.
    """

    _outer: ClassVar["Interruption | None"] = None

    def __init__(self, exits: bool = False) -> None:
        self._exits = exits
        self._starts_up = True
        self._elsewhere = False
        self._signal: int | None = None
        self._at = 0.0
        self._abandonable = self._entered = 0
        self._before: dict[int, Any] = {}
        self._told = self._told_before = -1

    @classmethod
    def current(cls, exits: bool = False) -> "Interruption":
        """The one that is entered, else a new one."""
        return cls._outer or cls(exits)

    def __enter__(self) -> Self:
        self._entered += 1
        is_main = threading.current_thread() is threading.main_thread()
        if Interruption._outer is None and is_main:
            Interruption._outer = self
            heard, self._told = os.pipe()
            os.set_blocking(self._told, False)
            threading.Thread(
                target=self._listen, args=(heard,), name="signals", daemon=True
            ).start()
            self._told_before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
            self._before = {number: signal.getsignal(number) for number in (*_SIGNALS, _GIVE_UP)}
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
            if self._signal is not None:
                # An echo would end with a status of its own what leaves by this one.
                time.sleep(max(self._at + _ECHO_S - time.monotonic(), 0.0))
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._told_before)
            # Ends the thread.
            os.close(self._told)
            Interruption._outer = None

    def listen(self) -> None:
        """Takes the signals back from libraries that have claimed them since."""
        if Interruption._outer is self:
            signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
            signal.signal(_GIVE_UP, self._give_up)
            for number in _SIGNALS:
                signal.signal(number, _leave_to_the_thread)

    def stay(self) -> None:
        """Ends the start-up: signals are noted from now on."""
        self._exits = self._starts_up = False

    @property
    def starts_up(self) -> bool:
        """Whether nothing is there to save yet."""
        return self._starts_up

    def ask(self) -> None:
        """Notes, from any thread, that another process of the training has got a signal."""
        self._elsewhere = True
        signal.pthread_kill(_main_thread_id(), _GIVE_UP)

    @property
    def is_asked(self) -> bool:
        """Whether a signal has come, here or, where that was told, elsewhere."""
        return self._elsewhere or self._signal is not None

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
            self.stay()
        # What is raised amid a destructor or a callback of the garbage collector gets lost.
        if self.is_asked:
            raise self.interrupted()

    @property
    def name(self) -> str:
        """Of the signal that came, here or elsewhere."""
        if self._signal is None:
            return "a signal to another process"
        return signal.Signals(self._signal).name

    def interrupted(self) -> Interrupted:
        """What is to be raised where nothing is left to save."""
        return Interrupted(f"{self.name}: nothing is left to save; the same command goes on")

    def _listen(self, heard: int) -> None:
        """What the thread does: each signal arrives as a byte, its number."""
        while numbers := os.read(heard, 64):
            for number in numbers:
                if number in _SIGNALS:
                    self._receive(number)
        os.close(heard)

    def _receive(self, number: int) -> None:
        now = time.monotonic()
        if self._signal is not None:
            if now - self._at >= _ECHO_S:
                end_at_once(128 + number)
            return
        self._signal, self._at = number, now
        if self._exits:
            end_at_once(EXIT_STATUS, f"spatial-clap: {self.interrupted()}\n")
        # To that thread, which may wait for a lock.
        signal.pthread_kill(_main_thread_id(), _GIVE_UP)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        if self._abandonable:
            raise self.interrupted()


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Does nothing: Python tells the thread of signals that have a handler."""


def _main_thread_id() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident


def end_at_once(status: int, line: str = "") -> NoReturn:
    """Ends the process from any thread, whatever the others are doing.

    Args:
      status: of its exit.
      line: for stderr, with its end.
    """
    if os.isatty(2):
        # A progress bar hides the cursor, and ends no line.
        line = f"{_SHOW_CURSOR}\n{line}"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(status)


def call_abandonably(function: Callable[[], T]) -> T:
    """Calls a function in a thread, so that a signal is obeyed whatever it does.

    An exception of a signal's is raised where the main thread waits, never within the function,
    which may be in native code for long (a compilation) or amid imports or callbacks, where an
    exception would crash or get lost.

    Args:
      function: goes on in its thread when it is abandoned.

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

    threading.Thread(target=run, name=_ABANDONABLE, daemon=True).start()
    done.wait()
    if errors:
        raise errors[0]
    return results[0]


def leave(status: int) -> None:
    """Ends the process with a status, without waiting for what has been abandoned.

    Raises:
      SystemExit: the status, where nothing was abandoned.
    """
    if any(thread.name == _ABANDONABLE for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            # What nobody can read any more changes no status.
            with contextlib.suppress(OSError, AttributeError):
                stream.flush()
        os._exit(status)
    raise SystemExit(status)
