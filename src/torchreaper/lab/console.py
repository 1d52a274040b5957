"""What the command line shows: bars while runs go on, one line per finished run, the table of a comparison."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from torchreaper.lab.errors import UserError, remedy
from torchreaper.lab.foreign import line, visible
from torchreaper.lab.wording import measure_of

if TYPE_CHECKING:  # both need torch, which takes longer to load than --help to answer
    import torchreaper as tr
    from torchreaper.lab.progress import Progress

REFRESH = 0.1  # seconds: a bar drawn more often costs small networks time, and nobody sees it
WIDE = 110  # columns: below, the line beside the bar is shortened
NO_WRAP = 1000  # columns of what goes to a file or a pipe
_BEFORE = re.compile(r"(teacher|source)-.+-[0-9a-f]{8}")  # the recipe of a training that others need, by its name


def stdout() -> Console:
    """Stdout, as wide as the terminal, or wide enough that nothing is wrapped in a file or a pipe."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what its encoding has no characters for
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=NO_WRAP)


@contextmanager
def progress_on(console: Console, *, quiet: bool, runs: int = 1) -> Iterator[Progress]:
    """A progress for ``runs`` runs: a bar on a terminal, else (or if ``quiet``) one line per finished run."""
    if quiet or not console.is_terminal:
        yield LineProgress(console)
        return
    with _bars(console, "{task.fields[status]}") as bars:
        yield BarProgress(bars, Total(bars, runs))


def _bars(console: Console, status: str, *, transient: bool = False) -> Bars:
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn(status, markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        expand=True,
        transient=transient,
    )


@contextmanager
def counting_on(
    console: Console, *, quiet: bool
) -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """Two functions: one told what is being done, how much of it is, and of how much; one told what to know.

    A bar on a terminal; else, on stderr, notes and, unless ``quiet``, a line for whatever is done.
    """
    if quiet or not console.is_terminal:

        def finished(what: str, done: int, of: int) -> None:
            if done == of and not quiet:
                print(f"{line(what)}: {of:,} of {of:,}", file=sys.stderr)

        yield finished, lambda text: print(f"note: {line(text)}", file=sys.stderr)
        return
    bars = _bars(console, "{task.completed:.0f} of {task.total:.0f}", transient=True)
    task = bars.add_task("", total=None, visible=False)

    def tell(what: str, done: int, of: int) -> None:
        what = line(what)
        if bars.tasks[task].description != what:
            bars.reset(task, description=what, total=of, visible=True)
        bars.update(task, completed=done)

    with bars:
        yield tell, lambda text: say(console, f"note: {text}")


def beside(targets: Sequence[Path]) -> Path:
    """The folder for what is found in ``targets``: in a run's or a comparison's own, or beside a checkpoint file."""
    if len(targets) == 1:
        target = targets[0]
        return target / "analysis" if target.is_dir() else target.with_name(f"{target.stem}-analysis")
    return Path(os.path.commonpath([target.absolute().parent for target in targets])) / "analysis"


class LineProgress:
    """One plain line per finished run on stdout; notes, which are rare and worth knowing, on stderr."""

    def __init__(self, console: Console, name: str = "") -> None:
        self._console, self._name = console, name

    def loading(self, what: str, done: int, total: int) -> None:
        """Ignored."""

    def start_run(self, title: str, epochs: int, batches: int, done: int) -> None:
        """Ignored."""

    def batch(self, epoch: int, batch: int, loss: float | None) -> None:
        """Ignored."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Ignored."""

    def transition(self, epoch: int, transition: tr.Transition) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """To stderr."""
        print(note_line(self._name, text), file=sys.stderr)

    def end_run(self, result: dict[str, Any]) -> None:
        """The line of the run."""
        say(self._console, run_line(result))

    def leave(self) -> None:
        """Ignored."""

    def beside(self, name: str) -> LineProgress:
        """The same, with the name in its notes."""
        return LineProgress(self._console, name)


class Total:
    """The bar over all runs, where there are several."""

    def __init__(self, bars: Bars, runs: int) -> None:
        self._bars, self._runs, self._finished = bars, runs, 0
        self._shares: dict[object, float] = {}
        self._task: TaskID | None = None
        if runs > 1:
            self._task = bars.add_task("all runs", total=float(runs), status=self._status())

    def move(self, run: object, share: float) -> None:
        """So much of a run, 0 to 1, is done."""
        self._shares[run] = share
        self._draw()

    def end(self, run: object) -> None:
        """A run has ended, well or not."""
        self._shares.pop(run, None)
        self._finished += 1
        if self._task is not None and self._finished >= self._runs:
            self._bars.remove_task(self._task)
            self._task = None
        self._draw()

    def _draw(self) -> None:
        if self._task is not None:
            done = self._finished + sum(self._shares.values())
            self._bars.update(self._task, completed=done, status=self._status())

    def _status(self) -> str:
        return f"{self._finished} of {self._runs} done"


class BarProgress:
    """A bar per run, and one over all runs; transitions and finished runs stay as lines."""

    def __init__(self, bars: Bars, total: Total, name: str = "") -> None:
        self._bars, self._total, self._name = bars, total, name
        self._task: TaskID | None = None
        self._title, self._epochs, self._batches = "", 1, 1
        self._loss: float | None = None
        self._last: dict[str, Any] = {}
        self._phase, self._next_phase = "", ""
        self._drawn = 0.0

    def loading(self, what: str, done: int, total: int) -> None:
        """A bar for as long as images are being read."""
        if self._task is None or self._title != what:
            self._end_task()
            self._title = what
            self._task = self._bars.add_task(f"reading {what} images", total=total, status="")
        self._bars.update(self._task, completed=done, status=f"{done:,} of {total:,}")
        if done == total:
            self._end_task()
            self._title = ""

    def start_run(self, title: str, epochs: int, batches: int, done: int) -> None:
        """A fresh bar, the first ``done`` epochs of it full already."""
        self._end_task()
        self._title, self._epochs, self._batches = line(title), epochs, max(1, batches)
        self._loss, self._last, self._phase, self._next_phase = None, {}, "", ""
        self._task = self._bars.add_task(
            self._title, total=epochs * self._batches, completed=done * self._batches, status=""
        )
        self._draw(done + 1, 0)

    def batch(self, epoch: int, batch: int, loss: float | None) -> None:
        """Move on, at most ten times a second."""
        self._loss = self._loss if loss is None else loss
        now = time.monotonic()
        if now - self._drawn >= REFRESH:
            self._drawn = now
            self._draw(epoch, batch)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Show the numbers of the epoch that has ended, and the phase of the one that begins."""
        looked = metrics.get("test_accuracy") is not None
        self._last = metrics if looked else {**metrics, "test_accuracy": self._last.get("test_accuracy")}
        self._phase, self._next_phase = self._next_phase or metrics["phase"], ""
        self._draw(int(metrics["epoch"]), self._batches)

    def transition(self, epoch: int, transition: tr.Transition) -> None:
        """A line that stays."""
        self._next_phase = "sub" if transition.kind == "drop" else "full"
        say(self._bars.console, f"{self._title}: {transition_line(epoch, transition)}")

    def note(self, text: str) -> None:
        """A line that stays."""
        say(self._bars.console, note_line(self._name, text))

    def end_run(self, result: dict[str, Any]) -> None:
        """The line of the run, in the place of its bar."""
        self.leave()
        say(self._bars.console, run_line(result))

    def leave(self) -> None:
        """Take the bar away."""
        self._end_task()
        self._total.end(self)

    def beside(self, name: str) -> BarProgress:
        """Another bar, below the same total."""
        return BarProgress(self._bars, self._total, name)

    def _draw(self, epoch: int, batch: int) -> None:
        if self._task is None:
            return
        done = (epoch - 1) * self._batches + batch
        wide = self._bars.console.width >= WIDE
        status = status_line(min(epoch, self._epochs), self._epochs, self._phase, self._loss, self._last, wide=wide)
        self._bars.update(self._task, completed=done, status=status)
        self._total.move(self, done / (self._epochs * self._batches))

    def _end_task(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def status_line(epoch: int, epochs: int, phase: str, loss: float | None, last: dict[str, Any], *, wide: bool) -> str:
    """The text beside the bar; accuracy and images per second are those of ``last``, a metrics line."""
    parts = [f"epoch {epoch}/{epochs}" if wide else f"{epoch}/{epochs}"]
    if phase:
        parts.append(f"{phase:<4}")
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if last.get("test_accuracy") is not None:
        share, judged = 100 * last["test_accuracy"], last.get("judged", "test")
        parts.append(f"{judged} {share:.2f} %" if wide else f"{share:.1f} %")
    if last.get("images_per_second"):
        parts.append(f"{last['images_per_second']:,.0f} images/s" if wide else f"{last['images_per_second']:,.0f}/s")
    return "  ".join(parts)


def transition_line(epoch: int, transition: tr.Transition, *, most: int = 4) -> str:
    """Such as ``epoch 20: 19 filters dropped (conv2 11, conv3 8)``."""
    counts = sorted(((len(filters), name) for name, filters in transition.filters.items()), reverse=True)
    where = ", ".join(f"{name} {count}" for count, name in counts[:most])
    if len(counts) > most:
        where += f", {len(counts) - most} layers more"
    total = sum(count for count, _ in counts)
    what = "dropped" if transition.kind == "drop" else "re-initialised" if transition.scores else "back"
    return f"epoch {epoch}: {total} filters {what} ({where})"


def note_line(name: str, text: str) -> str:
    """A note, and the run it is about where several go on."""
    return line(f"note: {name}: {text}" if name else f"note: {text}")


def run_line(result: dict[str, Any]) -> str:
    """One finished run: accuracy on what it was judged on, gap, epochs, time."""
    # A teacher is trained by a recipe of its own, and its scheme is that of the baseline.
    before = _BEFORE.fullmatch(str(result.get("recipe", "")))
    which = result["scheme"] if before is None else result["recipe"]
    if before and before[1] == "source":
        which = f"{which}, {result['scheme']}"
    return (
        f"{which} seed {result['seed']}: {measure_of(result)} {100 * result['test_accuracy']:.2f} %, "
        f"gap {100 * result['gap']:.2f}, {result['epochs']} epochs, {result['seconds']:.1f} s"
    )


def say(console: Console, text: str) -> None:
    """Print ``text`` as it is: brackets are brackets, and a pipe gets whole lines."""
    with _to_stdout():
        console.print(Text(visible(text)), soft_wrap=True)


@contextmanager
def _to_stdout() -> Iterator[None]:
    """Where stdout cannot be written (a file on a full disk), no run is to blame, and Python shall not try again."""
    try:
        yield
    except BrokenPipeError:  # `reaper ... | head`: typer ends quietly
        raise
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = remedy(error, "send it elsewhere")
        raise UserError(f"stdout: {error.strerror}; {what} and give the same command again") from None


def show_table(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> None:
    """A table, its first column to the left, the others to the right; where it is narrow, brackets get a line.

    ``words``: all columns to the left, as is usual where they hold no numbers.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    heads = [visible(head) for head in heads]
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    narrow = sum(widths) + 3 * len(widths) > console.width
    if narrow:
        rows = [[row[0], *(cell.replace(" [", "\n[").replace(" (", "\n(") for cell in row[1:])] for row in rows]
        heads = [head.replace(" ", "\n", 1) for head in heads]
    padding = (0, 1, 0, 0) if narrow else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding, header_style="bold")
    for number, head in enumerate(heads):
        # The first column holds names, to be typed in the next command: the others give way.
        table.add_column(Text(head), justify="left" if words or number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    with _to_stdout():
        console.print(table)


def show_paths(console: Console, paths: Sequence[Path]) -> None:
    """One path a line, so that terminals can open them."""
    for path in paths:
        say(console, str(path))
