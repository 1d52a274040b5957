"""What every section of a recipe shares: strict checks, and one clear line when a check fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from torchreaper.lab.errors import UserError

SettingsT = TypeVar("SettingsT", bound="Settings")

_MISSPELT = {"extra_forbidden", "invalid_key"}
_WORDS = {
    "Input should be": "must be",
    "a valid ": "a ",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a boolean": "true or false",
}


class Settings(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversions (``"3"`` is not 3), no NaN.

    A validator that looks at several keys raises ``UserError("key=value: what is wrong; remedy")``, with the
    key named relative to its own section; ``parse`` puts the section's path before it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def parse(settings: type[SettingsT], values: Mapping[str, Any], *, at: str = "") -> SettingsT:
    """Check ``values`` against ``settings``; ``at`` is the dotted path of this section in error messages.

    Raises ``UserError`` with one line that names the full dotted key, its value and what is wrong.
    """
    try:
        return settings.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_first(error, settings, at)) from None


def parse_nested(settings: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    """``parse`` for use in a validator of the section around: that section's ``parse`` knows the path."""
    try:
        return settings.model_validate(dict(values))
    except ValidationError as error:
        raise _NestedError(error, settings) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? known: x, y, z"``, without the question where nothing is near."""
    known = list(known)
    by_lower = {k.lower(): k for k in known}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    question = f"did you mean {by_lower[near[0]]!r}? " if near else ""
    return f"{question}known: {', '.join(known)}"


def show(value: object) -> str:
    """``repr``, cut where it is too long for one line of an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def keys(settings: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of ``settings``, those of nested sections included."""
    found: list[str] = []
    for name, field in settings.model_fields.items():
        found.append(prefix + name)
        for annotation in get_args(field.annotation) or (field.annotation,):  # of a section that may be None
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                found += keys(annotation, f"{prefix}{name}.")
    return found


class _NestedError(ValueError):
    def __init__(self, error: ValidationError, settings: type[Settings]) -> None:
        super().__init__(str(error))
        self.error, self.settings = error, settings


def _first(error: ValidationError, settings: type[Settings], at: str) -> str:
    # A misspelt key is usually the cause of a missing one, so it is told first.
    errors = sorted(error.errors(include_url=False), key=lambda e: e["type"] not in _MISSPELT)
    missing = [_dotted(e["loc"], at) for e in errors if e["type"] == "missing"]
    if errors[0]["type"] == "missing" and len(missing) > 1:
        return f"{', '.join(missing)}: are missing"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return " ".join((_line(errors[0], settings, at) + more).splitlines())


def _line(error: Any, settings: type[BaseModel], at: str) -> str:
    loc, value = error["loc"], error["input"]
    path = _dotted(loc, at)
    match error["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key; {_nearest(loc, settings, at)}"
        case "invalid_key":
            return f"{path}: a key must be a string"
        case "missing":
            return f"{path}: is missing"
        case "value_error":
            cause = error["ctx"]["error"]
            if isinstance(cause, _NestedError):
                return _first(cause.error, cause.settings, path)
            if isinstance(cause, UserError):  # names its own key, below this section
                return f"{path}.{cause}" if path else str(cause)
            return f"{path}={show(value)}: {cause}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{path}={show(value)}: must be a mapping (key: value)"
        case "int_type" | "int_from_float":
            return f"{path}={show(value)}: must be a whole number"
        case "tuple_type":
            return f"{path}={show(value)}: must be a list"
        case _:
            message = str(error["msg"])
            for pydantics, ours in _WORDS.items():
                message = message.replace(pydantics, ours)
            return f"{path}={show(value)}: {message[0].lower()}{message[1:]}"


def _nearest(loc: tuple[str | int, ...], settings: type[BaseModel], at: str) -> str:
    """The likeliest right key for the unknown key at ``loc``: a sibling, else the same name elsewhere."""
    *parents, wrong = (str(part) for part in loc)
    prefix = ".".join([*parents, ""]) if parents else ""
    known = keys(settings)
    siblings = [k[len(prefix) :] for k in known if k.startswith(prefix) and "." not in k[len(prefix) :]]
    outer = f"{at}." if at else ""
    near = get_close_matches(wrong, siblings, n=1, cutoff=0.6)
    if near:
        return f"did you mean {outer}{prefix}{near[0]}?"
    elsewhere = [k for k in known if k.rsplit(".", 1)[-1] == wrong]
    if elsewhere and wrong not in (*at.split("."), *parents):  # the name of a section inside it is no such key
        return f"did you mean {outer}{elsewhere[0]}?"
    return f"known: {', '.join(siblings)}"


def _dotted(loc: tuple[str | int, ...], at: str) -> str:
    path = at
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
