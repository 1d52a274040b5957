"""The Python in the documents runs, from top to bottom, as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import torchreaper as tr
from tests.nets import plain
from torchreaper.criteria import base
from torchreaper.lab import schemes

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def of_the_reader() -> dict[str, Any]:
    """What a reader has: a network, its optimizer, images, a loss."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 8, 8, generator=random)
    labels = torch.randint(3, (40,), generator=random)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = plain(norm=False)
    fc = list(model.modules())[-1]
    with torch.no_grad():
        fc.bias -= model(images).mean(0)  # so that each class is somewhere the likeliest, and single filters decide
    return {
        "torch": torch,
        "tr": tr,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "example_inputs": images[:2],
        "loader": DataLoader(TensorDataset(images, labels), batch_size=16),
        "loss_fn": cross_entropy,
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what exports to ONNX and quantizes
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*is an Enum subclass:UserWarning")
@pytest.mark.parametrize(("name", "least"), [("criteria", 4), ("analysis", 1), ("schemes", 2), ("after", 5)])
def test_snippets(name, least, monkeypatch, capsys, tmp_path):
    """Blocks share their names, as they do for a reader who tries one after the other."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # what they register is forgotten again
    monkeypatch.chdir(tmp_path)
    path = DOCS / f"{name}.md"
    text = path.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= least
    names = of_the_reader()
    for block in blocks:
        if file := re.match(r"# (\w+\.py)\n", block[1]):
            Path(file[1]).write_text(block[1])
        lines_before = text[: block.start(1)].count("\n")  # errors name the line of the document
        exec(compile("\n" * lines_before + block[1], str(path), "exec", dont_inherit=True), names)
    assert "nan" not in capsys.readouterr().out


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
