"""The Python in the documents runs, from top to bottom, as it is printed there; commands, links and numbers hold."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import warnings
from inspect import ismodule
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
import yaml
from torch.distributed.run import get_args_parser

import torchreaper as tr
from tests.readers import DOCS, FENCE, PAGES, ROOT, STACKS, Reading, of_the_reader, readings
from torchreaper.criteria import base
from torchreaper.lab import schemes
from torchreaper.lab.cli import app
from torchreaper.lab.command_line import with_ray_address

README = (ROOT / "README.md").read_text()
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def _name(reading: Reading) -> str:
    return f"{reading.page.relative_to(DOCS)} {reading.part}".strip()


def _marks(reading: Reading) -> list[pytest.MarkDecorator]:
    if reading.page.name != "after.md":
        return []
    return [  # of what exports to ONNX and quantizes
        pytest.mark.filterwarnings("ignore::DeprecationWarning"),
        pytest.mark.filterwarnings("ignore::FutureWarning"),
    ]


# What the stacks say of torch, and of data sets as small as these.
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is an Enum subclass:UserWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize("reading", [pytest.param(one, id=_name(one), marks=_marks(one)) for one in readings()])
def test_python(reading, monkeypatch, capsys, tmp_path, request):
    """Blocks share their names, as they do for a reader who tries one after the other."""
    if reading.page.name == "distributed.md":
        request.getfixturevalue("one_rank")
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # what they register is forgotten again
    monkeypatch.chdir(tmp_path)
    names = of_the_reader()
    if reading.stack:
        names |= STACKS[reading.stack]()
    limit = torch._dynamo.config.recompile_limit
    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=limit):
        warnings.simplefilter("ignore", tr.OneLayerWarning)  # the reader's network has three layers
        for before, code in reading.blocks:
            if file := re.match(r"# (\S+\.py)\n", code):
                Path(file[1]).parent.mkdir(exist_ok=True)
                Path(file[1]).write_text(code)
            # Errors name the line of the document.
            exec(compile("\n" * before + code, str(reading.page), "exec", dont_inherit=True), names)
    assert "nan" not in capsys.readouterr().out
    assert all(weight.isfinite().all() for group in names["optimizer"].param_groups for weight in group["params"])
    if reading.page.name == "timm.md":  # a short one
        assert len(names["scheme"].history) == 4
    elif reading.stack or reading.part == "Plain PyTorch":  # by then all cycles are over
        state = names["callback"].state_dict()["scheme"] if "callback" in names else names["scheme"].state_dict()
        assert len(state["history"]) == 16


def test_every_block_of_python_is_read():
    """Fences of another form than the readers know would be left out silently."""
    marked = sum(len(re.findall(r"^ *(?:```|~~~) *\{?\.?py", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert marked == sum(len(reading.blocks) for reading in readings()) > 30


def _commands() -> list[tuple[str, str]]:
    """(page, command) of every line of code that calls `reaper`."""
    found = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]:
        text = re.sub(r" \\\n +", " ", page.read_text())
        code = [block[3] for block in FENCE.finditer(text) if block[2] in ("", "bash", "console", "shell", "sh")]
        code += re.findall(r"^ {4}.*$", FENCE.sub("", text), re.MULTILINE)
        lines = [line.strip().removeprefix("$ ") for block in code for line in block.splitlines()]
        found += [(page.name, line) for line in lines if line.startswith(("reaper ", "torchrun ", "srun "))]
    return found


def _of_reaper(command: str) -> list[str]:
    """What `reaper` is given, alone or by what starts it; torchrun's own parser reads torchrun's part."""
    words = shlex.split(command.replace("$(which reaper)", "reaper"), comments=True)
    if words[0] == "torchrun":
        start = get_args_parser().parse_args(words[1:])
        return [start.training_script, *start.training_script_args]
    return words[words.index("reaper") :]


@pytest.mark.parametrize(("page", "command"), _commands())
def test_commands_are_understood(page, command):
    """They are parsed, not run."""
    script, *arguments = _of_reaper(command)
    if script != "reaper":
        assert (ROOT / script).exists()
        return
    name, *arguments = arguments
    commands = typer.main.get_command(app).commands
    parser = commands[name].make_parser(typer.Context(commands[name]))
    given, left, _ = parser.parse_args(with_ray_address(arguments))
    assert not left
    asked = [p.name for p in commands[name].params if p.required]
    assert not [name for name in asked if given.get(name) is None]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path = target.partition("#")[0]
            assert (page.parent / path).exists(), target


def _pages_in(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in _pages_in(part)]


def test_every_page_is_in_the_navigation_once():
    there = [str(page.relative_to(DOCS)) for page in PAGES]
    assert sorted(_pages_in(SITE["nav"])) == sorted(there)


def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'\bsrc="(?:https?:)?//|<link[^>]+href="(?:https?:)?//', text), page
        assert not re.findall(r":(?:class|func|meth|attr):", text), page


def _public(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if not name.startswith("_") and not ismodule(value)]


def test_every_public_name_is_in_the_api():
    shown = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    wanted = [f"{m.__name__}.{name}" for m in (tr, tr.criteria, tr.analysis) for name in _public(m)]
    adapters = (ROOT / "src" / "torchreaper" / "integrations").glob("[!_]*.py")
    wanted += [
        f"torchreaper.integrations.{path.stem}.RePrCallback"
        for path in adapters
        if "\nclass RePrCallback" in path.read_text()
    ]
    assert sorted(shown) == sorted(wanted)


@pytest.mark.parametrize("name", ["index", "faq"])
def test_measured_numbers_are_those_of_the_tables(name):
    """A number with its interval, wherever it stands."""
    number = r"[+-]?\d+\.\d+ \[[^\]]+\]"
    found = re.findall(number, (DOCS / f"{name}.md").read_text())
    assert len(found) >= 5
    tables = [README, *((DOCS / f"{page}.md").read_text() for page in ("recipes", "replication"))]
    assert set(found) <= set(re.findall(number, "\n".join(tables)))


def test_pictures_are_those_that_the_script_draws(tmp_path):
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.main(tmp_path)
    shown = re.findall(r"\(images/(\w+\.svg)\)", (DOCS / "how.md").read_text())
    assert sorted(shown) == sorted(file.name for file in tmp_path.iterdir())
    for name in shown:
        kept, drawn = (DOCS / "images" / name).read_text(), (tmp_path / name).read_text()
        by = [re.search(r"Matplotlib v[\d.]+", text)[0] for text in (kept, drawn)]
        assert kept == drawn or by[0] != by[1], name


def test_every_row_on_many_processes_names_tests_that_exist():
    text = (DOCS / "distributed.md").read_text()
    rows = re.findall(r"^\| (?!what |-)(.*) \|$", text, re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        names = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row.split(" | ")[-1])
        assert names, row
        for file, test in names:
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), (file, test)


def test_every_criterion_is_in_the_table():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "criteria.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(base.names())


def _table_of_schemes() -> dict[str, list[str]]:
    """The cells of each row, by its key."""
    lines = (DOCS / "schemes.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def _option(text: str) -> dict[str, Any]:
    """`key: value`, or `key` alone for one that is off."""
    found = yaml.safe_load(text)
    return found if isinstance(found, dict) else {found: None}


def test_every_scheme_is_in_the_table_with_its_source_and_the_defaults_of_its_options():
    rows = _table_of_schemes()
    assert list(rows) == list(schemes.SCHEMES)
    for key, (_, source, options, _, _) in rows.items():
        spec = schemes.SCHEMES[key]
        assert source.replace("`", "").strip() == spec.source
        shown = {name: value for option in re.findall("`(.*?)`", options) for name, value in _option(option).items()}
        values = schemes.parse({"name": key}).model_dump(mode="json", exclude={"name"})
        values = {name: value["method"] if name == "reinit" else value or None for name, value in values.items()}
        assert {name: value or None for name, value in shown.items()} == values


def test_the_pairs_that_are_refused_are_in_the_table():
    for key, (*_, others) in _table_of_schemes().items():
        hands = schemes.SCHEMES[key].hands
        refused = [other for other, spec in schemes.SCHEMES.items() if other != key and spec.hands & hands]
        assert key == "standard" or sorted(re.findall("`(.*?)`", others)) == sorted(refused)
