"""The command ``reaper``: new, train, compare, report, inspect, analyze, timm-train.

Only the package itself is imported before a command needs more: data, plotting and statistics libraries take seconds.
"""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from torchreaper.lab import console as screen
from torchreaper.lab import stopping
from torchreaper.lab.cli_looking import (
    EXAMPLE_ANALYZE,
    EXAMPLE_INSPECT,
    EXAMPLE_RECIPES,
    EXAMPLE_REPORT,
    EXAMPLE_SCHEMES,
    analyze,
    inspect,
    recipes,
    report,
    schemes,
)
from torchreaper.lab.cli_timm import EXAMPLE_TIMM, timm_train
from torchreaper.lab.command_line import (
    FAILED,
    LARGEST_SEED,
    WRONG,
    Debug,
    Device,
    Devices,
    Nodes,
    OneLine,
    Out,
    Overrides,
    Precision,
    Profile,
    Quiet,
    RecipePath,
    Threads,
    check_out,
    fail,
    guarded,
    leave,
    leaving_others,
    load,
    use_threads,
)

EXAMPLES = """\b
Examples:
  reaper new mine.yaml
  reaper train recipes/demo.yaml
  reaper compare recipes/demo.yaml --schemes standard,repr --seeds 3
  reaper report runs/demo
  reaper inspect resnet20 --fraction 0.3
  reaper analyze runs/demo
"""
EXAMPLE_NEW = """\b
Examples:
  reaper new
  reaper new flowers.yaml --model timm:resnet18 --data folder
  reaper new mine.yaml --model mypackage.nets:Small --data mypackage.data:make
"""
EXAMPLE_TRAIN = """\b
Examples:
  reaper train recipes/demo.yaml --scheme repr --seed 1 --set optim.lr=0.05
  reaper train mine.yaml --devices 2 --precision bf16-mixed
  torchrun --nnodes 2 --nproc-per-node 8 ... $(which reaper) train mine.yaml
"""
EXAMPLE_COMPARE = """\b
Examples:
  reaper compare recipes/demo.yaml --schemes standard,repr --seeds 3 --out runs
  reaper compare recipes/demo.yaml --seeds 5 --jobs 2
"""


app = typer.Typer(
    cls=OneLine, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EXAMPLES
)


def main() -> None:
    """The entry point."""
    stopping.at_once(leave)
    with leaving_others():
        app(prog_name="reaper")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"torchreaper {version('torchreaper')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _reaper(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """RePr for PyTorch: drop the filters that overlap most, train without them, bring them back orthogonal."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(WRONG)


@app.command(epilog=EXAMPLE_NEW)
def new(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where the recipe goes.")] = Path("recipe.yaml"),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Network: of the zoo, timm:NAME, torchvision:NAME, package.module:callable; unset: small and usual.",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Images: digits, folder, parquet, hub, package.module:callable; boxes: coco; questions: easy-vqa.",
        ),
    ] = "digits",
    debug: Debug = False,
) -> None:
    """Write a recipe to start from, with a comment on every line. A file that is there is left alone."""
    with guarded(debug):
        from torchreaper.lab.starting import start

        start(file, model=model, data=data)
        screen.say(screen.stdout(), f"{file}: edit it, then: reaper compare {shlex.quote(str(file))}")


@app.command(epilog=EXAMPLE_TRAIN)
def train(
    recipe: RecipePath,
    scheme: Annotated[
        str | None, typer.Option(metavar="NAME", help="Scheme to train with.", show_default="the recipe's own")
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="K", min=0, max=LARGEST_SEED, help="Seed of weights, data order and scheme.")
    ] = 0,
    profile: Profile = None,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    device: Device = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
    precision: Precision = None,
    threads: Threads = None,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Train one network. Given again, goes on where it was killed; a finished run is shown, not repeated."""
    with guarded(debug, resumable=True):
        changed = [*(overrides or []), *([f"precision={precision}"] if precision else [])]
        loaded = load(recipe, profile, changed)
        name = scheme or str(loaded.scheme["name"])
        loaded.scheme_spec(name)
        check_out(out)
        from torchreaper.lab import processes
        from torchreaper.lab.compare import run
        from torchreaper.lab.progress import Silent
        from torchreaper.lab.runs import RunFailed, folder_of
        from torchreaper.ranks import leave_together

        fabric = processes.begin(device, loaded.precision, devices, nodes, batch=loaded.batch)
        use_threads(threads)
        console, speaks = screen.stdout(), fabric is None or fabric.is_global_zero
        try:
            shown = screen.progress_on(console, quiet=quiet or not speaks)
            with shown as progress:
                run(loaded, name, seed, out, progress if speaks else Silent(), device=device, fabric=fabric)
        except RunFailed as error:
            fail(str(error), FAILED, debug=debug)
        leave_together()
        if speaks and not quiet:
            screen.show_paths(console, [folder_of(out, loaded.name, name, seed)])


@app.command(epilog=EXAMPLE_COMPARE, short_help="Train schemes with the same seeds: do they differ?")
def compare(
    recipe: RecipePath,
    schemes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Schemes; the first is the baseline. all: standard, the recipe's own, and its schemes section.",
            show_default="standard and the recipe's own",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Seeds of each scheme.", show_default="the recipe's")
    ] = None,
    detect: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            min=0.01,
            max=100,
            help="Difference worth seeing: where none shows, say how many seeds it takes.",
        ),
    ] = 1.0,
    profile: Profile = None,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    jobs: Annotated[
        int, typer.Option(metavar="N", help="Runs at once, each in a process of its own; they share cores and GPU.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS]", help="Run on a Ray cluster; without address on one started here."),
    ] = None,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Train every scheme with the same seeds and say whether they differ. Finished runs are not repeated."""
    with guarded(debug, resumable=True):
        loaded = load(recipe, profile, overrides)
        count = loaded.seeds if seeds is None else seeds
        from torchreaper.lab import compare as comparing
        from torchreaper.lab import comparison as found
        from torchreaper.lab.execution import choose

        executor = choose(jobs=jobs, ray=ray, threads=threads)
        names = comparing.named(loaded, schemes)
        comparing.check(loaded, names, count)
        check_out(out)
        use_threads(threads)
        console = screen.stdout()
        with screen.progress_on(console, quiet=quiet, runs=comparing.to_do(loaded, names, count, out)) as progress:
            comparison = comparing.compare(
                loaded, names, count, out, progress, device=device, executor=executor, detect=detect
            )
        from torchreaper.lab import report

        if comparison.schemes:
            screen.show_table(console, *found.table(comparison))
        if (parts := found.parts_table(comparison))[1]:
            screen.show_table(console, *parts)
        for note in found.notes(comparison):
            screen.say(console, note)
        drawn = report.draw(out, loaded.name, {summary.scheme: summary.seeds for summary in comparison.schemes})
        screen.show_paths(console, [out / loaded.name / f"{found.NAME}.md", *drawn])
        screen.say(console, f"As one page: reaper report {out / loaded.name}")
        if comparison.failures:
            raise typer.Exit(FAILED)


app.command(epilog=EXAMPLE_REPORT, short_help="Make one HTML page of a comparison, to look at and to send.")(report)
WHAT_ANALYZE = "Which filters overlap, which matter, which criterion knows it?"
app.command(epilog=EXAMPLE_ANALYZE, short_help=WHAT_ANALYZE)(analyze)
app.command(epilog=EXAMPLE_INSPECT, short_help="Show the filters of a network and which would go.")(inspect)
app.command(epilog=EXAMPLE_SCHEMES, short_help="Which schemes there are, and their options.")(schemes)
app.command(epilog=EXAMPLE_RECIPES, short_help="Which recipes there are, and what a paper reports for them.")(recipes)
WHAT_TIMM = "Train a timm model by timm's own parts, with RePr."
app.command("timm-train", epilog=EXAMPLE_TIMM, short_help=WHAT_TIMM)(timm_train)
