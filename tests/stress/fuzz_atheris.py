"""Fuzzing that looks for inputs by the code they reach; started by test_fuzz_atheris.py, or by hand for longer.

    python -m tests.stress.fuzz_atheris recipe -runs=100000 -max_len=4096 CORPUS

Whatever a target lets through ends the process with a traceback and the input in a file, as libFuzzer does.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["torchreaper.lab", "yaml"]):
    from torchreaper.lab.data.opening import open_picture
    from torchreaper.lab.errors import UserError
    from torchreaper.lab.files import lines_of
    from torchreaper.lab.recipe import load_recipe
    from torchreaper.lab.records import EventLine, MetricsLine, Result, check, check_lines

ROOT = Path(__file__).parents[2]
HERE = Path(tempfile.mkdtemp(prefix="fuzz-"))


def recipe(data: bytes) -> None:
    """A recipe file."""
    path = HERE / "recipe.yaml"
    path.write_bytes(data)
    load_recipe(path)


def setting(data: bytes) -> None:
    """A ``--set``."""
    load_recipe(ROOT / "recipes" / "demo.yaml", overrides=[data.decode(errors="surrogateescape")])


def logs(data: bytes) -> None:
    """The lines of a log, and each as a result."""
    path = Path("metrics.jsonl")
    lines = lines_of(path, data)
    for line in lines:
        for kind in (Result, EventLine):
            with suppress(UserError):
                check(kind, line, "line")
    check_lines(MetricsLine, lines, path, each_once=True)


def picture(data: bytes) -> None:
    """The bytes of a picture: pixels, or an error of Pillow's that those who call turn into a line."""
    with suppress(OSError, ValueError, SyntaxError, EOFError, OverflowError, KeyError, IndexError, TypeError):
        open_picture({"bytes": data, "path": None}, "here", mode="RGB")


TARGETS = {"recipe": recipe, "setting": setting, "logs": logs, "picture": picture}


def main() -> None:
    """Fuzz the target that is named first; the rest is libFuzzer's."""
    target = TARGETS[sys.argv.pop(1)]
    warnings.simplefilter("ignore")

    def one(data: bytes) -> None:
        said = ""
        try:
            target(data)
        except UserError as error:
            said = str(error)
        assert "\n" not in said, said

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
