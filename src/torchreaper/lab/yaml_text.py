"""YAML that others wrote: plain values only, and no more of them than a recipe could ever have."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MOST = 10_000
"""Values in a text, those that its aliases stand for counted each time: a few lines of aliases could mean billions."""
_LONGEST = 100_000  # characters
_DIGITS = 100  # of a whole number: there is one in base 60 whose value takes long to find


class YAMLProblem(ValueError):  # noqa: N818  (the text has one)
    """What is wrong with a text of YAML, and in which line where that is known."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, with 1e-3 a number as in YAML 1.2, and no key twice (the first would have no effect)."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _DIGITS:
            problem = f"a whole number of {len(node.value):,} characters; at most {_DIGITS} are read"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in found and key.tag != "tag:yaml.org,2002:merge":
                problem = f"the key {key.value!r} stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            found.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"), list("-+.0123456789")
)


def parse_yaml(text: str | bytes) -> Any:
    """The values that a text stands for; no tag makes anything but YAML's own plain types.

    Raises:
        YAMLProblem: it is not valid, too deep, or has more than `MOST` values.
    """
    if len(text) > _LONGEST:
        raise YAMLProblem(f"it has {len(text):,} characters; at most {_LONGEST:,} are read")
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MOST:
            raise YAMLProblem(f"its aliases stand for more than {MOST:,} values; write out what is meant")
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date or a number that is none
        if isinstance(error, YAMLProblem):
            raise
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise YAMLProblem(f"{place}{getattr(error, 'problem', None) or str(error).splitlines()[0]}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for; one that holds itself stands for too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST + 1  # while it is being counted
        inner = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_values(one, known) for one in inner)
    return known[id(node)]
