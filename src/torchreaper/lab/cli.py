"""The command ``reaper``: train, compare, inspect.

Only the package itself is imported before a command needs more: data, plotting and statistics libraries take seconds.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from torchreaper.errors import NoEffectWarning, OneLayerWarning, ReaperError
from torchreaper.lab import console as screen
from torchreaper.lab.errors import UserError

if TYPE_CHECKING:
    from torchreaper.lab.recipe import Recipe

FAILED, WRONG, INTERRUPTED = 1, 2, 130
EXAMPLES = """\b
Examples:
  reaper train recipes/demo.yaml
  reaper compare recipes/demo.yaml --schemes standard,repr --seeds 3
  reaper inspect resnet20 --fraction 0.3
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


class OneLine(TyperGroup):
    """Wrong options and arguments as one line, like every other error."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command; with ``standalone_mode`` end the process with its exit code."""
        run = functools.partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's own errors, whichever package they live in
                raise
            print(f"error: {_one_line(error.format_message())}", file=sys.stderr)
            sys.exit(getattr(error, "exit_code", WRONG))
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=OneLine, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EXAMPLES
)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)]
Profile = Annotated[
    str | None, typer.Option(metavar="NAME", help="Profile of the recipe, such as quick.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the recipe, such as optim.lr=0.1; repeatable.", show_default=False
    ),
]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the run folders are.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="CPU threads of torch.", show_default="torch's choice")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No bar; results only, as when not on a terminal.")]


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
    with _guarded(debug, resumable=True):
        loaded = _load(recipe, profile, overrides)
        name = scheme or str(loaded.scheme["name"])
        loaded.scheme_spec(name)
        _check_out(out)
        _use_threads(threads)
        from torchreaper.lab.compare import run
        from torchreaper.lab.runs import RunFailed, folder_of

        console = screen.stdout()
        try:
            with screen.progress_on(console, quiet=quiet) as progress:
                run(loaded, name, seed, out, progress, device=device)
        except RunFailed as error:
            _fail(str(error), FAILED, debug=debug)
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
    with _guarded(debug, resumable=True):
        loaded = _load(recipe, profile, overrides)
        count = loaded.seeds if seeds is None else seeds
        from torchreaper.lab import compare as comparing

        names = comparing.named(loaded, schemes)
        comparing.check(loaded, names, count)
        _check_out(out)
        _use_threads(threads)
        console = screen.stdout()
        with screen.progress_on(console, quiet=quiet, runs=len(names) * count) as progress:
            comparison = comparing.compare(loaded, names, count, out, progress, device=device)
        from torchreaper.lab import report

        screen.show_table(console, *comparing.table(comparison))
        for note in comparing.notes(comparison):
            screen.say(console, note)
        drawn = report.draw(out, loaded.name, {summary.scheme: summary.seeds for summary in comparison.schemes})
        screen.show_paths(console, [out / loaded.name / f"{comparing.NAME}.md", *drawn])
        if comparison.failures:
            raise typer.Exit(FAILED)


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
    with _guarded(debug):
        size = _image_size(image)
        named = _is_recipe(target)
        if profile is not None and not named:
            raise UserError(f"profile={profile!r}: has no effect without a recipe; leave it out")
        from torchreaper.lab import inspection

        bank, preview = inspection.inspect(
            _load(target, profile, overrides) if named else None,
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


def _load(path: str, profile: str | None, overrides: list[str] | None) -> Recipe:
    from torchreaper.lab.recipe import load_recipe

    return load_recipe(path, profile=profile, overrides=tuple(overrides or ()))


def _image_size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"image={text!r}: must be channels x height x width, such as 3x32x32")
    channels, height, width = (int(number) for number in match.groups())
    return channels, height, width


def _check_out(out: Path) -> None:
    """Refuse a folder that cannot be written before anything is loaded; make nothing."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"out={out}: {nearest} is a file; choose a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"out={out}: {nearest} cannot be written; choose another folder")


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _guarded(debug: bool, *, resumable: bool = False) -> Iterator[None]:
    """Errors of the user as one line on stderr and exit code 2; our warnings as one line, others' not at all."""
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
            for category in (NoEffectWarning, OneLayerWarning):
                warnings.simplefilter("default", category)
            warnings.showwarning = _show_warning
        try:
            yield
        except (UserError, ReaperError) as error:
            _fail(str(error), WRONG, debug=debug)
        except KeyboardInterrupt:
            more = "; finished epochs are kept: give the same command again to go on" if resumable else ""
            _fail(f"interrupted{more}", INTERRUPTED, debug=False, head="")
        except BrokenPipeError:  # `reaper ... | head`: typer ends quietly
            raise
        except OSError as error:  # a full disk, a file that vanished
            _fail(str(error), FAILED, debug=debug)


def _fail(message: str, code: int, *, debug: bool, head: str = "error: ") -> NoReturn:
    if debug:
        traceback.print_exc()
    print(head + _one_line(message), file=sys.stderr)
    raise typer.Exit(code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {_one_line(str(message))}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
