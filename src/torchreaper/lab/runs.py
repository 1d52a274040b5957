"""Run folders: which files a run writes, and how a run that was killed is taken up again.

Every file but the two logs is replaced as a whole (temporary file, fsync, rename). At the end of an epoch come,
in this order: snapshot (see `snapshots`), checkpoint, metrics line, event line. The checkpoint holds a copy of both
lines, so that a run killed between them loses nothing and repeats nothing.
"""

from __future__ import annotations

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
from torchreaper.lab.checksums import SUFFIX, agrees, digest_of, read_digest, write_checked, write_digest
from torchreaper.lab.errors import UserError, remedy, trouble
from torchreaper.lab.files import (
    MEND,
    Json,
    append_line,
    bytes_of,
    encoded,
    gone_if_it_fails,
    good_lines,
    parsed,
    read_json,
    read_lines,
    read_yaml,
    rewrite_lines,
    sync,
    write_bytes,
    write_json,
    write_whole,
)
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.settings import parse

#: The files of a run folder, beside its snapshots; nothing else in it is ever touched.
METRICS, EVENTS, RESULT = "metrics.jsonl", "events.jsonl", "result.json"
RECIPE, ENVIRONMENT, ERROR = "recipe.yaml", "environment.json", "error.txt"
LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", ".damaged"
_FILES = (RESULT, LAST, PREVIOUS, METRICS, EVENTS, ENVIRONMENT, RECIPE)
# Of a recipe, these do not change a single run: how many runs there are, what the others do, what is kept on the way.
_NOT_OF_THE_RUN = ("seeds", "schemes", "profiles", "snapshots")


class RunFailed(UserError):  # noqa: N818  (the run failed; nobody made an error)
    """A run that cannot go on, with the place where it stopped; its last good checkpoint is kept."""


def folder_of(out: Path, name: str, scheme: str, seed: int) -> Path:
    """Where the run of a recipe's `name` with `scheme` and `seed` lies."""
    return Path(out) / name / scheme / f"seed-{seed}"


def read_metrics(folder: Path) -> list[Json]:
    """One dict per finished epoch; empty where there is no run. A line still being written is left out."""
    return read_lines(Path(folder) / METRICS)


def read_events(folder: Path) -> list[Json]:
    """One dict per transition; empty where there is none. A line still being written is left out."""
    return read_lines(Path(folder) / EVENTS)


def read_result(folder: Path) -> Json | None:
    """The result of a finished run; None for a run that is not finished, or not there.

    Raises `UserError` where the file is damaged, or does not agree with its checksum.
    """
    path = Path(folder) / RESULT
    try:
        data = bytes_of(path)
    except FileNotFoundError:
        return None
    if not agrees(path, data):
        raise UserError(f"{path}: is damaged (it does not agree with its checksum); {MEND}")
    return parsed(path, data)


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

    def look(self, note: Callable[[str], None] = lambda text: None) -> Json | None:
        """The result if the run is finished and its folder whole, else None: it can be gone on with. Writes nothing.

        Args:
            note: Is told in a sentence what is damaged and will be mended, from the checkpoint.

        Raises:
            UserError: The folder holds a run of another recipe, or what is damaged cannot be mended.
        """
        try:
            return self._look(note)
        except OSError as error:
            raise UserError(f"{trouble(error)}; {remedy(error)} and give the same command again") from error

    def _look(self, note: Callable[[str], None]) -> Json | None:
        faults = list(self._faults())
        can_mend = any((self.path / name).exists() for name in (LAST, PREVIOUS))
        if faults and can_mend:
            state = load_checkpoint(self.path, lambda text: None, mend=False)
            if state is not None:
                self.check(state["run"])
            for fault in faults:
                note(f"{fault}; it is made anew, going by the checkpoint")
            return None
        if there := read_yaml(self.path / RECIPE):
            self.check(run_of(there, seed=self.run["seed"]))
        return read_result(self.path)

    def _faults(self) -> Iterator[str]:
        """What is wrong with the small files of a run that has a recipe or a result, in words."""
        path = self.path / RECIPE
        finished = (self.path / RESULT).exists()
        try:
            there = read_yaml(path)
        except UserError:
            yield f"{path}: damaged"
        else:
            if there is not None:
                self.check(run_of(there, seed=self.run["seed"]))
            elif finished:
                yield f"{path}: gone"
        if not finished:
            return  # the others are looked at when it is gone on with
        for name, read in ((RESULT, read_result), (METRICS, read_metrics), (EVENTS, read_events)):
            try:
                read(self.path)
            except UserError:
                yield f"{self.path / name}: damaged"
        try:
            about = read_json(self.path / ENVIRONMENT)
        except UserError:
            yield f"{self.path / ENVIRONMENT}: damaged"
        else:
            if about is None:
                yield f"{self.path / ENVIRONMENT}: gone"

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
            self._sweep()
            if not _is_recipe(self.path / RECIPE):
                write_whole(self.path / RECIPE, yaml.safe_dump(recipe, sort_keys=False).encode())
        except OSError as error:
            what = remedy(error, "choose a folder that can be written")
            raise UserError(f"out={self.path}: {error.strerror}; {what}") from error

    def _sweep(self) -> None:
        """Delete what a killed run was writing."""
        for name in _FILES:
            for suffix in (".tmp", SUFFIX + ".tmp"):
                (self.path / (name + suffix)).unlink(missing_ok=True)

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
        metrics = {line["epoch"]: line for line in good_lines(self.path / METRICS) if line["epoch"] < epoch}
        events = [line for line in good_lines(self.path / EVENTS) if line["epoch"] < epoch]
        missing = sorted(set(range(1, epoch)) - metrics.keys())
        if missing:
            note(f"{self.path / METRICS}: the lines of epochs {missing} are lost; training is not affected")
        rewrite_lines(self.path / METRICS, [*metrics.values(), lines["metrics"]])
        rewrite_lines(self.path / EVENTS, [*events, *lines["events"]])

    def finish(self, result: Json) -> None:
        """Write `result.json`, the mark of a finished run."""
        write_checked(self.path / RESULT, encoded(result))

    def kept(self) -> Json | None:
        """The result of a run that was finished before and only had other files mended."""
        try:
            return read_result(self.path)
        except UserError:
            return None

    def _clear(self) -> None:
        # The result goes first: a half-cleared folder must not look finished.
        for name in _FILES:
            for suffix in ("", SUFFIX, ".tmp", SUFFIX + ".tmp", DAMAGED):
                (self.path / (name + suffix)).unlink(missing_ok=True)
        snapshots.delete(self.path)


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
    with gone_if_it_fails(fresh):  # on a full disk it would take the room that its own repetition needs
        digest = read_digest(last)
        if digest is not None and last.exists():
            write_digest(previous, digest)
            os.replace(last, previous)
        write_digest(last, digest_of(data))
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
        if digest_of(data) == read_digest(path):
            return _unpack(path, data)
        aside, afresh = ("put aside, ", ": starting at epoch 1") if mend else ("", "")
        instead = "using the one before" if path != found[-1] else f"there is no other{afresh}"
        note(f"{path}: damaged, it does not agree with its checksum; {aside}{instead}")
        if mend:
            os.replace(path, path.with_name(path.name + DAMAGED))
    return None


def judged_weights(checkpoint: Json) -> dict[str, Any]:
    """The weights of the network that counts: an average, where the scheme keeps one, else those that are trained."""
    return dict(checkpoint.get("network") or checkpoint["model"])


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
    return state


def _is_recipe(path: Path) -> bool:
    """Whether there is a recipe file, and one that can be read."""
    try:
        return read_yaml(path) is not None
    except UserError:
        return False


def _differences(there: Any, here: Any, key: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}):
            yield from _differences(there.get(name), here.get(name), f"{key}.{name}" if key else name)
    elif there != here:
        yield f"{key} is {there!r} there, {here!r} here"
