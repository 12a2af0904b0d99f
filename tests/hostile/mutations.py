"""Ways to spoil a file, each drawn from a seeded generator so that an input can be made again."""

import copy
import csv
import io
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

# Text that something in between might obey: a terminal, rich, Markdown, HTML, a spreadsheet,
# matplotlib, a file system, Python.
NASTY_TEXTS = (
    "",
    " ",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb",
    "two\nlines",
    "\x00",
    "\x9b31m",
    "\u202eabc\u2066",
    "[red]",
    "[/]",
    "[link=http://example.org]x[/link]",
    "[bold",
    "\\",
    "a|b",
    "<script>alert(1)</script>",
    "![x](http://example.org)",
    "`code`",
    "$x^{$",
    "$\\frac$",
    "_hidden",
    "=1+1",
    "@SUM(A1)",
    "{name}",
    "%s%n",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\windows",
    "a/../../b",
    ".",
    "..",
    "~",
    "~nobody/x",
    "\ud800",
    "\udcff",
    "x" * 5000,
    "ä" * 300,
    "1e999",
    "nan",
    "-0",
    "9" * 5000,
    "\u0663",
    "²",
    "True",
    "null",
)
_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**63, 10**12, -(10**12), 10**30),
    *(0.0, -0.5, 1e-308, 1e12, 1e308, float("nan"), float("inf"), float("-inf")),
)
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [0] * 1000, {"": 0}, {"kind": "None"})
# A class by its module, as who reads features would import it; `bait.py` tells of that.
_CLASS_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){2,}")
_BAIT = "bait.Feature"
# Fields of headers are of these widths.
_EXTREMES = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 10**12, 2**63 - 1, 2**64 - 1)


def nasty_text(rng: random.Random) -> str:
    """One of the texts, or some characters of any plane."""
    if rng.random() < 0.7:
        return rng.choice(NASTY_TEXTS)
    return "".join(chr(rng.choice((rng.randrange(0xD800), rng.randrange(0x250)))) for _ in range(9))


def nasty_value(rng: random.Random) -> Any:
    """A JSON value that a reader may not expect."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(_NUMBERS)
    # A further change goes into this one, and not into what the next input gets.
    return nasty_text(rng) if kind < 0.75 else copy.deepcopy(rng.choice(_OTHERS))


def spoiled_bytes(content: bytes, rng: random.Random) -> bytes:
    """The content cut, flipped, overwritten, doubled or replaced."""
    data = bytearray(content)
    size = len(data)
    # Half of the places lie where headers are.
    place = rng.randrange(max(1, min(size, 256) if rng.random() < 0.5 else size))
    match rng.randrange(9):
        case 0:
            return bytes(data[: rng.randrange(size + 1)])
        case 1 if size:
            data[place] ^= 1 << rng.randrange(8)
        case 2 if size:
            for _ in range(rng.randrange(2, 20)):
                data[rng.randrange(size)] = rng.randrange(256)
        case 3:
            width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
            value = rng.choice(_EXTREMES) % 2 ** (8 * width)
            data[place : place + width] = value.to_bytes(width, order)
        case 4:
            data[place:place] = rng.randbytes(rng.randrange(1, 40))
        case 5:
            del data[place : place + rng.randrange(1, 200)]
        case 6:
            part = data[place : place + rng.randrange(1, 400)]
            data[place:place] = part * rng.randrange(1, 4)
        case 7:
            return rng.choice((b"", b"\0", b"\n", content[:1], rng.randbytes(rng.randrange(2000))))
        case _ if size:
            start = rng.randrange(size)
            data[start:] = bytes(size - start)
    return bytes(data)


def spoiled_json(content: bytes, rng: random.Random) -> bytes:
    """The same JSON with a value, a key or the whole replaced; text that is no JSON is cut up."""
    try:
        tree = json.loads(content)
    except ValueError:
        return spoiled_bytes(content, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        tree = _changed(tree, rng)
    if rng.random() < 0.03:
        return b"[" * 100_000
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _changed(tree: Any, rng: random.Random) -> Any:
    """The tree with one change at a place that is drawn level by level."""
    keys: list[Any] = list(tree) if isinstance(tree, dict) else []
    if isinstance(tree, list):
        keys = list(range(len(tree)))
    if not keys and isinstance(tree, str) and _CLASS_NAME.fullmatch(tree) and rng.random() < 0.5:
        return _BAIT
    if not keys or rng.random() < 0.1:
        return nasty_value(rng)
    key = rng.choice(keys)
    match rng.randrange(8):
        case 0:
            del tree[key]
        case 1:
            tree[key] = nasty_value(rng)
        case 2 if isinstance(tree, dict):
            tree[nasty_text(rng)] = tree.pop(key) if rng.random() < 0.5 else nasty_value(rng)
        case 3 if isinstance(tree, list):
            tree.insert(key, tree[key] if rng.random() < 0.5 else nasty_value(rng))
        case _:
            tree[key] = _changed(tree[key], rng)
    return tree


def spoiled_lines(content: bytes, rng: random.Random) -> bytes:
    """JSON a line: one of them spoiled, left out, doubled or torn."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[place])
        case 2:
            lines[place] = spoiled_bytes(lines[place], rng)
        case 3:
            return b"\n".join(lines)[: rng.randrange(len(content))]
        case _:
            lines[place] = spoiled_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def spoiled_csv(content: bytes, rng: random.Random) -> bytes:
    """A table with strange cells, ragged rows, open quotes, another header or another encoding."""
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    for _ in range(rng.choice((1, 1, 2, 4))):
        row = rng.choice(rows) if rows else []
        place = rng.randrange(max(1, len(row)))
        match rng.randrange(9):
            case 0:
                row.insert(place, nasty_text(rng))
            case 1 if row:
                del row[place]
            case 2 if rows:
                rows.insert(rng.randrange(len(rows)), list(row))
            case 3 if rows:
                rows.remove(row)
            case 4 if rows:
                rows[0] = rng.choice(([], rows[0] * 2, rows[0][:1], [nasty_text(rng)]))
            case 5 if row:
                row[place] = "x" * 200_000
            case _ if row:
                row[place] = nasty_text(rng)
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator=rng.choice(("\n", "\r\n", "\r"))).writerows(rows)
    text = written.getvalue()
    if rng.random() < 0.1:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(('"', '""', "\0", ",", "\x1a")) + text[place:]
    encoding = rng.choice(("utf-8",) * 6 + ("utf-8-sig", "latin-1", "utf-16", "utf-16-le"))
    return text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")


def spoil(path: Path, rng: random.Random) -> None:
    """Spoils a file in place: mostly what it holds, now and then what it is."""
    if rng.random() < 0.06:
        _become_something_else(path, rng)
        return
    content = path.read_bytes()
    whole = {".json": spoiled_json, ".jsonl": spoiled_lines, ".csv": spoiled_csv}
    change = whole.get(path.suffix)
    if change is None or rng.random() < 0.25:
        change = spoiled_bytes
    path.write_bytes(change(content, rng))


def _become_something_else(path: Path, rng: random.Random) -> None:
    """A folder, a pipe, a device, a link to nowhere or to itself, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    match rng.randrange(6):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to("nowhere")
        case 4:
            path.symlink_to(path.name)
