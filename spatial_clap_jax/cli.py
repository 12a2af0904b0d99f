"""`spatial-clap`: finds the command, and says on one line what a user can mend."""

import difflib
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
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.mistakes import told_of
from spatial_clap_jax.streams import flush_stdout, unbroken_streams
from spatial_clap_jax.train.host_memory import keep_freed_memory
from spatial_clap_jax.train.interruption import Interrupted, leave


@unbroken_streams()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(arguments)
        flush_stdout()
    except (Exception, KeyboardInterrupt) as error:
        told = told_of(error)
        if told is None:
            raise
        status, line = told
        print(f"spatial-clap: {shown.plain(line)}", file=sys.stderr)
        if isinstance(error, Interrupted):
            leave(status)
        raise SystemExit(status) from None


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
