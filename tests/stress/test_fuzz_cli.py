"""The command `reaper` with wrong arguments: an exit code, one line, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.tiny import TINY
from tests.stress.mutating import fuzzing, misspelt, quickly
from tests.stress.recording import lengths
from typer.testing import CliRunner

from torchreaper.lab import cli

#: Commands that end quickly where they are right, and what their options take.
COMMANDS: dict[str, list[list[str]]] = {
    "new": [["x.yaml", "--model", "cnet", "--data", "digits"], ["x.yaml", "--model", "timm:resnet18"], []],
    "train": [["tiny.yaml", "--scheme", "repr", "--seed", "0", "--device", "cpu", "--set", "epochs=1"]],
    "compare": [["tiny.yaml", "--schemes", "standard", "--seeds", "1", "--detect", "1.0", "--jobs", "1"]],
    "report": [["runs"], ["runs/tiny", "--out", "page.html"]],
    "inspect": [
        ["tiny.yaml", "--fraction", "0.3", "--criterion", "magnitude"],
        ["cnet", "--set", "depth=2", "--image", "1x8x8", "--classes", "10", "--seed", "1"],
    ],
    "analyze": [["runs/tiny/repr/seed-0", "--images", "20", "--criteria", "magnitude", "--split", "test"]],
    "schemes": [["repr"], []],
    "recipes": [["empty"], ["--copy", "demo"]],
    "timm-train": [["pictures", "--model", "resnet18", "--epochs", "1", "--batch-size", "4"]],
}
WORDS = [
    *("", "-", "--", "--help", "--set", "--set=", "=", "a=b", "--debug", "-1", "0", "1", "1e400", "nan", "inf", "true"),
    *("99999999999999999999999", "-99999999999999999999", "0.3", "1.5", "3x0x3", "99999x99999x99999", "1x1x1", "x"),
    *("epochs=0", "epochs=[", "optim.lr=.nan", "model.name=resnet20", "data.limit=5", "scheme={name: repr", "a" * 999),
    *("repr", "standard,repr", "kd", "all", ",", "repr+kd", "no-such", "os:getcwd", "timm:", "torchvision:x", "/dev"),
    *("/dev/null", "/proc/self/mem", ".", "..", "nowhere/x", "tiny.yaml", "runs", "empty", "\u202e", "\udcff", "a\nb"),
    *("--profile", "quick", "--jobs", "--ray", "--ray=", "--out", "--seeds", "--device", "cuda", "mps", "--option"),
    *("--model", "--data", "--criteria", "--layers", "--grid", "--images", "--threads", "--devices", "--nodes"),
]
#: What would take long, or leave this machine: not the business of this test.
_LONG = ("--ray", "--jobs", "--devices", "--nodes")


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """The arguments of a command, with some of them wrong."""
    command = draw(st.sampled_from(list(COMMANDS)))
    args = list(draw(st.sampled_from(COMMANDS[command])))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(args)))
        match draw(st.sampled_from(["put", "replace", "replace", "remove", "misspell", "number"])):
            case "put":
                args.insert(place, draw(st.sampled_from(WORDS)))
            case "replace" if place < len(args):
                args[place] = draw(st.sampled_from(WORDS))
            case "remove" if place < len(args):
                del args[place]
            case "misspell" if place < len(args):
                args[place] = draw(misspelt(args[place])).replace("\x00", "")
            case "number" if place < len(args):
                args[place] = str(draw(st.integers() | st.floats()))
            case _:
                args.append(draw(st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=5)))
    if draw(st.integers(0, 30)) == 0:
        command = draw(misspelt(command)).replace("\x00", "")
    return [command, *args]


def tame(args: list[str]) -> bool:
    """Whether nothing in the arguments starts other processes or trains for long."""
    return not any(one.split("=")[0] in _LONG for one in args) and "--help" not in args


def everything(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def held(args: list[str], code: int, out: str, err: str, before: dict, folder: Path) -> None:
    """What has to hold of a call of the command."""
    lines = err.splitlines()
    assert code in (0, 1, 2), (args, code)
    assert "Traceback" not in out + err, (args, err)
    if code == 2 and args[0] in COMMANDS:
        assert len([line for line in lines if line.startswith("error: ")]) == 1, (args, err)
        assert lines[-1].startswith("error: "), (args, err)
        assert everything(folder) == before, args


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recipe and a run, which is the current one."""
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {**TINY, "epochs": 3, "scheme": {"name": "repr", "full": 1, "sub": 1, "cycles": 1}}
    Path("tiny.yaml").write_text(yaml.safe_dump({**values, "profiles": {"quick": {"batch": 30}}}))
    Path("empty").mkdir()
    before = torch.get_num_threads()
    done = CliRunner().invoke(cli.app, ["train", "tiny.yaml", "--threads", "1"])
    assert done.exit_code == 0, done.output
    yield tmp_path
    torch.set_num_threads(before)


def tidy(folder: Path, before: dict[str, bytes | None]) -> None:
    """Take away what a call that was right after all has written."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if str(path) not in before:
            path.rmdir() if path.is_dir() else path.unlink()
    for name, content in before.items():
        if content is not None and (not Path(name).is_file() or Path(name).read_bytes() != content):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)


@lengths(30, 400)
def test_wrong_arguments_end_in_one_line_and_write_nothing(times, trials, place, monkeypatch):
    count = trials(
        "bad input",
        "arguments of all commands misspelt, missing, doubled, of wrong types and ranges: exit code 0, 1 or 2; for 2 "
        "one line, and nothing written",
        "calls",
    )
    before, codes = everything(place), {0: 0, 1: 0, 2: 0}
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    @fuzzing(times)
    @given(arguments().filter(tame))
    def holds(args):
        with count.one(), warnings.catch_warnings():
            with quickly(60):
                done = CliRunner().invoke(cli.app, args, prog_name="reaper")
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            try:
                held(args, done.exit_code, done.stdout, done.stderr, before, place)
            finally:
                tidy(place, before)
            codes[done.exit_code] += 1

    holds()
    count.note = f"{codes[0]} ended with 0, {codes[1]} with 1, {codes[2]} with 2"
    assert codes[2]


@lengths(1, 15)
def test_so_do_real_processes(times, trials, place):
    count = trials("bad input", "the same, each in a process of its own", "processes")
    before = everything(place)

    @fuzzing(times)
    @given(arguments().filter(tame))
    def holds(args):
        command = [sys.executable, "-c", "from torchreaper.lab.cli import main; main()", *args]
        try:
            command = [os.fsencode(one) for one in command]
        except UnicodeEncodeError:  # no process can be given it
            return
        with count.one():
            try:
                done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=300, check=False)
                out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
                held(args, done.returncode, out, err, before, place)
            finally:
                tidy(place, before)

    holds()
