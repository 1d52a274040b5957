"""Inputs that are nearly right: something valid with a few things wrong, as noise alone is refused at the door.

Hypothesis chooses what goes wrong, so that it finds the smallest input that still shows a fault.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SECONDS = 5.0  # of the processor, for one input; on a shared machine the clock says little
FEW = 60  # inputs: below, a test draws the same in every run
HANGS = 300  # seconds after which the process is ended, with where it hangs

#: Values that belong nowhere, or at the edge of where they do.
ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 3, 10**9, -(10**9), 2**31, 2**63, 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 1e300, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "1", "nan", "null", "yes", "~", "a", "\n", "\t", "\x00", "\x1b[31m", "standard", "repr", "kd"),
    *("../up", "/etc/passwd", "~", "a/b", "a b", "a" * 300, "\u0430dam", "\U0001f4a5", "\ufeff", "\u202e", "\ud7ff"),
    *("repr+kd", "+", "repr+", "all", "first", ":", "a:b", "os:getcwd", "x.y:z", "timm:", "timm:no-such", "%s", "{0}"),
    *("<script>", "${HOME}", "2024-01-01", "1_000", "0x10", "010", "1:30", "1e3", "-", "[", "{"),
    *([], [0], [None], ["a"], [[]], [1, 2, 3], list(range(50)), [[[[[]]]]]),
    *({}, {"": 0}, {"name": None}, {"name": "repr"}, {"name": []}, {"a": {"b": {"c": {}}}}, {"full": 1, "sub": -1}),
]


def odd() -> st.SearchStrategy[Any]:
    """A value of the wrong type, or far out of any range."""
    return st.sampled_from(ODD).map(deepcopy) | st.integers() | st.floats() | st.text(max_size=8)


def one_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of some long values; in error texts its number."""
    return st.integers(0, len(values) - 1).map(lambda number: deepcopy(values[number]))


def fuzzing(times: int) -> settings:
    """How many inputs a test draws: the few of a short form are the same in every run, the many of a long one new."""
    return settings(
        max_examples=times,
        derandomize=times < FEW,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def quickly(seconds: float = SECONDS) -> Iterator[None]:
    """No hang: the block takes so much of the processor at most; where it never ends, the process is ended."""
    faulthandler.dump_traceback_later(HANGS, exit=True)
    start = time.process_time()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    took = time.process_time() - start
    assert took < seconds, f"took {took:.1f} s"


def one_line(error: BaseException) -> str:
    """The text of an error, which has to be one line that says something."""
    text = str(error)
    assert text.strip(), type(error)
    assert len(text.splitlines()) == 1, text
    return text


# --- nested values


@st.composite
def mutated(draw: st.DrawFn, values: Any, *, most: int = 3, odds: st.SearchStrategy[Any] | None = None) -> Any:
    """Nested dicts and lists with up to `most` things wrong; tensors and the like are left as they are."""
    result = deepcopy(values)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(result))
        if not places:
            return result
        holder, key = draw(st.sampled_from(places))
        _change(draw, holder, key, places, odd() if odds is None else odds)
    return result


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested dicts and lists: what holds it, and its key or index there."""
    keys = list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in keys:
        yield values, key
        yield from _places(values[key])


def _change(
    draw: st.DrawFn, holder: Any, key: Any, places: list[tuple[Any, Any]], odds: st.SearchStrategy[Any]
) -> None:
    kinds = ["replace", "replace", "replace", "remove", "nest", "swap", "more"]
    match draw(st.sampled_from([*kinds, "rename"] if isinstance(holder, dict) else kinds)):
        case "replace":
            holder[key] = draw(odds)
        case "remove":
            del holder[key]
        case "nest":
            holder[key] = draw(st.sampled_from([[holder[key]], {"name": holder[key]}, {"a": [holder[key]]}]))
        case "swap":
            other, place = draw(st.sampled_from(places))
            if place in other if isinstance(other, dict) else place < len(other):
                holder[key] = deepcopy(other[place])
        case "more" if isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "name", "epochs", "parts", "teacher", 1, "a.b"]))] = draw(odds)
        case "more":
            holder.append(draw(odds))
        case "rename":
            holder[draw(misspelt(str(key)))] = holder.pop(key)


@st.composite
def misspelt(draw: st.DrawFn, word: str) -> str:
    """A word with a letter too many, too few, doubled, in capitals, or one that only looks the same."""
    place = draw(st.integers(0, max(0, len(word) - 1)))
    before, letter, after = word[:place], word[place : place + 1], word[place + 1 :]
    like = {"a": "\u0430", "e": "\u0435", "o": "\u043e", "p": "\u0440", "c": "\u0441", "x": "\u0445"}
    new = draw(st.sampled_from(["", letter * 2, letter.upper(), like.get(letter, "_"), " ", "\n", "\x00"]))
    return before + new + after


# --- text and bytes

#: Pieces of YAML and JSON that mean something where they do not belong.
PIECES = [
    *("\t", "  ", "\n", "\r", ":", ": ", "- ", "#", "'", '"', "|", ">", "?", "%", "@", "`", ",", "]", "}", "[", "{"),
    *("&a ", "*a", "<<: *a", "!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]"),
    *("!x ", "!!int ", "!!float ", "!!timestamp ", "!!bool ", "--- \n", "...\n", "%YAML 9.9\n"),
    *("\x00", "\x07", "\x85", '"\\0"', '"\\ud800"'),
    *("\ufeff", "\u2028", "\ud7ff", "\U0001f4a5", "\u0430", "2024-01-01", "2024-99-99", "0o17", "017", "0b11", "0x1F"),
    *(
        "1:30:00",
        "1_0",
        "1e999",
        "-1e999",
        ".inf",
        ".nan",
        "~",
        "null",
        "yes",
        "NaN",
        "Infinity",
        "9" * 400,
        "9" * 5000,
    ),
    *('\\"', "\\", "\\ud800", "{}", "[]", "a: b: c", "? [a]\n: b\n", "=", "9999-12-31T23:59:59+99:99"),
]


@st.composite
def garbled(draw: st.DrawFn, text: str, *, most: int = 3) -> str:
    """A text with up to `most` things wrong: pieces put in, taken out, doubled, lines moved, the rest cut off."""
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 1, 2, 5, 20, 200])))
        match draw(st.sampled_from(["piece", "piece", "piece", "remove", "double", "cut", "line", "any"])):
            case "piece":
                text = text[:start] + draw(st.sampled_from(PIECES)) + text[end:]
            case "remove":
                text = text[:start] + text[end:]
            case "double":
                text = text[:end] + text[start:end] * draw(st.sampled_from([1, 2, 30])) + text[end:]
            case "cut":
                text = text[:start]
            case "line":
                lines = text.splitlines(keepends=True) or [""]
                line = draw(st.sampled_from(lines))
                lines.insert(draw(st.integers(0, len(lines))), line)
                text = "".join(lines)
            case "any":
                text = text[:start] + draw(st.text(max_size=4)) + text[end:]
    return text


@st.composite
def damaged(draw: st.DrawFn, data: bytes, *, most: int = 4) -> bytes:
    """Bytes with some of them flipped, taken out, put in, doubled, set to 0 or 255, or cut off."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(out)))
        length = draw(st.sampled_from([1, 1, 2, 4, 16, 300]))
        match draw(st.sampled_from(["flip", "flip", "set", "remove", "insert", "double", "cut"])):
            case "flip" if start < len(out):
                out[start] ^= 1 << draw(st.integers(0, 7))
            case "set":
                part = out[start : start + length]
                out[start : start + length] = draw(st.sampled_from([b"\x00", b"\xff", b"\x7f"])) * len(part)
            case "remove":
                del out[start : start + length]
            case "insert":
                out[start:start] = draw(st.binary(max_size=8))
            case "double":
                out[start:start] = out[start : start + length]
            case "cut":
                del out[start:]
            case _:
                pass
    return bytes(out)
