"""What every benchmark has in common: its arguments, its table, and the files it leaves."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from measure import Estimate, short
from networks import KEYS, NETS, Net, available

from torchreaper.lab import statistics
from torchreaper.lab.environment import environment

RESULTS = Path(__file__).parent / "results"
Columns = Mapping[str, str]
"""Key of a row -> heading."""


def parser(doc: str, *, repeats: int, nets: Sequence[str] = KEYS) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--threads", type=positive, help="of torch on the CPU; default: torch's own choice")
    made.add_argument("--repeats", type=positive, help=f"samples of everything; default {repeats}, with --quick 3")
    made.add_argument("--quick", action="store_true", help="small batches and few samples: does it run at all?")
    made.add_argument("--out", type=Path, help="folder for the table and its JSON; default benchmarks/results")
    made.set_defaults(default_repeats=repeats, nets=tuple(nets))
    if nets:
        known = ", ".join(nets)
        made.add_argument("--only", metavar="NET", action="append", choices=nets, help=f"repeatable; one of {known}")
        made.add_argument("--batch", type=positive, help="images in a batch, for every network")
        made.add_argument("--channels-last", action="store_true", help="memory format")
        made.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed arguments, with ``device`` a ``torch.device``, and the threads set."""
    args = made.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        made.error("argument --device: torch finds no CUDA device here")
    if args.out is not None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            made.error(f"argument --out: {args.out}: {error.strerror}")
    args.device = torch.device(args.device)
    args.repeats = args.repeats or (3 if args.quick else args.default_repeats)
    if args.quick and args.nets:
        args.batch = args.batch or 2
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def chosen(args: argparse.Namespace) -> list[Net]:
    """The networks to measure, in order; those this version lacks are named on stderr."""
    wanted = [net for net in NETS if net.key in (args.only or args.nets)]
    for net in wanted:
        if not available(net):
            print(f"{net.key}: this version of torchreaper.lab has no {net.model}, left out", file=sys.stderr)
    return [net for net in wanted if available(net)]


def layout(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :class:`networks.Bench` that come from the command line."""
    return {"batch": args.batch, "channels_last": args.channels_last, "amp": args.amp}


class Report:
    """A table that grows by a row at a time; its files hold what there is so far."""

    def __init__(self, name: str, args: argparse.Namespace, tables: Mapping[str, Columns], notes: Sequence[str] = ()):
        self.name, self.args, self.tables, self.notes = name, args, tables, notes
        self.rows: dict[str, list[dict[str, Any]]] = {title: [] for title in tables}
        self.failed: list[str] = []
        precision = "bf16-mixed" if _amp(args) else "32-true"
        self.environment = environment(device=args.device, precision=precision, base=Path.cwd())

    def add(self, row: Mapping[str, Any], title: str | None = None) -> None:
        """One line more, and the files anew."""
        self.rows[title or next(iter(self.tables))].append(dict(row))
        self.write()

    def write(self) -> None:
        if (folder := self._folder()) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{self.name}-{self.args.device.type}"
            path.with_suffix(".md").write_text(self.markdown() + "\n")
            path.with_suffix(".json").write_text(json.dumps(self._content(), indent=1, default=_plain) + "\n")

    def each(self, items: Sequence[Any], measure: Callable[[Any], None]) -> int:
        """``measure`` each of the items; one that fails is reported and the others still run. The exit status."""
        for item in items:
            name = getattr(item, "key", str(item))
            print(f"{self.name}: {name}", file=sys.stderr, flush=True)
            try:
                measure(item)
            except Exception as error:
                traceback.print_exc()
                self.failed.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        self.write()
        print(self.markdown())
        if (folder := self._folder()) is not None:
            print(f"\nwritten to {folder}/{self.name}-{self.args.device.type}.md and .json", file=sys.stderr)
        return 1 if self.failed else 0

    def markdown(self) -> str:
        """Tables, what failed, notes, and the machine."""
        parts = [f"# {self.name}"]
        for title, columns in self.tables.items():
            if self.rows[title]:
                parts += [f"## {title}"] * (len(self.tables) > 1) + [markdown_table(columns, self.rows[title])]
        parts += [f"- FAILED {text}" for text in self.failed]
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in self.notes), self._where()])

    def _folder(self) -> Path | None:
        """Trials and parts do not replace what is kept, unless a folder is named."""
        part = self.args.quick or getattr(self.args, "only", None) or getattr(self.args, "largest", None)
        return self.args.out or (None if part else RESULTS)

    def _where(self) -> str:
        e = self.environment
        return (
            f"{e['gpu'] or e['cpu']}, {e['threads']} threads, torch {e['torch']}, torchreaper {e['torchreaper']} "
            f"at {str(e['commit'])[:10]}, {e['date']}, {e['precision']}. n = {self.args.repeats}. Numbers are medians "
            "[interval of the median, at least 95 % from n = 6; minimum to maximum below n = 9]."
        )

    def _content(self) -> dict[str, Any]:
        settings = {k: v for k, v in vars(self.args).items() if k not in ("default_repeats", "nets")}
        return {
            "benchmark": self.name,
            "environment": self.environment,
            "settings": settings,
            "tables": self.rows,
            "failed": self.failed,
        }


def markdown_table(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, its columns aligned for plain reading too."""
    cells = [list(columns.values()), *([_cell(row.get(key)) for key in columns] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def shown(found: statistics.Estimate, sign: str = "") -> str:
    """A mean with its interval, where there is one."""
    if found.low is None or found.high is None:
        return f"{found.mean:{sign}.2f}"
    return f"{found.mean:{sign}.2f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return short(value) if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """For JSON: what the encoder does not know."""
    if isinstance(value, Estimate) or is_dataclass(value):
        return asdict(value)
    return str(value)


def _amp(args: argparse.Namespace) -> bool:
    return getattr(args, "amp", False)


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value
