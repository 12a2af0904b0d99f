"""Where a run comes from: the command, the commit and the machine of every start."""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from spatial_clap_jax.train.description import library_versions, run_folder
from spatial_clap_jax.train.processes import is_first_process

_FILE = "starts.jsonl"


def describe_origin() -> dict[str, Any]:
    """The command, folder and commit that a run was begun with, as plain JSON."""
    return {"command": sys.argv, "folder": os.getcwd(), "commit": source_commit()}


def note_start(
    workdir: str | Path, step: int, accepted: Sequence[str], changed: Sequence[str] = ()
) -> None:
    """Appends a line to `starts.jsonl`: who goes on with a run, from where, and by what.

    Args:
      workdir: the run's folder.
      step: steps that are done.
      accepted: what differs from the run's description and was accepted.
      changed: what differs from it and may.
    """
    if not is_first_process():
        return
    row = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "from_step": step,
        **describe_origin(),
        "accepted": list(accepted),
        "changed": list(changed),
        "host": platform.node(),
        "processes": jax.process_count(),
        "devices": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "versions": library_versions(),
    }
    with (run_folder(workdir) / _FILE).open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            # A start that was killed amid its line takes no other one with it.
            if file.read() != b"\n":
                file.write(b"\n")
        file.write((json.dumps(row) + "\n").encode())


def source_commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed.

    '-changed' follows where tracked files differ from it.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=-changed"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
