"""Signals: noted, obeyed where work can be abandoned, and a second one ends it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from spatial_clap_jax.train.interruption import Interrupted, Interruption, call_abandonably


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    # Handlers run between two instructions of the main thread.
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_are_given_back(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.is_asked
        send(number)
        assert interruption.is_asked
        assert interruption.name == number.name
    assert signal.getsignal(number) is before


def test_what_can_be_abandoned_is_left_at_once_and_not_begun_again():
    with Interruption() as interruption:
        told, left = pytest.raises(Interrupted, match="SIGTERM: nothing"), interruption.abandonable
        with told, left():
            send(signal.SIGTERM)
        with pytest.raises(Interrupted), interruption.abandonable():
            pytest.fail("began")
        with interruption.abandonable(False):
            pass


def test_an_inner_one_is_the_outer_one():
    with Interruption() as outer:
        with Interruption.current() as inner:
            assert inner is outer
        send(signal.SIGTERM)
        assert outer.is_asked
    assert Interruption.current() is not outer


def test_another_signal_a_moment_later_is_the_same_wish():
    """Ctrl-C reaches a launcher too, which passes it on as SIGTERM."""
    with Interruption() as interruption:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert interruption.name == "SIGINT"


SECOND = """
import os, signal, sys, time
from spatial_clap_jax.train.interruption import Interruption
with Interruption():
    for number in sys.argv[1:]:
        os.kill(os.getpid(), int(number))
        time.sleep(1.2 if len(set(sys.argv[1:])) > 1 else 0.05)
    print("went on")
"""


@pytest.mark.parametrize("numbers", [(15, 15), (2, 2), (2, 15)])
def test_a_second_signal_exits_at_once(numbers):
    done = subprocess.run(
        [sys.executable, "-c", SECOND, *map(str, numbers)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 128 + numbers[1], done.stderr
    assert done.stdout == ""


def test_long_calls_return_raise_or_are_abandoned():
    assert call_abandonably(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_abandonably(lambda: 1 / 0)
    release = threading.Event()
    later = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    with Interruption() as interruption:
        later.start()
        with pytest.raises(Interrupted), interruption.abandonable():
            call_abandonably(lambda: release.wait(30))
    release.set()


def test_other_threads_are_left_alone():
    results = []

    def work():
        with Interruption() as interruption:
            results.append(call_abandonably(lambda: interruption.is_asked))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False]
    assert signal.getsignal(signal.SIGTERM) is before
