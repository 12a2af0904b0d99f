"""Text out of data as people see it: in a terminal, in tables, in Markdown and in figures.

A caption, the name of a class or of a file may hold anything: sequences that a terminal obeys,
marks that turn the order of letters around, markup of rich, Markdown, HTML or matplotlib. Whatever
is shown goes through one of these functions, and is then text and nothing else.
"""

import re

from rich.text import Text

# Of a name in a table or a figure; of an error, whose start and end say most.
NAME, MESSAGE = 80, 2000
# They join letters of several scripts and turn nothing around.
_JOINERS = "\u200c\u200d"
# What begins a structure in CommonMark or GitHub's tables, formulas and lists.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|#~$!])")


def plain(text: object, longest: int | None = MESSAGE) -> str:
    r"""One line that a terminal prints and does not obey.

    White space becomes single spaces. What cannot be printed (control characters, marks of
    direction, halves of surrogate pairs) stands as Python writes it in a string.

    Args:
      text: of any origin; another object's `str`.
      longest: characters kept; of a longer text the middle is left out. None keeps all.

    Example:
      >>> plain("a\x1b[31m dog\nbarks\u202e")
      'a\\x1b[31m dog barks\\u202e'
    """
    line = " ".join(str(text).split())
    if longest is not None and len(line) > longest:
        half = (longest - 5) // 2
        line = f"{line[: longest - 5 - half]} ... {line[-half:]}"
    return printable(line)


def printable(line: str) -> str:
    """`plain` of a line of ours that holds names out of data: its spaces stay as they are."""
    if line.isprintable():
        return line
    return "".join(
        char if char.isprintable() or char in _JOINERS else char.encode("unicode_escape").decode()
        for char in line
    )


def cell(text: object) -> Text:
    """A cell of a table of rich, or a line of its console: no markup in it is obeyed."""
    return Text(plain(text, NAME))


def markdown(text: object) -> str:
    r"""Text within Markdown: no mark-up, link, formula, cell or HTML begins in it.

    Example:
      >>> markdown("a|b <script>[x](y)")
      'a\\|b &lt;script&gt;\\[x\\](y)'
    """
    line = plain(text, MESSAGE).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", line)


def markdown_code(text: object) -> str:
    """Text as code within Markdown: the fence is longer than any run of backticks in it.

    Example:
      >>> markdown_code("a`b")
      '``a`b``'
    """
    line = plain(text, MESSAGE)
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    padded = f" {line} " if line.startswith("`") or line.endswith("`") else line
    return f"{fence}{padded}{fence}"


def label(text: object) -> str:
    r"""Text in a figure of matplotlib: no formula, and not left out of the legend.

    Example:
      >>> label("_$x$")
      ' _\\$x\\$'
    """
    line = plain(text, NAME).replace("$", r"\$")
    # A legend passes over what starts with '_'.
    return f" {line}" if line.startswith("_") else line
