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
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torchreaper.lab import objects
from torchreaper.lab.data.folder import SUFFIXES
from torchreaper.lab.errors import UserError
from torchreaper.lab.reading import read_environment
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.schemes import PLUS

#: Keys of a `data:` section that name files, or a folder of pictures, by its name. What COCO's and VQA's files say of
#: pictures is looked at, not the pictures: their folders are large and may hold anything else.
_PLACES: dict[str, tuple[str, ...]] = {
    "folder": ("train", "test"),
    "parquet": ("train", "test"),
    "coco": ("train", "test"),
    "easy-vqa": ("path",),
    "vqa": ("train_questions", "train_annotations", "test_questions", "test_annotations"),
}
_COUNTED = SUFFIXES | {".json"}  # of the files in a folder
_READ = 2**28  # bytes of data that are read for a checksum; of more the files' names and sizes count
_MOST = 100_000  # files whose sizes are asked for; of more the names count
_DIGITS = 12
_INSTALLED = frozenset(("site-packages", "dist-packages"))
_NOBODYS = (Path(sysconfig.get_path("stdlib")).resolve(), Path(__file__).resolve().parents[1])
#: A module's checksum when it was first seen, and where it was loaded from then: its file may change while it is used.
_seen: WeakKeyDictionary[ModuleType, tuple[object, str | None]] = WeakKeyDictionary()

Now = Callable[[str, str], str | None]


def provenance(recipe: Recipe, scheme: str) -> dict[str, dict[str, str]]:
    """``code``: a checksum of each file of the user's own code, ``data``: one of each place that ``data:`` names.

    Code is what stands below the recipe's folder or the current one: the modules that the recipe and this scheme of it
    name, once they are imported, and what they import from there. Paths are as the recipe has them, or relative to its
    folder.
    """
    run = {**recipe.canonical(), "scheme": recipe.scheme_spec(scheme).model_dump(mode="json"), "schemes": {}}
    code = {_relative(path, recipe.base): digest for path, digest in _modules(run, recipe.base).items()}
    section = recipe.data
    named = [getattr(section, key, None) for key in _PLACES.get(section.name, ())]
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


def changed_in(folder: Path, today: Now) -> list[str]:
    """`changed`, of the run in a folder; none where what it was begun with cannot be read: not worth to stop for."""
    try:
        return changed(read_environment(folder), today)
    except UserError:
        return []


def in_words(names: Iterable[str], most: int = 3) -> str:
    """Such as "mine.py and helpers.py"."""
    shown = list(names)
    if len(shown) > most:
        shown[most:] = [f"{len(shown) - most} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def _modules(run: Mapping[str, Any], base: Path) -> dict[Path, str | None]:
    """The user's own modules: file -> checksum, each after the one that imports it."""
    places = {folder for one in (base, Path.cwd()) for folder in (one.absolute(), one.resolve())}
    found: dict[Path, str | None] = {}
    waiting = [name.partition(":")[0] for text in _texts(run) for name in text.split(PLUS) if _is_named(name)]
    for name in waiting:  # it grows
        module = sys.modules.get(name)
        if module is not None and (path := _own_file(module, places)) is not None and path not in found:
            found[path] = _at_first(module, path)
            waiting += [*_packages(name), *_imports(module, path)]
    return found


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
    """The file of a module that stands in one of ``places``, or a link to it, and is neither installed nor Python's."""
    if not getattr(module, "__file__", None):
        return None
    path = Path(str(module.__file__)).absolute()
    real = path.resolve()
    if _INSTALLED & {*path.parts, *real.parts} or any(real.is_relative_to(place) for place in _NOBODYS):
        return None
    return next((one for one in (path, real) if any(one.is_relative_to(place) for place in places)), None)


def _at_first(module: ModuleType, path: Path) -> str | None:
    """The checksum of what a module was loaded from, as far as that was asked before its file changed."""
    spec, digest = _seen.get(module, (None, None))
    if spec is None or spec is not module.__spec__:  # reloading gives it another
        digest = _of_code(path)
        _seen[module] = module.__spec__, digest
    return digest


def _packages(name: str) -> list[str]:
    """The packages that a module is in."""
    return [name[:end] for end, letter in enumerate(name) if letter == "."]


def _imports(module: ModuleType, path: Path) -> list[str]:
    """The modules that a module's text imports, anywhere in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python has told them when it was imported
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
    for folder in (base.absolute(), base.resolve()):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return str(path)


def _of_code(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS] if path.is_file() else None
    except (OSError, ValueError):  # of a name that no file can have, too
        return None


def _of_data(place: str, base: Path) -> str | None:
    """How many files, of how many bytes, and a checksum: of their contents if they are not too large."""
    try:
        files = _files(place, base)
        sizes = [os.path.getsize(file) for file in files.values()] if len(files) <= _MOST else []
        digest, whole = hashlib.sha256(), bool(sizes) and sum(sizes) <= _READ
        for name, file in files.items():
            digest.update(name.encode(errors="surrogatepass") + b"\0")
            if whole:
                digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
        digest.update(repr(sizes).encode())
    except (OSError, ValueError):
        return None
    of = f"{len(files):,} {'file' if len(files) == 1 else 'files'}"
    much = f", {sum(sizes):,} bytes" if sizes else ""
    return f"{of}{much}, {digest.hexdigest()[:_DIGITS]}" if files else None


def _files(place: str, base: Path) -> dict[str, str]:
    """The files of a folder, a path or a glob, below ``base`` or else the current folder, by their names there."""
    name = os.path.expanduser(place)
    for folder in (base.absolute(), Path.cwd()):
        path = folder / name
        if path.is_dir():
            found = {Path(os.path.relpath(file, path)).as_posix(): file for file in _inside(path)}
            return dict(sorted(found.items()))
        names = [name] if path.exists() else sorted(glob.glob(name, root_dir=folder, recursive=True))
        if names:
            return {Path(one).as_posix(): str(folder / one) for one in names if os.path.isfile(folder / one)}
    return {}


def _inside(folder: Path) -> Iterator[str]:
    """What counts of the files in a folder and those below it; hidden ones other programs leave there."""
    been: set[str] = set()
    for top, inside, names in os.walk(folder, followlinks=True):
        been.add(os.path.realpath(top))
        inside[:] = [
            one for one in inside if not one.startswith(".") and os.path.realpath(os.path.join(top, one)) not in been
        ]
        for name in names:
            path = os.path.join(top, name)
            # Reading a pipe might never end.
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _COUNTED and os.path.isfile(path):
                yield path
