"""What the files of a run say: its logs, its result, its recipe and where it was made, read back and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchreaper.lab.checkpoints import can_go_on
from torchreaper.lab.checksums import agrees
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import MEND, Damaged, Json, bytes_of, lines_of, parsed, read_json, read_yaml
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.records import Environment, EventLine, MetricsLine, Result, check, check_lines
from torchreaper.lab.settings import parse

METRICS, EVENTS, RESULT = "metrics.jsonl", "events.jsonl", "result.json"
RECIPE, ENVIRONMENT = "recipe.yaml", "environment.json"
#: What to do about a damaged file of a run that has no checkpoint to mend it from.
AFRESH = "delete the folder and run again"
_DISAGREES = "is damaged (it does not agree with its checksum)"


def read_metrics(folder: Path) -> list[Json]:
    """One dict per finished epoch; empty where there is no run. A line still being written is left out.

    Raises `UserError` for a damaged line, and where the file does not agree with the checksum that a finished run gave
    it; which keys the lines have says `records.MetricsLine`.
    """
    return _read_log(Path(folder) / METRICS, MetricsLine, each_once=True)


def read_events(folder: Path) -> list[Json]:
    """One dict per transition; empty where there is none. As `read_metrics`, with `records.EventLine`."""
    return _read_log(Path(folder) / EVENTS, EventLine, each_once=False)


def _read_log(path: Path, kind: type[MetricsLine | EventLine], *, each_once: bool) -> list[Json]:
    with _with_what_helps(path.parent):
        data = _content(path)
        if not agrees(path, data):
            data = _content(path)  # the run may have ended after the first look, and its checksum been written
            if not agrees(path, data):
                raise Damaged(f"{path}: {_DISAGREES}")
        lines = lines_of(path, data)
        try:
            check_lines(kind, lines, path, each_once=each_once)
        except UserError as error:
            raise Damaged(str(error)) from None
    return lines


def read_result(folder: Path) -> Json | None:
    """The result of a finished run; None for a run that is not finished, or not there.

    Raises `UserError` where the file is damaged, or does not agree with its checksum; which keys it has says
    `records.Result`.
    """
    path = Path(folder) / RESULT
    try:
        data = bytes_of(path)
    except FileNotFoundError:
        return None
    with _with_what_helps(path.parent):
        if not agrees(path, data):
            raise Damaged(f"{path}: {_DISAGREES}")
        result = parsed(path, data)
        try:
            check(Result, result, str(path))
        except UserError as error:
            raise Damaged(str(error)) from None
    return result


def read_environment(folder: Path) -> Json | None:
    """Where a run was begun, and where it was continued; None where that is not written down.

    Raises `UserError` where the file is damaged; which keys it has says `records.Environment`.
    """
    path = Path(folder) / ENVIRONMENT
    with _with_what_helps(path.parent):
        begun = read_json(path)
        if begun is not None:
            try:
                check(Environment, begun, str(path))
            except UserError as error:
                raise Damaged(str(error)) from None
    return begun


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run: its `scheme` is the run's own, with all options, and it has no others.

    Its relative data paths start where they did when the run was begun, or last continued: in the folder of the
    recipe file, which `environment.json` tells; those of a run older than that in the current folder.

    Raises:
        UserError: The folder is no run's, or one of the two files is damaged or of another version.
    """
    path = Path(folder) / RECIPE
    with _with_what_helps(path.parent):
        values = read_yaml(path) if Path(folder).is_dir() else None
    if values is None:
        raise UserError(
            f"run={str(folder)!r}: is no run folder, it has no {RECIPE}; name one that has, "
            "<out>/<recipe>/<scheme>/seed-<k>"
        )
    try:
        recipe = parse(Recipe, values)
    except UserError as error:
        raise UserError(f"{path}: {error}; use the version of torchreaper that wrote it, or run again") from None
    begun = read_environment(folder)
    if begun is None:
        with _with_what_helps(path.parent):
            raise Damaged(f"{path.with_name(ENVIRONMENT)}: is missing")
    bases = [one.get("base") for one in (begun, *begun.get("resumed", []))]
    return recipe.at(Path([base for base in ("", *bases) if base is not None][-1]))


@contextmanager
def _with_what_helps(folder: Path) -> Iterator[None]:
    """Damage to a run is told with its remedy: the same command, if there is a checkpoint for it, else a new run."""
    try:
        yield
    except Damaged as error:
        raise Damaged(error.what, MEND if can_go_on(folder) else AFRESH) from None


def _content(path: Path) -> bytes:
    """What a log holds; nothing where it is missing."""
    try:
        return bytes_of(path)
    except FileNotFoundError:
        return b""
