"""What ``package.module:attribute`` in a recipe stands for: networks, data sets and criteria of the user's own."""

from __future__ import annotations

import importlib
import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import show


def is_object(name: str) -> bool:
    """Whether a name in a recipe is meant as ``package.module:attribute``; `check_form` says whether it is one."""
    return ":" in name


def check_form(name: str, example: str) -> None:
    """Raise ``ValueError`` where ``name`` cannot be ``package.module:attribute``; nothing is imported."""
    where, _, what = name.partition(":")
    if not where or not what or not all(part.isidentifier() for part in [*where.split("."), *what.split(".")]):
        raise ValueError(f"must be package.module:callable, such as {example}")


def find(name: str, argument: str, *, base: Path | None = None, example: str = "mypackage.module:make") -> Any:
    """Import ``package.module:attribute``; the attribute may stand inside a class, as in ``module:Class.make``.

    Modules of the folder ``base`` and of the current one are found too. Importing runs the user's own code, which
    may do anything; the global random generators are put back after it.

    Raises:
        UserError: no such module or attribute, or importing it fails; ``argument`` is the key it is told under.
    """
    try:
        check_form(name, example)
    except ValueError as error:
        raise UserError(f"{argument}={name!r}: {error}") from None
    where, _, what = name.partition(":")
    with importable(base), drawing(None):
        try:
            found: Any = importlib.import_module(where)
        except (Exception, SystemExit) as error:  # whatever importing it runs into
            lost = isinstance(error, ModuleNotFoundError) and error.name == where.split(".")[0]
            places = [*dict.fromkeys([str((base or Path()).absolute()), str(Path.cwd())])] if lost else []
            hint = f"; install it, or put it into {' or '.join(places)}" if lost else ""
            raise UserError(f"{argument}={name!r}: {where} cannot be imported ({reason(error)}){hint}") from error
        for part in what.split("."):
            if not hasattr(found, part):
                near = get_close_matches(part, [one for one in dir(found) if not one.startswith("_")], n=1)
                guess = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{argument}={name!r}: {where} has no {what}{guess}")
            found = getattr(found, part)
    return found


def call(
    found: Callable[..., Any],
    what: str,
    options: Mapping[str, Any],
    named: str,
    *,
    base: Path | None = None,
    offered: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> tuple[Any, str]:
    """Call what `find` found, ``what``, with ``options`` and with those of ``offered`` that its signature names.

    The call draws random numbers from ``seed`` alone (None: from the generators as they are); the global generators
    are put back after it. Returns what came back, and the call as it is written, for error texts.

    Raises:
        UserError: it cannot be called, or fails; ``named`` says which it is.
    """
    if not callable(found):
        raise UserError(f"{named}: {what} is a {type(found).__name__}; must be a callable")
    given = {**{key: value for key, value in (offered or {}).items() if key in _named(found)}, **options}
    written = f"{what}({', '.join(f'{key}={value!r}' for key, value in given.items())})"
    with importable(base), drawing(seed):
        try:
            return found(**given), written
        except (Exception, SystemExit) as error:  # the user's own code
            raise UserError(f"{named}: {written} fails ({reason(error)})") from error


@contextmanager
def importable(base: Path | None = None) -> Iterator[None]:
    """Modules of ``base`` and of the current folder are found, before others; the search path is put back."""
    before = list(sys.path)
    here = [str(folder) for folder in dict.fromkeys([(base or Path()).absolute(), Path.cwd()])]
    sys.path[:0] = [folder for folder in here if folder not in before]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def drawing(seed: int | None) -> Iterator[None]:
    """Python's, numpy's and torch's CPU random numbers from ``seed`` (None: as they are); put back afterwards.

    The accelerators' generators are neither read nor set: what is drawn in here is drawn on the CPU.
    """
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            # Not torch.manual_seed: that would also reseed the accelerators, which this fork does not put back.
            torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def guess(name: str, known: Iterable[str], listing: str) -> str:
    """The likeliest right names of a long list, which ``listing`` prints."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.6)
    question = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{question}{listing} lists them"


def reason(error: BaseException) -> str:
    """What kind of error, and its text, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def plain(options: Mapping[str, Any]) -> bool:
    """Whether ``options`` are what JSON can hold, so that the recipe that a run keeps says the same."""
    return all(_plain(value) for value in options.values())


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and plain(value)
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and np.isfinite(value))


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for values that only YAML knows, such as dates."""
    for key, value in options.items():
        if not plain({key: value}):
            raise ValueError(f"{key} must be text, a number, true, false, null, or lists and mappings of those, "
                             f"not {show(value)}")  # fmt: skip


def _named(found: Callable[..., Any]) -> set[str]:
    """The arguments that can be given by name; none where Python cannot tell."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
