"""Signals: noted, obeyed where work can be abandoned, and a second one ends it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from spatial_clap_jax.train.interruption import Interrupted, Interruption, call_abandonably

# It keeps the main thread in native code, without the interpreter's lock, for many minutes.
NATIVE = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
PROGRAM = """
import hashlib, os, signal, sys, time
from spatial_clap_jax.train.interruption import Interruption
try:
    with Interruption({options}) as interruption:
        print("listens", flush=True)
        {work}
{after}
"""


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    # A thread hears it.
    time.sleep(0.2)


def begun(work: str, options: str = "", after: str = "finally: pass") -> subprocess.Popen:
    """A process that has begun to listen, and does some work."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work, options=options, after=after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listens\n"
    return process


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and stderr of a process that must end soon."""
    try:
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_are_given_back(number):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGURG)
    before = [signal.getsignal(n) for n in numbers]
    with Interruption() as interruption:
        assert not interruption.is_asked
        send(number)
        assert interruption.is_asked
        assert interruption.name == number.name
    assert [signal.getsignal(n) for n in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
    time.sleep(0.2)
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_what_can_be_abandoned_is_left_at_once_and_not_begun_again():
    with Interruption() as interruption:
        told, left = pytest.raises(Interrupted, match="SIGTERM: nothing"), interruption.abandonable
        with told, left():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
            pytest.fail("went on")
        with pytest.raises(Interrupted), interruption.abandonable():
            pytest.fail("began")
        with interruption.abandonable(False):
            pass


class Signalled:
    """What is hit by a signal when it is deleted."""

    def __del__(self) -> None:
        send(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_destructor_swallows_is_raised_at_the_end():
    done = []
    with Interruption() as interruption:
        told, left = pytest.raises(Interrupted), interruption.abandonable
        with told, left():
            done.append(Signalled())
            del done[0]
            done.append("the rest")
        assert done == ["the rest"]


def test_an_inner_one_is_the_outer_one():
    with Interruption() as outer:
        with Interruption.current(exits=True) as inner:
            assert inner is outer
        send(signal.SIGTERM)
        assert outer.is_asked
    assert Interruption.current() is not outer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_a_moment_later_is_the_same_wish(number):
    """What reaches a whole group reaches a launcher too, which passes it on, as SIGTERM mostly."""
    with Interruption() as interruption:
        send(number)
        send(signal.SIGTERM)
        assert interruption.name == number.name


@pytest.mark.parametrize("work", ["time.sleep(60)", NATIVE], ids=["python", "native"])
def test_a_second_signal_exits_at_once(work):
    process = begun(work)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
    assert ended(process) == (128 + signal.SIGINT, "")


def test_an_echo_is_no_second_signal_and_a_later_one_is():
    process = begun(NATIVE)
    process.send_signal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        time.sleep(0.1)
        process.send_signal(number)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize("work", ["time.sleep(60)", NATIVE], ids=["python", "native"])
def test_a_command_that_starts_up_exits_at_the_first_signal(work):
    process = begun(work, "exits=True")
    process.send_signal(signal.SIGTERM)
    line = "spatial-clap: SIGTERM: nothing is left to save; the same command goes on\n"
    assert ended(process) == (75, line)


@pytest.mark.parametrize("other", [False, True], ids=["begun", "others wait"])
def test_a_command_that_has_begun_does_not_exit(other):
    with Interruption(exits=True) as interruption:
        assert interruption.starts_up
        if other:
            interruption.stay()
        else:
            with interruption.abandonable():
                pass
        assert not interruption.starts_up
        send(signal.SIGTERM)
        assert interruption.is_asked


def test_another_process_may_ask():
    with Interruption() as interruption:
        threading.Timer(0.1, interruption.ask).start()
        told = pytest.raises(Interrupted, match="a signal to another process: nothing is left")
        with told, interruption.abandonable():
            time.sleep(20)
            pytest.fail("went on")
        assert interruption.is_asked


def test_an_echo_does_not_end_what_a_training_was_a_part_of():
    work = "with interruption.abandonable(): time.sleep(60)"
    process = begun(work, after="except KeyboardInterrupt: time.sleep(2); sys.exit(75)")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (75, "")


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


def test_a_lost_stream_changes_no_status():
    program = (
        "import threading, time; from spatial_clap_jax.train import interruption\n"
        "name = interruption._ABANDONABLE\n"
        "threading.Thread(target=time.sleep, args=(60,), name=name, daemon=True).start()\n"
        "print('a line')\n"
        "interruption.leave(75)"
    )
    # What is printed waits in a buffer.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60
        )
    assert (done.returncode, done.stderr) == (75, b"")
