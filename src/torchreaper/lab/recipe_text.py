"""A recipe as plain values: read from its file, changed by a profile, and by single values of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import show
from torchreaper.lab.yaml_text import LONGEST, YAMLProblem, parse_yaml

# Sections whose other keys belong to their name; that of data has keys that go with any.
_NAMED = ("model", "scheme", "cnn")


def read(path: Path) -> dict[str, Any]:
    """What the file says, not yet checked. Raises ``UserError`` where it cannot be read, or holds no mapping."""
    where = f"recipe={str(path)!r}"
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise UserError(f"{where}: has more than {LONGEST:,} bytes; is it a recipe?")
        text = data.decode()
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    except (OSError, ValueError) as error:  # of a folder, of bytes that are no UTF-8, of a path with a NUL
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: cannot be read as text ({error})") from None
    values = _yaml(text, where)
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a mapping (key: value), not {show(values)}")
    return values


def with_profile(values: dict[str, Any], name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with the changes of its profile ``name``, merged key by key, and the name that tells of it."""
    if "profiles" in changes:
        raise UserError("profiles: a profile cannot have profiles")
    merged = _merge(values, changes)
    if "name" not in changes and isinstance(values.get("name"), str):
        merged["name"] = f"{values['name']}-{name}"
    return merged


def with_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    """A recipe's values with one of them replaced, as ``key=value`` says in YAML."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise UserError(f"set={override!r}: must be key=value, such as optim.lr=0.1")
    if key.split(".")[0] == "profiles":
        raise UserError(f"set={override!r}: has no effect; set the key itself, or choose a profile")
    changes: Any = _yaml(text, f"set={show(override)}")
    *parents, last = _keys(values, key)
    result = section = dict(values)
    for depth, part in enumerate(parents, start=1):
        inner = section.get(part)
        if inner is not None and not isinstance(inner, dict):
            outer = ".".join(parents[:depth])
            raise UserError(f"set={override!r}: {outer}={show(inner)} has no keys; set {outer} as a whole")
        section[part] = dict(inner or {})
        section = section[part]
    section[last] = changes
    return result


def _keys(values: Any, key: str) -> list[str]:
    """The keys on the way to a value: what stands between dots, but a key that is there may have dots of its own."""
    keys = []
    while key:
        section = values if isinstance(values, dict) else {}
        there = [name for name in section if isinstance(name, str) and f"{key}.".startswith(f"{name}.")]
        keys.append(max(there, key=len, default=key.partition(".")[0]))
        values, key = section.get(keys[-1]), key[len(keys[-1]) + 1 :]
    return keys


def _merge(values: dict[str, Any], changes: dict[str, Any], inside: str = "") -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        old = values.get(key)
        if change is None and "schemes" in (key, inside):  # left empty, it changes nothing
            change = {}
        merged[key] = change
        if isinstance(old, dict) and isinstance(change, dict):
            # Options belong to a name: with another one they start afresh.
            usual = key if inside == "schemes" else None  # of a scheme that says no name
            name = old.get("name", usual)
            another = (key in _NAMED or inside == "schemes") and change.get("name", name) != name
            merged[key] = change if another else _merge(old, change, key)
    return merged


def _yaml(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except YAMLProblem as error:
        raise UserError(f"{where}: is not valid YAML: {error}") from None
