"""The commands that train nothing: report, inspect, analyze, schemes, recipes.

Only the package itself is imported before a command needs more: data, plotting and statistics libraries take seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from torchreaper.lab import console as screen
from torchreaper.lab.command_line import (
    FAILED,
    LARGEST_SEED,
    Debug,
    Device,
    Overrides,
    Profile,
    Threads,
    check_out,
    guarded,
    load,
    use_threads,
)
from torchreaper.lab.errors import UserError

WIDE = 160  # columns: below, all about a recipe stands in one column
EXAMPLE_INSPECT = """\b
Examples:
  reaper inspect recipes/demo.yaml
  reaper inspect cnet --set depth=8 --image 3x32x32 --classes 10 --fraction 0.5
"""
EXAMPLE_SCHEMES = """\b
Examples:
  reaper schemes
  reaper schemes repr
"""
EXAMPLE_RECIPES = """\b
Examples:
  reaper recipes
  reaper compare paper/c3-32-cifar10 --profile quick
  reaper recipes --copy paper/c3-32-cifar10
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


def report(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="What compare wrote, such as runs/demo; or a folder of several.", show_default=False
        ),
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
    seed: Annotated[
        int, typer.Option(metavar="K", min=0, max=LARGEST_SEED, help="Of the choice of images and of random numbers.")
    ] = 0,
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
    seed: Annotated[int, typer.Option(metavar="K", min=0, max=LARGEST_SEED, help="Seed of the weights.")] = 0,
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


def schemes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Show the options of this one, or of package.module:Spec.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """What a network can be trained with: RePr, and what it is compared with. Combine them with +, such as repr+kd."""
    with guarded(debug):
        from torchreaper.lab import objects
        from torchreaper.lab import schemes as known
        from torchreaper.lab.settings import did_you_mean

        console = screen.stdout()
        if name is None:
            rows = [[key, spec.summary, spec.source] for key, spec in known.SCHEMES.items()]
            screen.show_table(console, ["scheme", "what it does", "source"], rows, words=True)
            return
        spec = known.imported(name, "scheme") if objects.is_object(name) else known.SCHEMES.get(name)
        if spec is None:
            raise UserError(f"scheme={name!r}: unknown scheme; {did_you_mean(name, known.SCHEMES)}")
        for line in known.describe(spec):
            screen.say(console, line)


def recipes(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="List the recipes below it.", show_default="those of the package, and of ./recipes"
        ),
    ] = None,
    copy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Copy this one of the package here, to edit it.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Which recipes there are, and what a paper reports for them. The package's go by name, others by their path."""
    with guarded(debug):
        from torchreaper.lab import library

        console = screen.stdout()
        if copy is not None:
            if folder is not None:
                raise UserError(f"folder={str(folder)!r}: has no effect with --copy; leave it out")
            screen.show_paths(console, [library.copy(copy)])
            return
        found = library.listing(folder)
        broken = [one for one in found if one.recipe is None]
        if not found:
            screen.say(console, "No recipes there.")
        elif len(broken) < len(found):
            screen.show_table(console, *library.table(found, narrow=console.width < WIDE), words=True)
        for one in broken:
            screen.say(console, f"broken: {one.name}: {one.problem}")
        if broken:
            raise typer.Exit(FAILED)
