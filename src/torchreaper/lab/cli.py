"""The command ``reaper``: train, compare, report, inspect, analyze.

Only the package itself is imported before a command needs more: data, plotting and statistics libraries take seconds.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from torchreaper.lab import console as screen
from torchreaper.lab.command_line import (
    FAILED,
    WRONG,
    Debug,
    Device,
    OneLine,
    Out,
    Overrides,
    Profile,
    Quiet,
    RecipePath,
    Threads,
    check_out,
    fail,
    guarded,
    load,
    use_threads,
)
from torchreaper.lab.errors import UserError

EXAMPLES = """\b
Examples:
  reaper train recipes/demo.yaml
  reaper compare recipes/demo.yaml --schemes standard,repr --seeds 3
  reaper report runs/demo
  reaper inspect resnet20 --fraction 0.3
  reaper analyze runs/demo
"""
EXAMPLE_TRAIN = """\b
Example:
  reaper train recipes/demo.yaml --scheme repr --seed 1 --set optim.lr=0.05
"""
EXAMPLE_COMPARE = """\b
Example:
  reaper compare recipes/demo.yaml --schemes standard,repr --seeds 3 --out runs
"""
EXAMPLE_INSPECT = """\b
Examples:
  reaper inspect recipes/demo.yaml
  reaper inspect cnet --set depth=8 --image 3x32x32 --classes 10 --fraction 0.5
"""
EXAMPLE_REPORT = """\b
Examples:
  reaper report runs/demo
  reaper report runs --out all.html
"""
EXAMPLE_ANALYZE = """\b
Examples:
  reaper analyze runs/demo/repr/seed-0
  reaper analyze runs/demo --images 500
  reaper analyze model.pt --recipe recipes/demo.yaml
  reaper analyze model.pt --recipe data.yaml --model mynets.small:make --option width=32
"""


app = typer.Typer(
    cls=OneLine, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EXAMPLES
)


def main() -> None:
    """The entry point."""
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


@app.command(epilog=EXAMPLE_TRAIN)
def train(
    recipe: RecipePath,
    scheme: Annotated[
        str | None, typer.Option(metavar="NAME", help="Scheme to train with.", show_default="the recipe's own")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="K", min=0, help="Seed of weights, data order and scheme.")] = 0,
    profile: Profile = None,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Train one network. Given again, goes on where it was killed; a finished run is shown, not repeated."""
    with guarded(debug, resumable=True):
        loaded = load(recipe, profile, overrides)
        name = scheme or str(loaded.scheme["name"])
        loaded.scheme_spec(name)
        check_out(out)
        use_threads(threads)
        from torchreaper.lab.compare import run
        from torchreaper.lab.runs import RunFailed, folder_of

        console = screen.stdout()
        try:
            with screen.progress_on(console, quiet=quiet) as progress:
                run(loaded, name, seed, out, progress, device=device)
        except RunFailed as error:
            fail(str(error), FAILED, debug=debug)
        if not quiet:
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
    profile: Profile = None,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Train every scheme with the same seeds and say whether they differ. Finished runs are not repeated."""
    with guarded(debug, resumable=True):
        loaded = load(recipe, profile, overrides)
        count = loaded.seeds if seeds is None else seeds
        from torchreaper.lab import compare as comparing
        from torchreaper.lab import comparison as found

        names = comparing.named(loaded, schemes)
        comparing.check(loaded, names, count)
        check_out(out)
        use_threads(threads)
        console = screen.stdout()
        with screen.progress_on(console, quiet=quiet, runs=len(names) * count) as progress:
            comparison = comparing.compare(loaded, names, count, out, progress, device=device)
        from torchreaper.lab import report

        screen.show_table(console, *found.table(comparison))
        for note in found.notes(comparison):
            screen.say(console, note)
        drawn = report.draw(out, loaded.name, {summary.scheme: summary.seeds for summary in comparison.schemes})
        screen.show_paths(console, [out / loaded.name / f"{found.NAME}.md", *drawn])
        screen.say(console, f"As one page: reaper report {out / loaded.name}")
        if comparison.failures:
            raise typer.Exit(FAILED)


@app.command(epilog=EXAMPLE_REPORT, short_help="Make one HTML page of a comparison, to look at and to send.")
def report(
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="What compare wrote, such as runs/demo; or a folder of several such."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the page goes.", show_default="report.html in OUT")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make one HTML page of what compare and analyze wrote; of unfinished runs, what there is.

    The page needs no network and holds all it shows: about 5 MB, most of it the plotting library.
    """
    with guarded(debug):
        from torchreaper.lab.report.page import write_page

        screen.show_paths(screen.stdout(), [write_page(target, out)[0]])


@app.command(epilog=EXAMPLE_ANALYZE, short_help="Which filters overlap, which matter, which criterion knows it?")
def analyze(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="TARGET",
            help="Run folder, folder of a scheme's seeds or a recipe's schemes, checkpoint file; up to 4 side by side.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Of checkpoint files: which data, which network.", show_default=False),
    ] = None,
    profile: Profile = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of checkpoint files: another network than the recipe's, by name or as package.module:callable.",
            show_default=False,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Argument of --model; repeatable.", show_default=False),
    ] = None,
    criteria: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Criteria to hold against the oracle.", show_default="all")
    ] = None,
    images: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images to look at; the paper's oracle had 5,000.")
    ] = 1000,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of which: validation, test or train.", show_default="validation, or without it test"
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Layers to correlate (CCA), at most 4.", show_default="up to 4 of all"),
    ] = None,
    grid: Annotated[int, typer.Option(metavar="N", min=1, help="Cells of a feature map, each way, in CCA.")] = 4,
    skip: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Layers to leave out, such as first.", show_default="none")
    ] = None,
    over_time: Annotated[
        bool, typer.Option("--over-time/--last-only", help="Look at the snapshots of runs too, or not.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where tables and figures go.", show_default="analysis, beside the runs"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="K", min=0, help="Of the choice of images and of random numbers.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    debug: Debug = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bar, no tables: paths only.")] = False,
) -> None:
    """Look at trained networks, RePr or not: overlap, greedy oracle, criteria, correlations; as tables and figures."""
    with guarded(debug):
        if recipe is None and (useless := (profile and "profile") or (overrides and "set")):
            raise UserError(f"{useless}: has no effect without --recipe; leave it out")
        if out is not None:
            check_out(out)
        use_threads(threads)
        from torchreaper.lab import analyze as analyzing
        from torchreaper.lab import inspection
        from torchreaper.lab.report.analysed import draw_analysis

        settings = analyzing.Settings(
            criteria=_listed(criteria),
            images=images,
            split=split,
            layers=_listed(layers),
            grid=grid,
            skip=_listed(skip),
            over_time=over_time,
            seed=seed,
            device=device,
        )
        chosen = load(recipe, profile, overrides) if recipe else None
        subjects = analyzing.find_subjects(
            targets, chosen, model, inspection.options_of_network(option or (), "option")
        )
        folder = out or screen.beside(targets)
        check_out(folder)
        console = screen.stdout()
        notes: list[str] = []
        with screen.counting_on(console, quiet=quiet) as (tell, note):

            def noted(text: str) -> None:
                notes.append(text)
                note(text)

            found = analyzing.analyze(subjects, settings, tell=tell, note=noted)
        drawn = draw_analysis(found, folder)
        written = analyzing.write(found, folder, settings, notes, drawn)
        if not quiet:
            for line in analyzing.accuracy_lines(found):
                screen.say(console, line)
            screen.show_table(console, *analyzing.agreement_table(found))
            screen.show_table(console, *analyzing.layer_table(found))
        screen.show_paths(console, [*written, *drawn])


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


@app.command(epilog=EXAMPLE_INSPECT, short_help="Show the filters of a network and which would go.")
def inspect(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL", help="Recipe file or name of a network.", show_default=False)
    ],
    fraction: Annotated[
        float | None, typer.Option(metavar="P", help="Share to drop.", show_default="the recipe's, or 0.3")
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How filters are ranked.", show_default="the recipe's, or orthogonality"),
    ] = None,
    profile: Profile = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the recipe, or an option of the network, such as depth=8; repeatable.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="CxHxW", help="Size of an image.", show_default="the recipe's data, or 3x32x32"),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Classes.", show_default="the recipe's data, or 10")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="K", min=0, help="Seed of the weights.")] = 0,
    debug: Debug = False,
) -> None:
    """Show the filters of an untrained network, and which of them would be dropped first."""
    with guarded(debug):
        size = _image_size(image)
        named = _is_recipe(target)
        if profile is not None and not named:
            raise UserError(f"profile={profile!r}: has no effect without a recipe; leave it out")
        from torchreaper.lab import inspection

        bank, preview = inspection.inspect(
            load(target, profile, overrides) if named else None,
            target,
            {} if named else inspection.options_of_network(overrides or ()),
            size=size,
            classes=classes,
            seed=seed,
            fraction=fraction,
            criterion=criterion,
        )
        console = screen.stdout()
        for text in (str(bank), "", str(preview)):
            screen.say(console, text)


def _is_recipe(target: str) -> bool:
    path = Path(target)
    return path.suffix.lower() in (".yaml", ".yml") or path.is_file() or len(path.parts) > 1


def _image_size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"image={text!r}: must be channels x height x width, such as 3x32x32")
    channels, height, width = (int(number) for number in match.groups())
    return channels, height, width
