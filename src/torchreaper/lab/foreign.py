"""Text that others wrote, such as names of folders and classes, made harmless for the place where it is shown.

The HTML page has an escaping of its own, see `report.page.rendering`.
"""

from __future__ import annotations

import re
from typing import Any

_MARKDOWN = re.compile(r"[\\<|]|(?<=])[(:]")  # what begins an element, ends a cell, makes brackets a link
_BEGINNING = re.compile(r"^[>#`~*+=_-]|(?<=^\d)[.)]|(?<=^\d\d)[.)]")
_ESCAPED = r"\\\g<0>"
_FORMULA = ("=", "+", "-", "@")


def visible(text: str) -> str:
    """The text with its escapes, control characters, and marks that turn the direction of writing spelt out.

    Such characters move the cursor, colour what follows, or show a text in another order than it has. Lines stay
    lines.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if char == "\n" or char.isprintable() else _spelt(char) for char in text)


def _spelt(char: str) -> str:
    return char.encode("unicode_escape").decode()


def line(text: str) -> str:
    """As `visible`, in one line."""
    return visible(" ".join(text.split()))


def in_markdown(text: str) -> str:
    """The text for a line or a cell of Markdown: no HTML, no link and no picture in it."""
    return _MARKDOWN.sub(_ESCAPED, line(text))


def as_item(text: str) -> str:
    """The text as an item of a list of Markdown: of its first characters none begins anything else."""
    return f"- {_BEGINNING.sub(_ESCAPED, in_markdown(text))}"


def in_csv(value: Any) -> Any:
    """The value for a cell of CSV: a text that a spreadsheet would compute gets an apostrophe in front."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
