"""A command whose reader has gone, or whose terminal's disk is full, does its work all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spatial_clap_jax import streams

# Far more than a buffer or a pipe holds.
PROGRAM = """
import sys
from pathlib import Path
from spatial_clap_jax import cli
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.streams import tell
from spatial_clap_jax.train.progress import TrainProgress
def work(arguments):
    with TrainProgress(9, clips_per_step=8) as bar:
        for step in range(3000):
            bar.announce(f"step {step} of many, each of which has a line of its own")
    print("a word", file=sys.stderr)
    Path(arguments[0]).write_text("done")
    tell("trained to step 3000")
    if arguments[1:]:
        raise InputError(arguments[1])
cli.COMMANDS["export"] = work
cli.main(["export", *sys.argv[1:]])
"""


def ran(
    *arguments, program: str = PROGRAM, encoding: str | None = None, **files
) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if encoding is not None:
        environment["PYTHONIOENCODING"] = encoding
    # What is printed waits in a buffer.
    environment.pop("PYTHONUNBUFFERED", None)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, timeout=120, **files)


def nobody_reads() -> int:
    """The end of a pipe whose other end is closed."""
    reads, writes = os.pipe()
    os.close(reads)
    return writes


@pytest.mark.parametrize("lost", ["full", "pipe", "both"])
def test_lost_streams_end_no_command(tmp_path, lost):
    full, pipe = os.open("/dev/full", os.O_WRONLY), nobody_reads()
    stdout, stderr = {
        "full": (subprocess.PIPE, full),
        "pipe": (subprocess.PIPE, pipe),
        "both": (full, pipe),
    }[lost]
    try:
        done = ran(tmp_path / "made", stdout=stdout, stderr=stderr)
    finally:
        os.close(full)
        os.close(pipe)
    assert (tmp_path / "made").read_text() == "done"
    assert done.returncode == 0
    if stdout == subprocess.PIPE:
        assert done.stdout == b"trained to step 3000\n"


def test_a_status_tells_what_stderr_cannot(tmp_path):
    with open("/dev/full", "wb") as full:
        done = ran(tmp_path / "made", "a mistake", stdout=subprocess.PIPE, stderr=full)
    assert done.returncode == 2


def test_a_result_that_cannot_be_printed_is_an_error():
    program = "from spatial_clap_jax import cli; cli.main(['--help'])"
    with open("/dev/full", "wb") as full:
        done = ran(program=program, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == (
        b"spatial-clap: No space left on device; make room there, or name another folder, then "
        b"start again.\n"
    )


NAMES = """
import sys
from rich.console import Console
from rich.table import Table
from spatial_clap_jax import cli
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.streams import tell
def work(arguments):
    tell("made läufe/run 🐢 \\udcff")
    table = Table(title="läufe")
    table.add_row("läufe")
    Console(width=60).print(table)
    print("läufe", file=sys.stderr)
    raise InputError("läufe/run: is there already; give another.")
cli.COMMANDS["export"] = work
cli.main(["export"])
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "ascii:strict"])
def test_names_are_printed_in_any_encoding(encoding):
    done = ran(program=NAMES, encoding=encoding, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 2
    first = done.stdout.splitlines()[0]
    if encoding == "utf-8":
        assert first.decode() == "made läufe/run 🐢 \\udcff"
        assert "spatial-clap: läufe/run: is there" in done.stderr.decode()
    else:
        letter = b"\xe4" if encoding == "latin-1" else b"\\xe4"
        assert first == b"made l%sufe/run \\U0001f422 \\udcff" % letter
        assert done.stdout.count(b"l%sufe" % letter) == 3
        assert b"spatial-clap: l%sufe/run: is there" % letter in done.stderr


class Failing:
    """A stream that takes nothing."""

    def __init__(self) -> None:
        self.asked = 0

    def write(self, text: str) -> int:
        self.asked += 1
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_stdout_may_be_lost_where_it_lies_in_a_file_too(monkeypatch):
    failing = Failing()
    monkeypatch.setattr(sys, "stdout", failing)
    with streams.unbroken_stdout():
        print("loss 1.0", flush=True)
    assert failing.asked
    with pytest.raises(BrokenPipeError), streams.unbroken_stdout(False):
        print("loss 1.0", flush=True)


def test_no_file_takes_the_number_of_a_stream(tmp_path):
    """What native code writes to stderr must not end up in a checkpoint."""
    program = (
        "import os, sys; from spatial_clap_jax.streams import keep_standard_files_open as keep\n"
        "keep(); file = open(sys.argv[1], 'w'); os.write(2, b'a word'); print(file.fileno())"
    )
    path = tmp_path / "checkpoint"
    shell = f'exec "{sys.executable}" -c "$1" "{path}" 2>&-'
    done = subprocess.run(["sh", "-c", shell, "sh", program], stdout=subprocess.PIPE, timeout=120)
    assert int(done.stdout) > 2
    assert Path(path).read_bytes() == b""


def test_what_is_for_a_stderr_that_is_not_there_goes_nowhere(tmp_path):
    shell = f'exec "{sys.executable}" -m spatial_clap_jax nosuch 2>&- > "{tmp_path}/out"'
    assert subprocess.run(["sh", "-c", shell], timeout=120).returncode == 2
    assert (tmp_path / "out").read_bytes() == b""
