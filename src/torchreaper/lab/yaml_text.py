"""YAML that others wrote: plain values only, and no more of them than a recipe could ever have."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable
from typing import Any

import yaml

MOST = 10_000
"""Values in a text, those that its aliases stand for counted each time: a few lines of aliases could mean billions."""
LONGEST = 100_000  # characters
_DIGITS = 100  # of a whole number: there is one in base 60 whose value takes long to find
_DEEPEST = 50  # levels, those inside of what an alias stands for counted on
_MERGE = "tag:yaml.org,2002:merge"
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "timestamp": "a date"}


class YAMLProblem(ValueError):  # noqa: N818  (the text has one)
    """What is wrong with a text of YAML, in one line, and in which line of it where that is known."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, with 1e-3 a number as in YAML 1.2, and no key twice (the first would have no effect)."""

    _depth = 0

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _DIGITS:
            problem = f"a whole number of {len(node.value):,} characters; at most {_DIGITS} are read"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_yaml_int(node)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise YAMLProblem(f"line {self.get_mark().line + 1}: {_TOO_DEEP}")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # What PyYAML's constructors run into where a tag is wrong: `!!int a`, `!!bool 3`, 2024-99-99.
            kind = node.tag.rpartition(":")[2]
            problem = f"is not {_WORDS.get(kind, kind)}"
        else:
            problem = _unusable(value)
        if problem:
            raise yaml.constructor.ConstructorError(None, None, f"{_shown(node)} {problem}", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # `!!set a` is none
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in found and key.tag != _MERGE:
                problem = f"the key {key.value!r} stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            found.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
# To the end of the value: 1e5x is a word.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
_TOO_DEEP = f"more than {_DEEPEST} levels"


def parse_yaml(text: str | bytes) -> Any:
    """The values that a text stands for; no tag makes anything but YAML's own plain types.

    Whole numbers fit into 64 bits, and texts have no control characters but line breaks and tabs.

    Raises:
        YAMLProblem: it is not valid, too deep, has more than `MOST` values, or one that is not what its tag says.
    """
    if len(text) > LONGEST:
        raise YAMLProblem(f"it has {len(text):,} characters; at most {LONGEST:,} are read")
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}, 1) > MOST:
            raise YAMLProblem(f"its aliases stand for more than {MOST:,} values; write out what is meant")
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: bytes that are no text
        if isinstance(error, YAMLProblem):
            raise
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise YAMLProblem(f"{place}{' '.join(problem.split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _values(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node stands for; one that holds itself stands for too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if depth > _DEEPEST:
        raise YAMLProblem(f"line {node.start_mark.line + 1}: {_TOO_DEEP}")
    if id(node) not in known:
        known[id(node)] = MOST + 1  # while it is being counted
        inner = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_values(one, known, depth + 1) for one in inner)
    return known[id(node)]


def _unusable(value: Any) -> str:
    """Why no setting can have this value, if so."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "is too large a number"
    if isinstance(value, str) and any(unicodedata.category(one) in ("Cc", "Cs") for one in value if one not in "\n\t"):
        return "has a character that is no text"
    return ""


def _shown(node: yaml.Node) -> str:
    text = repr(node.value) if isinstance(node, yaml.ScalarNode) else "this"
    return text if len(text) <= 80 else f"{text[:77]}..."
