"""`spatial-clap`: finds the command, and says on one line what a user can mend."""

import difflib
import errno
import sys
from collections.abc import Callable, Sequence

from spatial_clap_jax import shown
from spatial_clap_jax.commands.data import render_command, rewrite_command
from spatial_clap_jax.commands.detecting import detect_command
from spatial_clap_jax.commands.embedding import embed_command, embed_text_command
from spatial_clap_jax.commands.evaluating import evaluate_command
from spatial_clap_jax.commands.exchange import convert_command, export_command
from spatial_clap_jax.commands.training import (
    plan_command,
    quickstart_command,
    study_command,
    train_command,
)
from spatial_clap_jax.errors import InputError, RunStopped
from spatial_clap_jax.streams import flush_stdout, unbroken_streams
from spatial_clap_jax.train.host_memory import keep_freed_memory
from spatial_clap_jax.train.interruption import EXIT_STATUS, Interrupted, leave

# What to do about errors of the system, which say themselves what is wrong.
_ALLOW = "give yourself the right to read and write there, or name another folder"
_REMEDIES = {
    errno.ENOSPC: "make room there, or name another folder",
    errno.EDQUOT: "make room there, or name another folder",
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EROFS: "name a folder that can be written",
    errno.ENOENT: "see that the path is right, and that what is given is there",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
}


@unbroken_streams()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(arguments)
        flush_stdout()
    except (Exception, KeyboardInterrupt) as error:
        told = _told(error)
        if told is None:
            raise
        status, line = told
        print(f"spatial-clap: {shown.plain(line)}", file=sys.stderr)
        if isinstance(error, Interrupted):
            leave(status)
        raise SystemExit(status) from None


def _told(error: BaseException) -> tuple[int, str] | None:
    """Exit status and line of what a user can mend; None of what is ours to mend."""
    match error:
        case Interrupted():
            return EXIT_STATUS, str(error)
        case KeyboardInterrupt():
            return 130, "interrupted"
        case RunStopped():
            return 3, str(error)
        case InputError():
            return 2, str(error)
        case OSError():
            # A full disk, a folder that may not be written: where, what and the remedy.
            place = f"{error.filename}: " if error.filename else ""
            remedy = _REMEDIES.get(error.errno or 0, "mend that")
            return 2, f"{place}{error.strerror or error}; {remedy}, then start again."
    return None


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = arguments
    if name == "--version":
        from spatial_clap_jax import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"{name}: no such command; did you mean {nearest}? commands: {', '.join(COMMANDS)}"
        )
    if name in _TRAINING:
        # Before the imports, which start threads.
        keep_freed_memory()
    COMMANDS[name](rest)


def _overview() -> str:
    lines = [
        "usage: spatial-clap COMMAND ...",
        "",
        "Audio-text models that know what sounds and where.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<11} {(command.__doc__ or '').splitlines()[0]}")
    lines += ["", "spatial-clap COMMAND --help tells the options of one."]
    return "\n".join(lines)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "quickstart": quickstart_command,
    "render": render_command,
    "rewrite": rewrite_command,
    "train": train_command,
    "study": study_command,
    "plan": plan_command,
    "evaluate": evaluate_command,
    "detect": detect_command,
    "export": export_command,
    "convert": convert_command,
    "embed": embed_command,
    "embed-text": embed_text_command,
}
_TRAINING = ("quickstart", "train", "study")


if __name__ == "__main__":
    main()
