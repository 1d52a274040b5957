"""What a run is made of besides its recipe: modules of the user's own and local files of data, known by checksums.

A run is known by its recipe alone, so that one that is finished is not repeated after such a file has changed: that is
told, as old results would else stand beside new ones.
"""

from __future__ import annotations

import ast
import glob
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torchreaper.lab import objects
from torchreaper.lab.recipe import Recipe

#: Keys of a `data:` section that name files or folders, where its name is not one of those that have none.
_PLACES = (
    *("train", "test", "train_images", "test_images", "path", "train_questions", "train_annotations"),
    *("test_questions", "test_annotations"),
)
_ELSEWHERE = ("digits", "hub")  # train and test are splits there
_READ = 2**28  # bytes of data that are read for a checksum; of more the files' names and sizes count
_DIGITS = 12
_INSTALLED = frozenset(("site-packages", "dist-packages"))
_NOBODYS = sys.stdlib_module_names | {__name__.partition(".")[0]}

Now = Callable[[str, str], str | None]


def provenance(recipe: Recipe) -> dict[str, dict[str, str]]:
    """``code``: a checksum of each file of the user's own code, ``data``: one of each place that ``data:`` names.

    Code is what stands below the recipe's folder or the current one: the modules that the recipe names, once they are
    imported, and what they import from there. Paths are as the recipe has them, or relative to its folder.
    """
    code = {_relative(path, recipe.base): _of_code(path) for path in _modules(recipe)}
    section = recipe.data
    named = [] if section.name in _ELSEWHERE else [getattr(section, key, None) for key in _PLACES]
    data = {place: _of_data(place, recipe.base) for place in dict.fromkeys(named) if place is not None}
    return {"code": _readable(code), "data": _readable(data)}


def now(base: Path) -> Now:
    """What ``code`` or ``data`` of a name is today, as `provenance` would have it; each is looked at once.

    None where it cannot be read, as where finished runs were brought to another machine.
    """
    looks = {"code": lambda name: _of_code(base / name), "data": lambda name: _of_data(name, base)}
    return cache(lambda kind, name: looks[kind](name))


def changed(environment: Mapping[str, Any] | None, today: Now) -> list[str]:
    """The files that are another today than when a run was begun, or gone on with, by its ``environment.json``."""
    begun = environment or {}
    found = [
        name
        for part in (begun, *begun.get("resumed", []))
        for kind in ("code", "data")
        for name, then in part.get(kind, {}).items()
        if today(kind, name) not in (None, then)
    ]
    return list(dict.fromkeys(found))


def in_words(names: Iterable[str], most: int = 3) -> str:
    """Such as "mine.py and helpers.py"."""
    shown = list(names)
    if len(shown) > most:
        shown[most:] = [f"{len(shown) - most} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def _modules(recipe: Recipe) -> list[Path]:
    """The files of the user's own modules, each after the one that imports it."""
    places = [folder.resolve() for folder in (recipe.base, Path.cwd())]
    found: dict[Path, None] = {}
    waiting = [name.partition(":")[0] for name in _texts(recipe.canonical()) if _is_named(name)]
    for name in waiting:  # it grows
        module = sys.modules.get(name)
        if module is not None and (path := _own_file(module, places)) is not None and path not in found:
            found[path] = None
            waiting += [*_packages(name), *_imports(module, path)]
    return list(found)


def _readable(found: Mapping[str, str | None]) -> dict[str, str]:
    return {name: one for name, one in found.items() if one is not None}


def _is_named(text: str) -> bool:
    if not objects.is_object(text):
        return False
    try:
        objects.check_form(text, "")
    except ValueError:
        return False
    return True


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _own_file(module: ModuleType, places: Iterable[Path]) -> Path | None:
    """The file of a module that stands in one of ``places`` and is not installed."""
    if not getattr(module, "__file__", None) or module.__name__.partition(".")[0] in _NOBODYS:
        return None
    path = Path(str(module.__file__)).resolve()
    inside = any(path.is_relative_to(place) for place in places)
    return path if inside and not _INSTALLED & set(path.parts) else None


def _packages(name: str) -> list[str]:
    """The packages that a module is in."""
    return [name[:end] for end, letter in enumerate(name) if letter == "."]


def _imports(module: ModuleType, path: Path) -> list[str]:
    """The modules that a module's text imports, anywhere in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # no text of Python's: what is compiled imports unseen
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            package, name = module.__package__ or "", "." * node.level + (node.module or "")
            try:
                where = importlib.util.resolve_name(name, package)
            except ImportError:
                continue
            found += [where, *(f"{where}.{one.name}" for one in node.names)]
    return found


def _relative(path: Path, base: Path) -> str:
    folder = base.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _of_code(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]
    except OSError:
        return None


def _of_data(place: str, base: Path) -> str | None:
    """How many files, of how many bytes, and a checksum: of their contents if they are not too large."""
    try:
        files = _files(place, base)
        sizes = [os.path.getsize(file) for file in files.values()]
        total, digest = sum(sizes), hashlib.sha256()
        for (name, file), size in zip(files.items(), sizes):
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
            if total <= _READ:
                digest.update(Path(file).read_bytes())
    except OSError:
        return None
    of = "file" if len(files) == 1 else "files"
    return f"{len(files):,} {of}, {total:,} bytes, {digest.hexdigest()[:_DIGITS]}" if files else None


def _files(place: str, base: Path) -> dict[str, str]:
    """The files of a folder, a path or a glob, below ``base`` or else the current folder, by their names there."""
    name = os.path.expanduser(place)
    for folder in (base.absolute(), Path.cwd()):
        path = folder / name
        if path.is_dir():
            return {os.path.relpath(file, path): file for file in sorted(_inside(path))}
        found = [name] if path.exists() else sorted(glob.glob(name, root_dir=folder, recursive=True))
        if found:
            return {file: str(folder / file) for file in found if os.path.isfile(folder / file)}
    return {}


def _inside(folder: Path) -> Iterator[str]:
    """The files in a folder and those below it, but for hidden ones, which other programs leave there."""
    for top, inside, names in os.walk(folder, followlinks=True):
        inside[:] = [one for one in inside if not one.startswith(".")]
        for path in (os.path.join(top, name) for name in names if not name.startswith(".")):
            if os.path.isfile(path):  # reading a pipe might never end
                yield path
