"""The Python in the documents runs, from top to bottom, as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.nets import plain
from torchreaper.criteria import base

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
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "example_inputs": images[:2],
        "loader": DataLoader(TensorDataset(images, labels), batch_size=16),
        "loss_fn": cross_entropy,
    }


@pytest.mark.parametrize(("name", "least"), [("criteria", 4), ("analysis", 1)])
def test_snippets(name, least, monkeypatch, capsys):
    """Blocks share their names, as they do for a reader who tries one after the other."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # what they register is forgotten again
    path = DOCS / f"{name}.md"
    text = path.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= least
    names = of_the_reader()
    for block in blocks:
        lines_before = text[: block.start(1)].count("\n")  # errors name the line of the document
        exec(compile("\n" * lines_before + block[1], str(path), "exec"), names)
    assert "nan" not in capsys.readouterr().out


def test_every_criterion_is_in_the_table():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "criteria.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(base.names())
