"""A file that grows by whole lines, whatever happens to the disk meanwhile."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path


class AppendedLines:
    """Adds lines to a file; those that cannot be written wait for the next one.

    Args:
      path: the file; made when missing, in a folder that is there.
    """

    def __init__(self, path: Path):
        self._path = path
        self._waiting = ""

    @property
    def waiting(self) -> list[str]:
        """The lines that could not be written so far: to be saved with what they tell of."""
        return self._waiting.splitlines(keepends=True)

    def append(self, line: str) -> None:
        """Adds a line, after those that wait.

        Args:
          line: with its line end.

        Raises:
          OSError: it cannot be written; the file ends with a whole line, and this one waits.
        """
        self._waiting += line
        self.flush()

    def flush(self) -> None:
        """Writes what waits.

        Raises:
          OSError: as `append`.
        """
        content = self._waiting.encode()
        with self._path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                file.truncate(end)
                raise
        self._waiting = ""


def with_waiting(lines: Sequence[str], waiting: Sequence[str]) -> list[str]:
    """Lines that a file holds, and those of the saved `AppendedLines.waiting` that it lacks.

    A line that waited when a run was saved may have been written before the run was killed.

    Args:
      lines: of the file.
      waiting: that were saved.
    """
    held = set(lines)
    return [*lines, *(line for line in waiting if line not in held)]
