"""Run folders: which files a run writes, and how a run that was killed is taken up again.

Every file but the two logs is replaced as a whole (temporary file, fsync, rename). At the end of an epoch come,
in this order: snapshot (see `snapshots`), checkpoint, metrics line, event line. The checkpoint holds a copy of both
lines, so that a run killed between them loses nothing and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchreaper.lab import snapshots
from torchreaper.lab.checkpoints import DAMAGED, LAST, PREVIOUS, load_checkpoint, save_checkpoint
from torchreaper.lab.checksums import SUFFIX, digest_of, sidecar, write_checked, write_digest
from torchreaper.lab.errors import UserError, remedy, trouble
from torchreaper.lab.files import (
    Damaged,
    Json,
    append_line,
    encoded,
    encoded_lines,
    good_lines,
    read_yaml,
    rewrite_lines,
    write_json,
    write_whole,
)
from torchreaper.lab.reading import (
    AFRESH,
    ENVIRONMENT,
    EVENTS,
    METRICS,
    RECIPE,
    RESULT,
    read_environment,
    read_events,
    read_metrics,
    read_recipe,
    read_result,
)
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.records import EventLine, MetricsLine, good
from torchreaper.lab.settings import parse, show

__all__ = [
    "ENVIRONMENT",
    "ERROR",
    "EVENTS",
    "METRICS",
    "RECIPE",
    "RESULT",
    "RunFailed",
    "RunFolder",
    "folder_of",
    "read_events",
    "read_metrics",
    "read_recipe",
    "read_result",
    "run_of",
    "write_error",
]

ERROR = "error.txt"
# Nothing else in a run folder is ever touched, but its snapshots.
_FILES = (RESULT, LAST, PREVIOUS, METRICS, EVENTS, ENVIRONMENT, RECIPE)
_TRAINED = (RESULT, LAST, PREVIOUS, METRICS, EVENTS, LAST + DAMAGED, PREVIOUS + DAMAGED)
# Of a recipe, these do not change a single run: how many runs there are, what the others do, what is kept on the way.
_NOT_OF_THE_RUN = ("seeds", "schemes", "profiles", "snapshots")


class RunFailed(UserError):  # noqa: N818  (the run failed; nobody made an error)
    """A run that cannot go on, with the place where it stopped; its last good checkpoint is kept."""


class _AnotherRun(UserError):  # noqa: N818
    """The folder holds a run of another recipe."""


def folder_of(out: Path, name: str, scheme: str, seed: int) -> Path:
    """Where the run of a recipe's `name` with `scheme` and `seed` lies."""
    return Path(out) / name / scheme / f"seed-{seed}"


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
        faults = dict(self._faults())
        if not faults:
            return read_result(self.path)
        state = load_checkpoint(self.path, lambda text: None, mend=False)
        if state is None:
            return self._without_checkpoint(faults, note)
        self.check(state["run"])
        for name, error in faults.items():
            note(f"{self._wrong(name, error)}; the run is gone on with from its checkpoint, which mends what it can")
        return None

    def _without_checkpoint(self, faults: dict[str, UserError | None], note: Callable[[str], None]) -> Json | None:
        """As `_look`, where there is nothing to make anything anew from: a result that is good stands."""
        broken = {name: error for name, error in faults.items() if error is not None and name != ENVIRONMENT}
        if isinstance(error := broken.get(RECIPE), Damaged) and not self._trained():
            note(f"{error.what}; nothing was trained yet, it is written anew")
            return None
        for error in broken.values():
            raise Damaged(error.what, AFRESH) if isinstance(error, Damaged) else error
        for name, error in faults.items():
            note(f"{self._wrong(name, error)}; there is no checkpoint to mend it from, the result stands")
        return read_result(self.path)

    def _wrong(self, name: str, error: UserError | None) -> str:
        return f"{self.path / name}: {'is gone' if error is None else 'is damaged'}"

    def _trained(self) -> bool:
        """Whether there is anything that training has made."""
        return any((self.path / name).exists() for name in _TRAINED) or bool(snapshots.find(self.path))

    def _faults(self) -> Iterator[tuple[str, UserError | None]]:
        """The small files that are damaged, or gone (None), in a run that has been begun, or finished.

        Raises `UserError` where the folder holds a run of another recipe.
        """
        finished = (self.path / RESULT).exists()
        try:
            if not self._recipe_stands() and finished:
                yield RECIPE, None
        except UserError as error:
            if isinstance(error, _AnotherRun) and not self._is_ours():
                raise
            yield RECIPE, error
        readers: dict[str, Callable[[Path], object]] = {
            RESULT: read_result,
            METRICS: read_metrics,
            EVENTS: read_events,
            ENVIRONMENT: read_environment,
        }
        for name, read in readers.items() if finished else ():
            try:
                if read(self.path) is None:
                    yield name, None
            except UserError as error:
                yield name, error

    def _recipe_stands(self) -> bool:
        """Whether `recipe.yaml` is there; `UserError` where it is damaged, or of another run."""
        there = read_yaml(self.path / RECIPE)
        if there is not None:
            self.check(run_of(there, seed=self.run["seed"]))
        return there is not None

    def _is_ours(self) -> bool:
        """Whether there is a checkpoint and it is of this run: it has a checksum, `recipe.yaml` has none."""
        state = load_checkpoint(self.path, lambda text: None, mend=False)
        return state is not None and not list(_differences(_completed(state["run"]), self.run))

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
            for log in (METRICS, EVENTS):  # they will change
                sidecar(self.path / log).unlink(missing_ok=True)
            try:
                stands = self._recipe_stands()
            except UserError:  # `look` has found the checkpoint to be this run's
                stands = False
            if not stands:
                write_whole(self.path / RECIPE, yaml.safe_dump(recipe, sort_keys=False).encode())
        except OSError as error:
            what = remedy(error, "choose a folder that can be written")
            raise UserError(f"out={self.path}: {error.strerror}; {what}") from error

    def _sweep(self) -> None:
        """Delete what a killed run was writing."""
        for name in (*_FILES, ERROR):
            for path in self.path.glob(f"{name}*.tmp"):
                path.unlink(missing_ok=True)  # the lock keeps nobody from writing the error of a run that it refused

    def check(self, there: Json) -> None:
        """Raise `UserError` where `there`, the run that was found here, is another than this one."""
        differences = list(_differences(_completed(there), self.run))
        if differences:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise _AnotherRun(
                f"out={self.path}: holds a run of another recipe: {', '.join(differences[:3])}{more}; "
                "choose another out or name, or delete that folder"
            )

    def environment(self, now: Json, *, epoch: int) -> None:
        """Write down where the run was begun, or where it was continued after `epoch` epochs."""
        path = self.path / ENVIRONMENT
        try:
            began = read_environment(self.path) if epoch else None
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
        logs = {name: digest_of(_content(self.path / name)) for name in (METRICS, EVENTS)}  # before those lines
        save_checkpoint(self.path, {**state, "run": self.run, "epoch": epoch, "lines": lines, "logs": logs})
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
        for name, there in ((METRICS, [] if missing else list(metrics.values())), (EVENTS, events)):
            known = state.get("logs", {}).get(name)  # older versions wrote none
            if known not in (None, digest_of(encoded_lines(there))) and not (missing and name == METRICS):
                note(f"{self.path / name}: was damaged, lines are lost or changed; training is not affected")
        rewrite_lines(self.path / METRICS, [*metrics.values(), lines["metrics"]])
        rewrite_lines(self.path / EVENTS, [*events, *lines["events"]])

    def finish(self, result: Json) -> None:
        """Write the checksums of the logs, then `result.json`, the mark of a finished run."""
        for log in (self.path / METRICS, self.path / EVENTS):
            if log.exists():
                write_digest(log, digest_of(log.read_bytes()))
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
            for suffix in ("", SUFFIX, DAMAGED):
                (self.path / (name + suffix)).unlink(missing_ok=True)
        snapshots.delete(self.path)


def _content(path: Path) -> bytes:
    """What a file holds; nothing where it is missing."""
    return path.read_bytes() if path.exists() else b""


def _good(path: Path, kind: type[MetricsLine | EventLine]) -> list[Json]:
    return [line for line in good_lines(path) if good(kind, line)]


def run_of(recipe: Json, *, seed: int) -> Json:
    """What makes two runs the same: the recipe with one scheme's options, and the seed."""
    # How often it is judged changes nothing, unless the epoch that counts is chosen among those that are judged.
    judging = ("eval_every",) if recipe.get("report") == "last" else ()
    return {**{key: value for key, value in recipe.items() if key not in (*_NOT_OF_THE_RUN, *judging)}, "seed": seed}


def _completed(run: Json) -> Json:
    """A run that an older version wrote, with what recipes have learnt to say since: the defaults it was run with."""
    recipe = {key: value for key, value in run.items() if key != "seed"}
    try:
        return run_of(parse(Recipe, recipe).canonical(), seed=run["seed"])
    except (UserError, KeyError):
        return run


def _differences(there: Any, here: Any, key: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}, key=str):
            inner = " ".join(str(name).split())
            yield from _differences(there.get(name), here.get(name), f"{key}.{inner}" if key else inner)
    elif there != here:
        yield f"{key} is {show(there)} there, {show(here)} here"
