"""Arguments of the command line become those of a function; a mistake is one line."""

import contextlib
import difflib
import inspect
import io
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import tyro

from spatial_clap_jax.errors import InputError

T = TypeVar("T")
# Bare booleans take a value (`--loss.scl False`), unions keep the type of their default.
_Style = tuple[Any, ...]
_STYLE: _Style = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)


def peek(arguments: list[str], default: str) -> tuple[str, str]:
    """The config file and size, looked up before the options that they are defaults of."""
    size = "small"
    for i, word in enumerate(arguments):
        if word == "--size" and i + 1 < len(arguments):
            size = arguments[i + 1]
        elif word.startswith("--size="):
            size = word.removeprefix("--size=")
    if not arguments or {"-h", "--help"} & set(arguments):
        first = arguments[0] if arguments and not arguments[0].startswith("-") else default
        return first, size
    if arguments[0].startswith("-"):
        raise InputError(
            f"{arguments[0]}: the config comes first; give a file like configs/{default} before "
            "the options"
        )
    return arguments[0], size


def with_content(arguments: list[str], experiment: Any, size: str) -> tuple[list[str], Any]:
    """The arguments without `--model.content NAME`, and the experiment with that encoder.

    It decides several fields and the options of one, so that the parser cannot be asked.
    """
    flag, names, rest = "--model.content", [], list(arguments)
    while flag in rest[:-1]:
        place = rest.index(flag)
        names.append(rest[place + 1])
        del rest[place : place + 2]
    names += [word.removeprefix(f"{flag}=") for word in rest if word.startswith(f"{flag}=")]
    rest = [word for word in rest if not word.startswith(f"{flag}=")]
    if not names:
        return arguments, experiment
    from spatial_clap_jax.systems.content import named_content

    model = experiment.model
    if not hasattr(model, "content_normalisation"):
        raise InputError(
            f"{flag} {names[-1]}: {type(model).__name__} has no choice of content encoders; leave "
            "it out."
        )
    fields = named_content(names[-1], size)
    return rest, replace(experiment, model=replace(model, **fields))


def call(function: Callable[..., T], arguments: list[str], name: str, style: _Style = _STYLE) -> T:
    """`function` with the arguments of the command line; mistakes become `InputError`."""
    program = f"spatial-clap {name}"
    unknown, message = _parse(function, arguments, program, style)
    if message:
        raise InputError(f"{name}: {message} ({program} --help tells the options)")
    if unknown:
        flag = unknown[0].split("=")[0]
        flags = _flags(function, program, style)
        nearest = difflib.get_close_matches(flag.replace("_", "-"), flags, n=1, cutoff=0.0)[0]
        kind = "option" if flag.startswith("-") else "argument"
        raise InputError(
            f"{name}: unknown {kind} {flag}; did you mean {nearest}? "
            f"({program} --help tells the options)"
        )
    return tyro.cli(function, args=arguments, prog=program, config=style)


def _parse(
    function: Callable, arguments: list[str], program: str, style: _Style
) -> tuple[list[str], str]:
    """Options that are unknown, and what else is wrong with the arguments, if anything."""
    if {"-h", "--help"} & set(arguments):
        return [], ""
    # Parsed once without being run: tyro prints boxes, a mistake here is one line.
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            _, unknown = tyro.cli(
                _signature_only(function),
                args=arguments,
                prog=program,
                config=style,
                return_unknown_args=True,
            )
    except SystemExit:
        return [], _unbox(printed.getvalue())
    return unknown, ""


def _signature_only(function: Callable) -> Callable:
    """Something with the signature and the documentation of `function` that does nothing."""

    def nothing(**_: Any) -> None: ...

    nothing.__doc__ = function.__doc__
    nothing.__annotations__ = function.__annotations__

    nothing.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return nothing


def _unbox(text: str) -> str:
    """What tyro said in a box, on one line, without its title and its advice."""
    lines = [line.strip("│|╭╮╰╯+ ") for line in text.splitlines()]
    # The title comes first; on a plain terminal it stands on a line of its own above a rule.
    body = [line for line in lines if line][1:]
    if body and not body[0].strip("─-"):
        body = body[1:]
    kept = itertools.takewhile(lambda line: line.strip("─-"), body)
    return _one_line(" ".join(kept)) or _one_line(text)


def _flags(function: Callable, program: str, style: _Style) -> list[str]:
    printed = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):
        tyro.cli(function, args=["--help"], prog=program, config=style)
    return sorted(set(re.findall(r"--[a-z][\w.-]*", printed.getvalue())))


def _one_line(text: str) -> str:
    return " ".join(text.split())
