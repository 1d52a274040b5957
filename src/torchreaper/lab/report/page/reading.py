"""What a comparison left in its folder, finished or not, read for the page; nothing is computed that stands there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchreaper.lab import comparison
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import read_json, read_yaml
from torchreaper.lab.records import Asked, Found, check
from torchreaper.lab.runs import ENVIRONMENT, EVENTS, METRICS, RECIPE, RESULT, read_metrics, read_result

Json = dict[str, Any]
ANALYSIS = "analysis"
_PNG = b"\x89PNG\r\n\x1a\n"
_FILES = {f"{comparison.NAME}.json", f"{comparison.NAME}.md"}
_FILES_OF_A_RUN = {RECIPE, ENVIRONMENT, METRICS, EVENTS, RESULT}
_SEED = re.compile(r"seed-(\d+)")


@dataclass(frozen=True)
class Run:
    """One run folder; ``result`` is None where the run is not finished."""

    scheme: str
    seed: int
    lines: Sequence[Json]
    result: Json | None
    recipe: Json
    environment: Json

    @property
    def where(self) -> str:
        """How far an unfinished run is, in words."""
        done, of = len(self.lines), self.recipe.get("epochs")
        where = f"at epoch {done}" if done else "in epoch 1"
        return f"{where} of {of}" if of else where


@dataclass(frozen=True)
class Folder:
    """A comparison: its runs by scheme, the baseline's first, and the content of its files.

    Attributes:
        found: ``comparison.json``; where it is not written yet, the same of the runs that are finished.
        notes: Its sentences, verdicts first.
        warnings: What a reader must know before: runs that are not finished, or not in ``found``.
        pictures: File name -> PNG, of ``reaper analyze``.
        analysis: ``analysis.md``.
    """

    name: str
    found: Json
    notes: Sequence[str]
    warnings: Sequence[str]
    runs: Mapping[str, Mapping[int, Run]]
    pictures: Mapping[str, bytes]
    analysis: str

    @property
    def every(self) -> list[Run]:
        """All runs, scheme by scheme."""
        return [run for seeds in self.runs.values() for run in seeds.values()]


def find(target: Path) -> list[Path]:
    """The comparison that ``target`` is, or those in it, by name; `UserError` where there is none."""
    if not target.is_dir():
        raise UserError(f"out={target}: is no folder; give the one that reaper compare wrote, such as runs/demo")
    if _is_comparison(target):
        return [target]
    found = [path for path in sorted(target.iterdir()) if path.is_dir() and _is_comparison(path)]
    if found:
        return found
    parents = target.absolute().parents
    above = next((path for path in parents[:2] if _is_comparison(path)), None)
    if above is not None:
        raise UserError(f"out={target}: is a part of a comparison; give the whole of it, {above}")
    raise UserError(f"out={target}: holds no comparison; give the folder that reaper compare wrote, such as runs/demo")


def _is_comparison(folder: Path) -> bool:
    return (folder / f"{comparison.NAME}.json").is_file() or any(_run_folders(folder))


def _run_folders(folder: Path) -> Iterable[tuple[str, int, Path]]:
    for path in sorted(folder.glob("*/seed-*")):
        match = _SEED.fullmatch(path.name)
        if match and any((path / name).is_file() for name in (RECIPE, METRICS)):
            yield path.parent.name, int(match[1]), path


def read(folder: Path) -> Folder:
    """Read a comparison; `UserError` where one of its files is damaged, or a link."""
    _check_links(folder)
    path = folder / f"{comparison.NAME}.json"
    there = read_json(path)
    try:
        check(Found, there or {}, str(path))
    except UserError as error:
        raise UserError(f"{error}; give the command reaper compare again, which writes it anew") from None
    unsorted = {(scheme, seed): _read_run(scheme, seed, path) for scheme, seed, path in _run_folders(folder)}
    order = _order(there, {scheme for scheme, _ in unsorted})
    runs = {
        scheme: {seed: run for (owner, seed), run in sorted(unsorted.items()) if owner == scheme} for scheme in order
    }
    runs = {scheme: seeds for scheme, seeds in runs.items() if seeds}
    if there is None:
        found, notes = _so_far(folder, runs)
    else:
        found, notes = there, _notes(there, folder / f"{comparison.NAME}.md")
    drawn = {path.name: path.read_bytes() for path in sorted((folder / ANALYSIS).glob("*.png")) if path.is_file()}
    text = folder / ANALYSIS / "analysis.md"
    return Folder(
        name=folder.absolute().name,
        found=found,
        notes=notes,
        warnings=_warnings(there, runs),
        runs=runs,
        pictures={name: data for name, data in drawn.items() if data.startswith(_PNG)},
        analysis=text.read_text(encoding="utf-8", errors="replace") if text.is_file() else "",
    )


def _check_links(folder: Path) -> None:
    """Refuse files that are links: a page is made to be sent, and must not hold what lies elsewhere on the machine."""
    for where, names in (("*", _FILES), ("*/seed-*/*", _FILES_OF_A_RUN), (f"{ANALYSIS}/*", None)):
        for path in folder.glob(where):
            if path.is_symlink() and path.is_file() and (names is None or path.name in names):
                raise UserError(f"{path}: is a link to {path.resolve()}; put the file itself there, or delete the link")


def _read_run(scheme: str, seed: int, path: Path) -> Run:
    return Run(
        scheme=scheme,
        seed=seed,
        lines=read_metrics(path),
        result=read_result(path),
        recipe=_recipe(path / RECIPE),
        environment=read_json(path / ENVIRONMENT) or {},
    )


def _recipe(path: Path) -> Json:
    recipe = read_yaml(path) or {}
    check(Asked, recipe, str(path))
    return recipe


def _order(found: Json | None, schemes: set[str]) -> list[str]:
    """The schemes as the comparison had them, its baseline first; without one, standard first."""
    first = [str((found or {}).get("baseline", "standard"))]
    named = [str(part.get("scheme")) for part in parts(found or {}, "schemes")]
    return list(dict.fromkeys([*(name for name in first + named if name in schemes), *sorted(schemes)]))


def _so_far(folder: Path, runs: Mapping[str, Mapping[int, Run]]) -> tuple[Json, list[str]]:
    """What the finished runs say before the comparison is written."""
    results = {
        scheme: {seed: run.result for seed, run in seeds.items() if run.result is not None}
        for scheme, seeds in runs.items()
    }
    if not any(results.values()):
        return {"recipe": folder.absolute().name, "baseline": next(iter(runs), "")}, []
    curves = comparison.read_curves(folder, results)
    found = comparison.summarise(results, recipe=folder.absolute().name, curves=curves)
    return found.as_dict(), comparison.notes(found)


def _notes(found: Json, text: Path) -> list[str]:
    """The sentences of a comparison: its own, or those of ``comparison.md`` beside it, or the verdicts alone."""
    if isinstance(own := found.get("notes"), list):
        return [str(note) for note in own]
    if text.is_file():
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    verdicts = [str(part["verdict"]) for part in parts(found, "contrasts") if part.get("verdict")]
    failed = [f"Failed: {part.get('scheme')}, seed {part.get('seed')}" for part in parts(found, "failures")]
    return verdicts + failed


def _warnings(found: Json | None, runs: Mapping[str, Mapping[int, Run]]) -> list[str]:
    every = [run for seeds in runs.values() for run in seeds.values()]
    failed = {(part.get("scheme"), part.get("seed")) for part in parts(found or {}, "failures")}
    open_ = [run for run in every if run.result is None and (run.scheme, run.seed) not in failed]
    lines = []
    if open_:
        lines.append(
            f"Not finished: {_listed(f'{run.scheme}, seed {run.seed}, {run.where}' for run in open_)}. "
            "Finished runs alone are in the table."
        )
    elif found is None:
        lines.append("The comparison is not finished: this is of the runs that there are.")
    if found is not None:
        known = {(part.get("scheme"), seed) for part in parts(found, "schemes") for seed in part.get("seeds") or ()}
        later = [run for run in every if run.result is not None and (run.scheme, run.seed) not in known]
        if later:
            lines.append(
                f"Not in the table: {_listed(f'{run.scheme}, seed {run.seed}' for run in later)}. "
                "Give reaper compare with these schemes and seeds to have them compared."
            )
    return lines


def _listed(texts: Iterable[str], most: int = 6) -> str:
    every = list(texts)
    rest = [f"and {len(every) - most} more"] if len(every) > most else []
    return "; ".join(every[:most] + rest)


def parts(found: Mapping[str, Any], key: str) -> list[Json]:
    """The objects in a list of ``comparison.json``; none where it has no such list."""
    value = found.get(key)
    return [part for part in value if isinstance(part, dict)] if isinstance(value, (list, tuple)) else []
