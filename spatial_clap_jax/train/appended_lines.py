"""A file that grows by whole lines, whatever happens to the disk meanwhile."""

import errno
import os
from pathlib import Path


class AppendedLines:
    """Adds lines to a file; those that cannot be written wait for the next one.

    Args:
      path: the file; made when missing, in a folder that is there.
    """

    def __init__(self, path: Path):
        self._path = path
        self._waiting = ""

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
