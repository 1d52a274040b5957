"""The Python in the pages of the stacks runs as it is printed there, with what a reader has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import torchreaper as tr
from tests.integrations import accelerated, hf, lit, test_lightning, test_transformers

PAGES = Path(__file__).parents[2] / "docs" / "stacks"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
pytestmark = [*test_lightning.pytestmark, *test_transformers.pytestmark]


def lightning(folder: Path) -> dict[str, Any]:
    def quiet(**given: Any) -> Any:
        silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return lit.pl.Trainer(accelerator="cpu", default_root_dir=folder, enable_checkpointing=False, **silent, **given)

    return {"Trainer": quiet, "module": lit.Lit(), "train_loader": DataLoader(lit.data(), batch_size=12)}


def transformers(folder: Path) -> dict[str, Any]:
    arguments = hf.arguments(folder, num_train_epochs=100, logging_steps=50)
    return {"Trainer": hf.Trainer, "arguments": arguments, "model": hf.resnet(), "images": hf.Images()}


def accelerate(folder: Path) -> dict[str, Any]:
    model = accelerated.network()
    return {
        "tr": tr,
        "accelerator": accelerated.Accelerator(cpu=True),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "loader": DataLoader(accelerated.data(), batch_size=12),
        "example_inputs": accelerated.data()[0][0][None],
        "loss_fn": cross_entropy,
    }


@pytest.mark.parametrize("reader", [lightning, transformers, accelerate], ids=lambda reader: reader.__name__)
def test_a_page(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = PAGES / f"{reader.__name__}.md"
    text = path.read_text()
    names = reader(tmp_path)
    blocks = list(BLOCK.finditer(text))
    assert blocks
    for block in blocks:
        lines_before = text[: block.start(1)].count("\n")  # errors name the line of the page
        exec(compile("\n" * lines_before + block[1], str(path), "exec", dont_inherit=True), names)
    found = names.get("scheme") or names["callback"].state_dict()["scheme"]
    assert len(found.history if hasattr(found, "history") else found["history"]) == 6
