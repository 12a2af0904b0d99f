"""Configurations as plain JSON and back, every key and type checked.

The JSON of a frozen dataclass has its fields as keys. Where a field may hold one of several
dataclasses, their JSON carries "kind" ("class" where one of them has a field of that name), the
name of the class. Without one it is of the class that says `kind_by_default`, if any: such JSON is
older than the choice.
"""

import contextlib
import difflib
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union

import cattrs
from cattrs.errors import (
    AttributeValidationNote,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)

from spatial_clap_jax.errors import InputError

T = TypeVar("T")
# By the end of a key, the first that fits, the largest number that is built: constants are made of
# these (bands, windows, grids), and loops.
_LARGEST = (
    ("n_fft", 2**16),
    ("fft_window_size", 2**16),
    ("layers", 512),
    ("depths", 512),
    ("window_size", 64),
    ("window", 64),
    ("spec_size", 1024),
    ("image_size", 4096),
    ("mels", 4096),
    ("num_mel_bins", 4096),
    ("feature_size", 4096),
    ("window_s", 3600),
    ("duration_s", 3600),
    ("max_length_s", 3600),
    ("max_tokens", 2**20),
    ("max_position_embeddings", 2**20),
)
# Vocabularies are below it, and rates.
_LARGEST_OTHER = 2**24
_LONGEST_LIST = 1000


def to_plain(config: Any) -> dict:
    """Turns a configuration into what `json.dumps` takes.

    Args:
      config: an instance of a frozen dataclass.

    Returns:
      Nested dicts, lists, strings, numbers, booleans and None.

    Raises:
      TypeError, InputError: a field holds what its annotation does not say, so that
        `from_plain` would not give the same configuration again; or what is no number in JSON.
    """
    plain = _CONVERTER.unstructure(config)
    _refuse_endless(type(config).__name__, plain)
    if from_plain(type(config), plain) != config:
        raise TypeError(f"{type(config).__name__}: a field holds what its type does not say.")
    return plain


def from_plain(cls: type[T], data: Any) -> T:
    """Builds the configuration that `to_plain` described; a missing key takes its default.

    Args:
      cls: its class, or a union of classes told apart by "kind".
      data: plain JSON.

    Raises:
      InputError: a key is unknown, a required one is missing, or a value has a wrong type;
        the message names the dotted key.

    Example:
      >>> from_plain(Optimizer, {"learning_rate": 3e-4})
      Optimizer(learning_rate=0.0003, ...)
    """
    try:
        return _CONVERTER.structure(data, cls)
    # Whatever a hook or a class's own __post_init__ raises arrives in a group.
    except Exception as error:
        keys, expected, cause = _first_cause(error)
        message = _message(keys, expected or cls, cause, data)
        raise InputError(f"{_name(cls)}: {message}") from error


@contextlib.contextmanager
def describing(source: object) -> Iterator[None]:
    """Turns whatever a file's description of a model leads to into one line that names the file.

    Args:
      source: of the description.

    Raises:
      InputError: the description cannot be built; the cause is told.
    """
    try:
        yield
    except InputError:
        raise
    # A number in a wrong place may raise anything, in our code, in JAX's or in NumPy's.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{source}: describes no model that can be built ({reason}); restore its files."
        ) from error


def refuse_outsized(description: Any, source: object, keys: Collection[str] | None = None) -> None:
    """Refuses numbers that no model has, before arrays and loops are made of them.

    Args:
      description: of a model, plain JSON under the names of ours or of Hugging Face's.
      source: for errors.
      keys: that are looked at, at any depth; None looks at all.

    Raises:
      InputError: a number is no size of a model; its key is named.
    """
    pending = [("", description)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += [(str(name), item) for name, item in value.items()]
        elif keys is not None and key not in keys:
            continue
        elif isinstance(value, list) and len(value) <= _LONGEST_LIST:
            pending += [(key, item) for item in value]
        elif isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise InputError(f"{source}: {key} lists {len(value)} items; restore the file.")
        elif isinstance(value, int | float):
            most = next((most for end, most in _LARGEST if key.endswith(end)), _LARGEST_OTHER)
            if not abs(value) <= most:
                raise InputError(
                    f"{source}: {key} {value!r} is no size of a model; it must lie within "
                    f"{-most:,} and {most:,}: restore the file."
                )


def _refuse_endless(name: str, plain: Any) -> None:
    """JSON has neither infinity nor NaN; with them no description of a run could be written."""
    pending: list[tuple[str, Any]] = [("", plain)]
    while pending:
        key, value = pending.pop()
        prefix = f"{key}." if key else ""
        if isinstance(value, dict):
            pending += [(f"{prefix}{k}", item) for k, item in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(f"{prefix}{i}", item) for i, item in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}: {key} {value!r} must be a finite number; give a large one.")


def _first_cause(error: BaseException) -> tuple[tuple[Any, ...], Any, BaseException]:
    """Follows cattrs' nested groups to the first error: its keys, the type there, itself."""
    keys: tuple[Any, ...] = ()
    expected = None
    while True:
        for note in getattr(error, "__notes__", ()):
            if isinstance(note, AttributeValidationNote | IterableValidationNote):
                key = note.name if isinstance(note, AttributeValidationNote) else note.index
                keys, expected = (*keys, key), note.type
        if not isinstance(error, BaseExceptionGroup):
            return keys, expected, error
        error = error.exceptions[0]


def _message(keys: tuple[Any, ...], expected: Any, cause: BaseException, data: Any) -> str:
    where = ".".join(map(str, keys))
    prefix = f"{where}." if where else ""
    if isinstance(cause, ForbiddenExtraKeysError):
        unknown = sorted(cause.extra_fields)[0]
        known = [field.name for field in fields(cause.cl)]
        nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.0)
        hint = f"did you mean {prefix}{nearest[0]}? " if nearest else ""
        return f"unknown key {prefix}{unknown}; {hint}keys here: {', '.join(known) or 'none'}."
    if isinstance(cause, InputError):
        return f"{where}: {cause}" if where else str(cause)
    value = functools.reduce(operator.getitem, keys[:-1], data) if keys else data
    if isinstance(cause, KeyError) and keys and keys[-1] not in value:
        return f"{where} is missing; give it a value."
    value = value[keys[-1]] if keys else value
    return f"{where or 'value'}: {value!r} does not fit {_name(expected)} ({cause}); change it."


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _strict(kind: type, accepted: tuple[type, ...], expected: str) -> Callable:
    # cattrs would turn "false" into True and 2.7 into 2.
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{value!r} is no {expected}; change the value.")
        return kind(value)

    return structure


def _members(annotation: Any) -> tuple[Any, ...]:
    """The dataclasses of a union of several, () for any other annotation."""
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return ()
    members = tuple(m for m in typing.get_args(annotation) if m is not type(None))
    return members if len(members) > 1 and all(is_dataclass(m) for m in members) else ()


def _tag(annotation: Any) -> str:
    """The key that tells the class: "kind", or "class" where a field has that name."""
    names = {field.name for member in _members(annotation) for field in fields(member)}
    return "class" if "kind" in names else "kind"


def _structure_union(annotation: Any, converter: cattrs.Converter) -> Callable:
    members = {member.__name__: member for member in _members(annotation)}
    only = [name for name, member in members.items() if getattr(member, "kind_by_default", False)]
    optional, tag = type(None) in typing.get_args(annotation), _tag(annotation)

    def structure(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        if only and isinstance(value, dict) and tag not in value:
            value = {tag: only[0], **value}
        if not isinstance(value, dict) or value.get(tag) not in members:
            raise InputError(f'{value!r} needs a "{tag}", one of {", ".join(members)}; add it.')
        plain = {key: item for key, item in value.items() if key != tag}
        return converter.structure(plain, members[value[tag]])

    return structure


def _unstructure_union(annotation: Any, converter: cattrs.Converter) -> Callable:
    tag = _tag(annotation)

    def unstructure(value: Any) -> Any:
        if value is None:
            return None
        return {tag: type(value).__name__, **converter.unstructure(value)}

    return unstructure


def _structure_sequence(annotation: Any, converter: cattrs.Converter) -> Callable:
    # cattrs would take the text "abc" for ("a", "b", "c").
    container, kinds = typing.get_origin(annotation), typing.get_args(annotation)
    any_length = container is list or kinds[-1] is Ellipsis

    def item(index: int, value: Any, kind: Any) -> Any:
        try:
            return converter.structure(value, kind)
        except Exception as error:
            error.add_note(IterableValidationNote(f"item {index}", index, kind))
            group = IterableValidationError("items", [error], annotation)  # pyright: ignore[reportCallIssue]
            raise group from error

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise InputError(f"{value!r} is no list; change the value.")
        wanted = kinds[:1] * len(value) if any_length else kinds
        if len(value) != len(wanted):
            raise InputError(f"{value!r} has not {len(wanted)} items; change the value.")
        pairs = enumerate(zip(value, wanted, strict=True))
        items = [item(index, part, kind) for index, (part, kind) in pairs]
        return items if container is list else tuple(items)

    return structure


def _structure_literal(value: Any, annotation: Any) -> Any:
    choices = typing.get_args(annotation)
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    raise InputError(f"{value!r} is none of {', '.join(map(repr, choices))}; take one of them.")


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(
        forbid_extra_keys=True, unstruct_collection_overrides={tuple: list}
    )
    converter.register_structure_hook(bool, _strict(bool, (bool,), "boolean"))
    converter.register_structure_hook(int, _strict(int, (int,), "whole number"))
    converter.register_structure_hook(float, _strict(float, (int, float), "number"))
    converter.register_structure_hook(str, _strict(str, (str,), "text"))
    converter.register_structure_hook(Path, _strict(Path, (str, Path), "path"))
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook_func(
        lambda annotation: typing.get_origin(annotation) is typing.Literal, _structure_literal
    )
    converter.register_structure_hook_factory(
        lambda annotation: typing.get_origin(annotation) in (tuple, list), _structure_sequence
    )
    has_members = lambda annotation: bool(_members(annotation))  # noqa: E731
    converter.register_structure_hook_factory(has_members, _structure_union)
    converter.register_unstructure_hook_factory(has_members, _unstructure_union)
    return converter


_CONVERTER = _make_converter()
