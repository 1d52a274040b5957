"""The recipes that can be found: those that come with the package, by name, and those in a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from torchreaper.lab.errors import UserError, remedy
from torchreaper.lab.files import write_new
from torchreaper.lab.published import Published, percent
from torchreaper.lab.recipe import Recipe, load_recipe
from torchreaper.lab.settings import did_you_mean

SUFFIX = ".yaml"
_CITATION = re.compile(r" \([^()]*\b(19|20)\d\d\b.*")


@dataclass(frozen=True)
class Listed:
    """A recipe file; ``recipe`` is None where it cannot be used, and ``problem`` says why in one line."""

    #: What a command takes: the name of a recipe that comes with the package, or a path.
    name: str
    #: Its first line, if that is a comment, up to the citation.
    what: str
    recipe: Recipe | None
    problem: str = ""


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name, such as "demo" and "paper/c3-32-cifar10".

    In an installed package they lie beside this file, in a checkout in its folder ``recipes``.
    """
    here = Path(__file__).parent
    installed, checkout = here / "recipes", here.parents[2] / "recipes"
    folder = checkout if not installed.is_dir() and here.parents[1].name == "src" else installed
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in _files(folder)}


def find(recipe: str) -> Path:
    """The file that ``recipe`` means: a path, or else the name of a recipe that comes with the package.

    Raises ``UserError`` where it is neither but looks like such a name.
    """
    path, known = Path(recipe), shipped()
    if path.is_file() or (name := recipe.removesuffix(SUFFIX)) not in known:
        if not path.exists() and (near := get_close_matches(name.removeprefix("recipes/"), known, n=1)):
            raise UserError(f"recipe={recipe!r}: no such file; did you mean {near[0]!r}, which comes with torchreaper?")
        return path
    return known[name]


def listing(folder: Path | None = None) -> list[Listed]:
    """The recipes below ``folder``; None: those that come with the package, then those below ``./recipes``.

    Raises ``UserError`` where there is no such folder. A file that is no recipe does not: it has a ``problem``.
    """
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"folder={str(folder)!r}: no such folder; name one with recipes, or leave it out")
        return [_listed(str(path), path) for path in _files(folder)]
    ours = shipped()
    known = {path.resolve() for path in ours.values()}
    mine = [path for path in _files(Path("recipes")) if path.resolve() not in known]
    return [_listed(name, path) for name, path in ours.items()] + [_listed(str(path), path) for path in mine]


def copy(name: str, folder: Path = Path()) -> Path:
    """Copy a recipe that comes with the package into ``folder``, to edit it; returns the new file.

    Raises ``UserError`` for an unknown name, and where there is a file already.
    """
    known = shipped()
    source = known.get(name.removesuffix(SUFFIX))
    if source is None:
        raise UserError(f"copy={name!r}: no such recipe; {did_you_mean(name, known)}")
    target = folder / source.name
    try:
        write_new(target, source.read_bytes())
    except FileExistsError:
        raise UserError(f"copy={name!r}: {target} is there already; rename it, or go to another folder") from None
    except OSError as error:
        what = remedy(error, "go to another folder")
        raise UserError(f"copy={name!r}: {target} cannot be written ({error.strerror}); {what}") from None
    return target


def table(found: list[Listed], *, narrow: bool = False) -> tuple[list[str], list[list[str]]]:
    """The recipes that can be used, as headings and rows of text; ``narrow``: all about one in a single cell."""
    rows = []
    for one in found:
        if (recipe := one.recipe) is None:
            continue
        short = _short(recipe.published, str(recipe.scheme["name"]))
        profiles = ", ".join(recipe.profiles)
        if narrow:
            numbers = [f"published accuracy {short} %"] if short else []
            numbers += [f"{recipe.epochs} epochs", f"{recipe.seeds} seed{'s' if recipe.seeds > 1 else ''}"]
            lines = [one.what, ", ".join(numbers), f"profiles: {profiles}" if profiles else ""]
            rows.append([one.name, "\n".join(filter(None, lines))])
        else:
            rows.append([one.name, one.what, short, profiles, str(recipe.epochs), str(recipe.seeds)])
    return ["recipe", "what", *([] if narrow else ["published accuracy %", "profiles", "epochs", "seeds"])], rows


def _short(published: Published | None, own: str) -> str:
    """Published accuracies in short: of the first scheme and the recipe's own, such as ``72.1 -> 76.4``."""
    if published is None:
        return ""
    schemes = list(published.values)
    first = "standard" if "standard" in schemes else schemes[0]
    last = own if own in schemes else schemes[-1]
    values = [published.accuracy(scheme) for scheme in dict.fromkeys((first, last))]
    return " -> ".join(percent(value) for value in values if value is not None)


def _listed(name: str, path: Path) -> Listed:
    try:
        recipe = load_recipe(path)
        first = path.read_text(encoding="utf-8").partition("\n")[0]
    except (UserError, OSError) as error:
        return Listed(name, "", None, " ".join(str(error).split()))
    what = _CITATION.sub("", first.lstrip("# ").rstrip()) if first.startswith("#") else ""
    return Listed(name, what, recipe)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{SUFFIX}") if path.is_file())
