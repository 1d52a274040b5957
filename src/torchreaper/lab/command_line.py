"""What all commands share: their options, errors as one line, exit codes.

Only the package itself is imported before a command needs more: data, plotting and statistics libraries take seconds.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from torchreaper.errors import NoEffectWarning, OneLayerWarning, ReaperError
from torchreaper.lab import stopping
from torchreaper.lab.errors import LESS_MEMORY, UserError, remedy, trouble
from torchreaper.lab.foreign import line
from torchreaper.lab.launched import rank, several

if TYPE_CHECKING:
    from torchreaper.lab.recipe import Recipe

FAILED, WRONG = 1, 2
LARGEST_SEED = 2**63 - 1  # that torch's generators take


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
        args = with_ray_address(sys.argv[1:] if args is None else args)
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


def with_ray_address(args: Sequence[str]) -> list[str]:
    """``--ray`` may stand without an address: then it means a cluster of its own."""
    return [
        "--ray=local" if arg == "--ray" and all(after.startswith("-") for after in args[place : place + 1]) else arg
        for place, arg in enumerate(args, 1)
    ]


RecipePath = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Recipe file (YAML), or a name that reaper recipes lists.", show_default=False
    ),
]
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
Devices = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes that train one network together (DDP), each on a device of its own; they share every batch.",
        show_default="1, or what torchrun or Slurm started",
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Machines with so many processes each; start the command on all of them.",
        show_default="1, or what torchrun or Slurm started",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="32-true, bf16-mixed or 64-true; like --set precision=NAME.", show_default="the recipe's"
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=4096, help="CPU threads of torch.", show_default="torch's choice")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No bar; results only, as when not on a terminal.")]


def load(path: str, profile: str | None, overrides: list[str] | None) -> Recipe:
    """The recipe of a command."""
    from torchreaper.lab.library import find
    from torchreaper.lab.recipe import load_recipe

    return load_recipe(find(path), profile=profile, overrides=tuple(overrides or ()))


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be written before anything is loaded; make nothing."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if nearest.is_symlink() and not os.path.exists(nearest):
        raise UserError(f"out={out}: {nearest} is a link that leads nowhere; choose another folder")
    if not nearest.is_dir():
        raise UserError(f"out={out}: {nearest} is a file; choose a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"out={out}: {nearest} cannot be written; choose another folder")


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads on the CPU."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def guarded(debug: bool, *, resumable: bool = False) -> Iterator[None]:
    """Errors of the user as one line on stderr and exit code 2; our warnings as one line, others' not at all.

    A command that is told to stop, by Ctrl-C or SIGTERM, says so in one line too, and ends with the signal's exit code.
    """
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
            for category in (NoEffectWarning, OneLayerWarning):
                warnings.simplefilter("default", category)
            warnings.showwarning = _show_warning
        try:
            with _stoppable("; finished epochs are kept: give the same command again to go on" if resumable else ""):
                yield
        except (UserError, ReaperError) as error:
            fail(str(error), WRONG, debug=debug)
        except BrokenPipeError:  # `reaper ... | head`: typer ends quietly
            raise
        except OSError as error:  # a full disk, a file that vanished
            again = "give the same command again"
            fail(f"{trouble(error)}; {remedy(error)} and {again}", FAILED, debug=debug)
        except MemoryError:
            fail(f"memory ran out; {LESS_MEMORY}", FAILED, debug=debug)


@contextmanager
def _stoppable(more: str) -> Iterator[None]:
    with stopping.listening(functools.partial(leave, more=more)):
        try:
            yield
        except BaseException as error:  # whatever an order to stop has become on its way
            number = stopping.asked() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
            if number is None:
                raise
            stopping.end_others()
            _say_stopped(number, more)
            _leave_others(stopping.code(number))
            raise typer.Exit(stopping.code(number)) from None


def leave(number: int, _frame: Any = None, *, more: str = "") -> NoReturn:
    """End the process, which was told to stop by signal `number`, where it is, and those that it has started."""
    stopping.end_others()
    with suppress(RuntimeError):  # it is just writing to the same stream
        _say_stopped(number, more)
    _end_now(stopping.code(number))


def _say_stopped(number: int, more: str) -> None:
    if not rank():  # the first one speaks for all
        print(_one_line(f"{stopping.WORDS[number]}{more}"), file=sys.stderr)


@contextmanager
def leaving_others() -> Iterator[None]:
    """End a process of several, when the block exits, at once, with its exit code."""
    try:
        yield
    except SystemExit as end:
        _leave_others(end.code if isinstance(end.code, int) else int(bool(end.code)))
        raise


def _leave_others(code: int) -> None:
    """End a process of several at once: threads of their group, even if it is left, may abort Python's teardown."""
    if several() and "torch" in sys.modules:
        _end_now(code)


def _end_now(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(RuntimeError, OSError):  # as above, or nobody reads it any more
            stream.flush()
    os._exit(code)


def fail(message: str, code: int, *, debug: bool, head: str = "error: ") -> NoReturn:
    """Say in one line what is wrong, and end with an exit code."""
    if debug:
        traceback.print_exc()
    print(_of_rank() + head + _one_line(message), file=sys.stderr)
    raise typer.Exit(code)


def _of_rank() -> str:
    """Which of several processes speaks, where it is not the first."""
    return f"rank {rank()}: " if rank() else ""


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {_one_line(str(message))}", file=sys.stderr)


def _one_line(text: str) -> str:
    return line(text)
