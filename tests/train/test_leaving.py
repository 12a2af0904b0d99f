"""How a process of several leaves: once, with its status, whatever has become of its streams."""

import errno
import os
import sys
import threading

import pytest

from spatial_clap_jax.train import failures


class Lost:
    """A stream that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def flush(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("number", [0, 1])
def test_a_lost_stream_changes_no_status(monkeypatch, number):
    left = []
    monkeypatch.setattr(failures, "_LEAVES_LAST_S", 0.0)
    monkeypatch.setattr(failures, "_number", lambda: number)
    monkeypatch.setattr(failures, "end_at_once", lambda *how: left.append(how))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Lost())
        patch.setattr(sys, "stderr", Lost())
        failures._leave(3, "a line\n")
    # Process 0 has said it before it waits for the others.
    assert left == [(3, "a line\n" if number else "")]


def test_one_that_leaves_says_one_line(monkeypatch, capsys):
    left, over = [], threading.Event()

    def ends(*how):
        left.append(how)
        over.wait(30)

    monkeypatch.setattr(failures, "_LEAVES_LAST_S", 0.3)
    monkeypatch.setattr(failures, "end_at_once", ends)
    monkeypatch.setattr(failures, "_leaving", threading.Lock())
    threads = [
        threading.Thread(target=failures._leave, args=(status, f"{status}\n")) for status in (3, 4)
    ]
    for thread in threads:
        thread.start()
        thread.join(1.0)
    assert left == [(3, "")]
    assert capsys.readouterr().err == "3\n"
    over.set()
    for thread in threads:
        thread.join()
