"""When one process of a training cannot go on, the others end too, and say why.

They would wait for it: for ever on chips, and on CPUs until Gloo gives up with a traceback. What
happened is told through the service by which JAX's processes find each other, which works while
they start and needs no collective. It lives in process 0.

A signal to one of them is told so where they do not vote on it: while they start up, when nothing
is there to save, and all leave; and while the others wait for process 0, which gives up an
evaluation.
"""

import contextlib
import json
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax

# JAX shows the client of that service nowhere else; Orbax takes it from here as well.
from jax._src import distributed

from spatial_clap_jax import shown
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.interruption import (
    EXIT_STATUS,
    Interrupted,
    Interruption,
    end_at_once,
)

# Another process is gone, and nobody knows why.
LOST_STATUS = 4
_PLACE = "spatial_clap_jax/failed/"
_SIGNALS = "spatial_clap_jax/signalled/"
_ASKED_EVERY_S = 0.5
# JAX aborts whoever still lives when process 0 takes the service with it, so that leaves last.
_LEAVES_LAST_S = 5.0
# One that meets the same error tells it itself within this time.
_OWN_WORDS_S = 1.5
# What JAX raises where a process no longer answers: its service, Gloo and NCCL in their words.
_LOST = re.compile(
    r"gloo|nccl|coordination|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|Connection", re.I
)
# Whoever comes to it first ends the process.
_leaving = threading.Lock()


class Failure(NamedTuple):
    """Why a process ended.

    Attributes:
      process: its number.
      status: its exit status.
      line: what it said.
    """

    process: int
    status: int
    line: str


def client() -> Any:
    """The client of JAX's service, None where there is one process alone."""
    state = distributed.global_state
    return state.client if state.num_processes > 1 else None


def failure() -> Failure | None:
    """Why the process of the lowest number that told of its end ended, if any did.

    Raises:
      JaxRuntimeError: the service is gone.
    """
    told = client().key_value_dir_get(_PLACE)
    if not told:
        return None
    number, text = min((int(key.rpartition("/")[2]), text) for key, text in told)
    return Failure(number, *json.loads(text))


def is_loss(error: BaseException | None) -> bool:
    """Whether an error is what JAX raises where another process no longer answers."""
    # The same fault is a ValueError where a compiled function notices it when it is called.
    kinds = (jax.errors.JaxRuntimeError, ValueError)
    if client() is None or not isinstance(error, kinds) or isinstance(error, InputError):
        return False
    return _LOST.search(str(error)) is not None


@contextlib.contextmanager
def shared(told: Callable[[BaseException], tuple[int, str] | None]) -> Iterator[None]:
    """An error in here, of this process or another one, ends them all, each with one line.

    So does a signal to one of them in their start-up, as `Interruption` tells it.

    Args:
      told: exit status and line of an error; None where it is none that a user can mend, and is
        shown whole.

    Raises:
      Interrupted: all processes leave together.
    """
    ending = threading.Event()
    watching = threading.Thread(
        target=_watch, args=(ending, Interruption.current()), name="failures", daemon=True
    )
    watching.start()
    try:
        yield
    except Interrupted:
        ending.set()
        watching.join()
        # JAX does so at Python's end, which one that has given something up does not wait for. The
        # state is saved, whatever has become of the others.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            distributed.global_state.shutdown()
        raise
    except Exception as error:
        ending.set()
        _end(error, told(error))
    finally:
        ending.set()


def _watch(ending: threading.Event, interruption: Interruption) -> None:
    """What the thread does: it hears the other processes, and passes a signal on."""
    passed_on = False
    while not ending.wait(_ASKED_EVERY_S):
        try:
            found = failure()
            if interruption.is_asked:
                if found is None and not passed_on:
                    _pass_on(interruption)
                    passed_on = True
            elif _number() == 0 and not interruption.starts_up and _others_are_asked():
                interruption.ask()
        except jax.errors.JaxRuntimeError:
            # Process 0 is gone; whatever is waited for says so.
            return
        if found is not None and not ending.wait(_OWN_WORDS_S):
            _leave(found.status, _line(found))


def _others_are_asked() -> bool:
    return bool(client().key_value_dir_get(_SIGNALS))


def _pass_on(interruption: Interruption) -> None:
    """Tells the others of a signal; in the start-up it ends all."""
    if interruption.starts_up:
        told = EXIT_STATUS, str(interruption.interrupted())
        _tell(told)
        _leave(EXIT_STATUS, f"spatial-clap: {told[1]}\n")
    client().key_value_set(f"{_SIGNALS}{_number()}", interruption.name)


def _end(error: Exception, told: tuple[int, str] | None) -> NoReturn:
    """Ends this process, after it has told the others, or heard from them what led to its error."""
    is_lost = told is None and is_loss(error)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        found = failure() if is_lost else None
        if found is not None:
            _leave(found.status, _line(found))
    if is_lost:
        reason = " ".join(str(error).split())[:200]
        line = (
            f"processes: another one does not answer any more ({reason}); see what it said last, "
            "and start the same command again: it goes on from the newest checkpoint."
        )
        told = LOST_STATUS, line
    if told is None:
        traceback.print_exception(error)
        told = 1, f"{type(error).__name__}: {error}"
        line = ""
    else:
        line = f"spatial-clap: {shown.plain(told[1])}\n"
    _tell(told)
    _leave(told[0], line)


def _tell(told: tuple[int, str]) -> None:
    """Tells the others that this process ends, with which status and why."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client().key_value_set(f"{_PLACE}{_number()}", json.dumps(told))


def _number() -> int:
    """Which process this is; JAX's own count begins with its devices."""
    return distributed.global_state.process_id


def _leave(status: int, line: str) -> NoReturn:
    """Not by Python's own end, in which JAX would wait for the others for minutes."""
    with _leaving:
        # What nobody can read any more changes no status.
        with contextlib.suppress(OSError, AttributeError):
            sys.stdout.flush()
        if _number() == 0:
            with contextlib.suppress(OSError):
                print(line, end="", file=sys.stderr, flush=True)
            time.sleep(_LEAVES_LAST_S)
            line = ""
        end_at_once(status, line)


def _line(found: Failure) -> str:
    return shown.plain(f"spatial-clap: process {found.process} ended: {found.line}") + "\n"
