"""Run folders: which files a run writes, and how a run that was killed is taken up again.

Every file but the two logs is replaced as a whole (temporary file, fsync, rename). At the end of an epoch come,
in this order: snapshot (see `snapshots`), checkpoint, metrics line, event line. The checkpoint holds a copy of both
lines, so that a run killed between them loses nothing and repeats nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from torchreaper import loading
from torchreaper.lab import snapshots
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import (
    Json,
    append_line,
    finite,
    good_lines,
    read_json,
    read_lines,
    read_yaml,
    rewrite_lines,
    sync,
    write_bytes,
    write_json,
    write_whole,
)
from torchreaper.lab.objects import plain
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.records import EventLine, MetricsLine, Result, check_lines, good
from torchreaper.lab.records import check as check_record
from torchreaper.lab.settings import parse, show

#: The files of a run folder, beside its snapshots; nothing else in it is ever touched.
METRICS, EVENTS, RESULT = "metrics.jsonl", "events.jsonl", "result.json"
RECIPE, ENVIRONMENT, ERROR = "recipe.yaml", "environment.json", "error.txt"
LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", ".damaged"
# Of a recipe, these do not change a single run: how many runs there are, what the others do, what is kept on the way.
_NOT_OF_THE_RUN = ("seeds", "schemes", "profiles", "snapshots")


class RunFailed(UserError):  # noqa: N818  (the run failed; nobody made an error)
    """A run that cannot go on, with the place where it stopped; its last good checkpoint is kept."""


def folder_of(out: Path, name: str, scheme: str, seed: int) -> Path:
    """Where the run of a recipe's `name` with `scheme` and `seed` lies."""
    return Path(out) / name / scheme / f"seed-{seed}"


def read_metrics(folder: Path) -> list[Json]:
    """One dict per finished epoch; empty where there is no run. A line still being written is left out.

    Raises `UserError` for a damaged line; which keys the others have says `records.MetricsLine`.
    """
    return _read_log(Path(folder) / METRICS, MetricsLine, each_once=True)


def read_events(folder: Path) -> list[Json]:
    """One dict per transition; empty where there is none. A line still being written is left out.

    Raises `UserError` for a damaged line; which keys the others have says `records.EventLine`.
    """
    return _read_log(Path(folder) / EVENTS, EventLine, each_once=False)


def _read_log(path: Path, kind: type[MetricsLine | EventLine], *, each_once: bool) -> list[Json]:
    lines = read_lines(path)
    try:
        check_lines(kind, lines, path, each_once=each_once)
    except UserError as error:
        raise UserError(f"{error}; continue or repeat the run to mend it") from None
    return lines


def read_result(folder: Path) -> Json | None:
    """The result of a finished run; None for a run that is not finished, or not there.

    Raises `UserError` where the file is damaged; which keys it has says `records.Result`.
    """
    path = Path(folder) / RESULT
    result = read_json(path)
    try:
        if result is not None:
            check_record(Result, result, str(path))
    except UserError as error:
        raise UserError(f"{error}; delete it and give the command that made it again") from None
    return result


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run: its `scheme` is the run's own, with all options, and it has no others.

    Its relative data paths start where they did when the run was begun, or last continued: in the folder of the
    recipe file, which `environment.json` tells; those of a run older than that in the current folder.

    Raises:
        UserError: The folder is no run's, or one of the two files is damaged or of another version.
    """
    path, about = Path(folder) / RECIPE, Path(folder) / ENVIRONMENT
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
    begun = read_json(about)
    if begun is None:
        raise UserError(f"{about}: is missing; continue or repeat the run to mend it")
    return recipe.at(_base(begun, about))


def _base(begun: Json, about: Path) -> Path:
    resumed, base = begun.get("resumed", []), ""
    if not isinstance(resumed, list) or not all(isinstance(one, dict) for one in resumed):
        raise UserError(f"{about}: is damaged (resumed is {resumed!r}); delete the folder and run again")
    for one in (begun, *resumed):
        base = one.get("base", base)
        if not isinstance(base, str):
            raise UserError(f"{about}: is damaged (base is {base!r}); delete the folder and run again")
    return Path(base)


def write_error(folder: Path, traceback: str) -> str:
    """Keep the traceback of a run that failed, until it is taken up again; where it is, to be put into a sentence."""
    path = Path(folder) / ERROR
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, traceback.encode(errors="backslashreplace"))
    except OSError:  # not worth to hide the error itself
        return ""
    return f"the traceback is in {path}; "


@dataclass(frozen=True)
class RunFolder:
    """One run's folder, for the run that writes it.

    Attributes:
        path: The folder.
        run: What makes two runs the same: `run_of(...)`.
    """

    path: Path
    run: Json

    def look(self) -> Json | None:
        """The result if the run is finished, else None; writes nothing.

        Raises:
            UserError: The folder holds a run of another recipe, or a damaged file.
        """
        there = read_yaml(self.path / RECIPE)
        if there is not None:
            self.check(run_of(there, seed=self.run["seed"]))
        return read_result(self.path)

    def open(self, recipe: Json, *, resume: bool) -> None:
        """Make the folder, or take it up.

        Args:
            recipe: What is to stand in `recipe.yaml`.
            resume: False: what an earlier run wrote here is deleted first.

        Raises:
            UserError: The folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._clear()
            (self.path / ERROR).unlink(missing_ok=True)
            if not (self.path / RECIPE).exists():
                write_whole(self.path / RECIPE, yaml.safe_dump(recipe, sort_keys=False).encode())
        except OSError as error:
            raise UserError(f"out={self.path}: {error.strerror}; choose a folder that can be written") from error

    def check(self, there: Json) -> None:
        """Raise `UserError` where `there`, the run that was found here, is another than this one."""
        differences = list(_differences(_completed(there), self.run))
        if differences:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise UserError(
                f"out={self.path}: holds a run of another recipe: {', '.join(differences[:3])}{more}; "
                "choose another out or name, or delete that folder"
            )

    def environment(self, now: Json, *, epoch: int) -> None:
        """Write down where the run was begun, or where it was continued after `epoch` epochs."""
        path = self.path / ENVIRONMENT
        try:
            began = read_json(path) if epoch else None
        except UserError:  # not worth to stop for
            began = None
        if began is not None:
            now = {**began, "resumed": [*began.get("resumed", []), {"after_epoch": epoch, **now}]}
        write_json(path, now)

    def save(self, epoch: int, state: Json, metrics: Json, events: list[Json], snapshot: Json | None = None) -> None:
        """End epoch `epoch`: the snapshot if there is one, the checkpoint, then its lines in the logs."""
        if snapshot is not None:
            snapshots.write(self.path, snapshot)
        lines = {"metrics": metrics, "events": events}
        save_checkpoint(self.path, {**state, "run": self.run, "epoch": epoch, "lines": lines})
        append_line(self.path / METRICS, metrics)
        for event in events:
            append_line(self.path / EVENTS, event)

    def load(self, note: Callable[[str], None]) -> Json | None:
        """The newest good checkpoint, or None: begin at the beginning. Call `align` when it is loaded.

        Args:
            note: Is told in a sentence what was damaged.

        Raises:
            UserError: The checkpoint is of another run.
        """
        state = load_checkpoint(self.path, note)
        if state is not None:
            self.check(state["run"])
        return state

    def align(self, state: Json | None, note: Callable[[str], None]) -> None:
        """Make logs and snapshots end where the checkpoint does: later ones go, its own lines are put in if missing."""
        snapshots.delete(self.path, after=state["epoch"] if state else 0)
        if state is None:
            rewrite_lines(self.path / METRICS, [])
            rewrite_lines(self.path / EVENTS, [])
            return
        epoch, lines = state["epoch"], state["lines"]
        metrics = {line["epoch"]: line for line in _good(self.path / METRICS, MetricsLine) if line["epoch"] < epoch}
        metrics = dict(sorted(metrics.items()))
        events = [line for line in _good(self.path / EVENTS, EventLine) if line["epoch"] < epoch]
        events.sort(key=lambda line: int(line["epoch"]))
        missing = sorted(set(range(1, epoch)) - metrics.keys())
        if missing:
            note(f"{self.path / METRICS}: the lines of epochs {missing} are lost; training is not affected")
        rewrite_lines(self.path / METRICS, [*metrics.values(), lines["metrics"]])
        rewrite_lines(self.path / EVENTS, [*events, *lines["events"]])

    def finish(self, result: Json) -> None:
        """Write `result.json`, the mark of a finished run."""
        write_json(self.path / RESULT, result)

    def _clear(self) -> None:
        # The result goes first: a half-cleared folder must not look finished.
        for name in (RESULT, LAST, PREVIOUS, METRICS, EVENTS, ENVIRONMENT, RECIPE):
            for suffix in ("", ".sha256", ".tmp", ".sha256.tmp", DAMAGED):
                (self.path / (name + suffix)).unlink(missing_ok=True)
        snapshots.delete(self.path)


def _good(path: Path, kind: type[MetricsLine | EventLine]) -> list[Json]:
    return [line for line in good_lines(path) if good(kind, line)]


def run_of(recipe: Json, *, seed: int) -> Json:
    """What makes two runs the same: the recipe with one scheme's options, and the seed."""
    return {**{key: value for key, value in recipe.items() if key not in _NOT_OF_THE_RUN}, "seed": seed}


def _completed(run: Json) -> Json:
    """A run that an older version wrote, with what recipes have learnt to say since: the defaults it was run with."""
    recipe = {key: value for key, value in run.items() if key != "seed"}
    try:
        return run_of(parse(Recipe, recipe).canonical(), seed=run["seed"])
    except (UserError, KeyError):
        return run


def save_checkpoint(folder: Path, state: Json) -> None:
    """Make `state` the folder's `last.pt`, the one before its `previous.pt`.

    Wherever this is cut off, at least one of the two is whole and agrees with its checksum.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    fresh = last.with_name(LAST + ".tmp")
    write_bytes(fresh, data)
    digest = _read_digest(last)
    if digest is not None and last.exists():
        _write_digest(previous, digest)
        os.replace(last, previous)
    _write_digest(last, hashlib.sha256(data).hexdigest())
    os.replace(fresh, last)
    sync(folder)  # renames reach the disk in their order, so that one sync at the end does for all


def load_checkpoint(folder: Path, note: Callable[[str], None], *, mend: bool = True) -> Json | None:
    """The newest whole checkpoint of a folder, on the CPU, or None; `note` is told what was damaged.

    A damaged file is put aside as `*.damaged`, so that it never takes the place of a good `previous.pt`; with
    ``mend=False``, for those who only look at a run, nothing in the folder is touched.
    Raises `UserError` where the file is whole but is no checkpoint, or not for this version of torch.
    """
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    for path in found:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == _read_digest(path):
            return _unpack(path, data)
        aside, afresh = ("put aside, ", ": starting at epoch 1") if mend else ("", "")
        instead = "using the one before" if path != found[-1] else f"there is no other{afresh}"
        note(f"{path}: damaged, it does not agree with its checksum; {aside}{instead}")
        if mend:
            os.replace(path, path.with_name(path.name + DAMAGED))
    return None


def judged_weights(checkpoint: Json) -> dict[str, Any]:
    """The weights of the network that counts: an average, where the scheme keeps one, else those that are trained."""
    weights = checkpoint.get("network") or checkpoint.get("model")
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError("checkpoint: holds no weights of a network; delete the run's folder and run again")
    return dict(weights)


def _unpack(path: Path, data: bytes) -> Json:
    try:
        state = loading.load(data)
    except Exception as error:  # whatever the bytes make torch raise
        raise UserError(
            f"{path}: torch {torch.__version__} cannot read it ({loading.reason(error)}); use the "
            f"version that wrote it (see {ENVIRONMENT}), or delete the folder"
        ) from error
    if not isinstance(state, dict) or not {"run", "epoch", "lines"} <= state.keys():
        raise UserError(f"{path}: is no checkpoint of a run; delete the folder and run again")
    try:
        _check_lines_of(state, path)
    except UserError as error:
        raise UserError(f"{error}; delete the folder and run again") from None
    return state


def _check_lines_of(state: Json, path: Path) -> None:
    """Raise `UserError` where a checkpoint does not hold the lines of its own epoch."""
    epoch, lines = state["epoch"], state["lines"]
    if not isinstance(state["run"], dict) or not plain(state["run"]):
        raise UserError(f"{path}: run: is damaged")
    if not isinstance(lines, dict) or not isinstance(lines.get("events"), list):
        raise UserError(f"{path}: lines: is damaged")
    every = [lines.get("metrics"), *lines["events"]]
    for number, line in enumerate(every):
        line = finite(line)
        if not isinstance(line, dict) or not plain(line):
            raise UserError(f"{path}: lines: is damaged")
        check_record(EventLine if number else MetricsLine, line, f"{path}: lines")
        if isinstance(epoch, bool) or line["epoch"] != epoch:
            raise UserError(f"{path}: epoch={show(epoch)}: its lines are of epoch {line['epoch']}")


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_digest(path: Path, digest: str) -> None:
    """The checksum of `path` in the format of sha256sum, so that ``sha256sum -c`` checks it."""
    sidecar = _sidecar(path)
    temporary = sidecar.with_name(sidecar.name + ".tmp")
    write_bytes(temporary, f"{digest}  {path.name}\n".encode())
    os.replace(temporary, sidecar)


def _read_digest(path: Path) -> str | None:
    try:
        return _sidecar(path).read_text(errors="replace").split()[0]
    except (OSError, IndexError):
        return None


def _differences(there: Any, here: Any, key: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}, key=str):
            inner = " ".join(str(name).split())
            yield from _differences(there.get(name), here.get(name), f"{key}.{inner}" if key else inner)
    elif there != here:
        yield f"{key} is {show(there)} there, {show(here)} here"
