"""Standard training against RePr on the two examples of other shapes: a U-Net that segments, Conv1d on sequences.

python benchmarks/shapes.py                     # 5 paired seeds of both, into results/
python benchmarks/shapes.py --only timeseries   # one of them: prints, writes only where --out says
python benchmarks/shapes.py --quick             # does it run at all? 3 seeds, 6 epochs; writes nothing

The same seed means the same first weights, the same data and the same order. The score is the last epoch's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

from report import RESULTS, markdown_table, parse, parser, shown

from torchreaper.lab.environment import environment
from torchreaper.lab.statistics import estimate, format_p, paired_difference, verdict

EXAMPLES = {"segmentation": "mean IoU", "timeseries": "accuracy"}
SCHEMES = {"standard": [], "RePr": ["--repr"]}
COLUMNS = {
    **{"example": "example", "measure": "test, last epoch", "n": "n", "standard": "standard, %", "RePr": "RePr, %"},
    **{"difference": "RePr minus standard", "p": "p", "epoch": "sub-network epoch / full, median"},
}
NAME = "other-shapes"


def main(argv: Sequence[str] | None = None) -> int:
    """Train both ways with every seed; the exit status."""
    args = arguments(argv)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    where = environment(device=args.device, precision="32-true", base=Path.cwd())
    folder = args.out or (None if args.quick or args.only else RESULTS)
    runs: list[dict[str, Any]] = []
    for example in args.only or EXAMPLES:
        train = importlib.import_module(example).main
        for seed in range(args.repeats):
            for scheme, options in SCHEMES.items():
                print(f"{NAME}: {example}, {scheme}, seed {seed}", file=sys.stderr, flush=True)
                with redirect_stdout(StringIO()):
                    score, seconds = train([*options, "--seed", str(seed), *(["--epochs", "6"] if args.quick else [])])
                runs.append({"example": example, "scheme": scheme, "seed": seed, "score": score, "seconds": seconds})
            text = markdown(runs, where)
            if folder is not None:
                content = {"benchmark": NAME, "environment": where, "runs": runs}
                (folder / f"{NAME}-cpu.md").write_text(text + "\n")
                (folder / f"{NAME}-cpu.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    print(text)
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of all benchmarks, as far as they mean something here."""
    made = parser(__doc__ or "", repeats=5, nets=())
    made.add_argument("--only", metavar="EXAMPLE", action="append", choices=list(EXAMPLES), help=" or ".join(EXAMPLES))
    args = parse(made, argv)
    if args.device.type != "cpu":
        made.error(f"argument --device: {args.device.type}: the examples train on the CPU")
    return args


def markdown(runs: Sequence[dict[str, Any]], where: dict[str, Any]) -> str:
    """Table, verdicts and machine."""
    rows = [row(example, runs) for example in EXAMPLES if any(run["example"] == example for run in runs)]
    return "\n\n".join(
        [
            f"# {NAME}",
            markdown_table(COLUMNS, rows),
            "\n".join(f"- {one['example']}: {one['verdict']}" for one in rows),
            "- Scores are means over the seeds with 95 % t-intervals, the difference is of pairs, p of the paired "
            "t-test. Ratios of epochs: of every RePr run those of its median epochs, by wall clock; their median "
            "[smallest, largest].",
            f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, torchreaper {where['torchreaper']} "
            f"at {str(where['commit'])[:10]}, {where['date']}, {where['precision']}.",
        ]
    )


def row(example: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One example's line of the table, in percent and points."""
    mine = [run for run in runs if run["example"] == example]
    scores = {scheme: [100 * run["score"] for run in mine if run["scheme"] == scheme] for scheme in SCHEMES}
    difference = paired_difference(scores["RePr"], scores["standard"])
    ratios = sorted(median(s["sub"]) / median(s["full"]) for s in (r["seconds"] for r in mine if r["scheme"] == "RePr"))
    return {
        **{"example": f"`{example}.py`", "measure": EXAMPLES[example], "n": difference.n},
        **{scheme: shown(estimate(values)) for scheme, values in scores.items()},
        **{"difference": shown(difference, "+"), "p": format_p(difference.p).removeprefix("p = ")},
        "epoch": f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]",
        "verdict": verdict("RePr", "standard", difference),
    }


if __name__ == "__main__":
    sys.exit(main())
