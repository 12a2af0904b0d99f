"""What the system refuses is one line: where, what, and what to do."""

import errno
import os

import pytest

from spatial_clap_jax import cli


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"),
            "runs/a: No space left on device; make room there, or name another folder, then start "
            "again.",
        ),
        (
            OSError(errno.EACCES, os.strerror(errno.EACCES), "runs/a"),
            "runs/a: Permission denied; give yourself the right to read and write there, or name "
            "another folder, then start again.",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS)),
            "Read-only file system; name a folder that can be written, then start again.",
        ),
        (
            OSError(errno.ENOENT, os.strerror(errno.ENOENT), "a.wav"),
            "a.wav: No such file or directory; see that the path is right, and that what is given "
            "is there, then start again.",
        ),
        (OSError("no\nanswer"), "no answer; mend that, then start again."),
    ],
    ids=["full", "forbidden", "read only", "missing", "other"],
)
def test_errors_of_the_system_have_a_remedy(error, line, monkeypatch, capsys):
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "export", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["export"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"spatial-clap: {line}\n"
