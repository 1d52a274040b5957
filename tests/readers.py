"""Who reads the documents: what they have before the first line of a page, and the code they find there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import torchreaper as tr
from tests.nets import Residual, plain

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
TAB = re.compile(r'^=== "(.*)"$', re.MULTILINE)
#: Pages whose sections are read alone, each by a reader who comes with a question.
ALONE = ("faq.md", "distributed.md")


@dataclass
class Reading:
    """The Python that one reader tries, from top to bottom: of a page, of one tab, or of one section of a FAQ."""

    page: Path
    part: str
    blocks: list[tuple[int, str]] = field(default_factory=list)  # (lines before it, the code)

    @property
    def stack(self) -> str:
        """The training stack that it is about, if it is about one."""
        told = "\n".join([str(self.page.relative_to(DOCS)), *(code for _, code in self.blocks)])
        signs = {r"\baccelerator\.": "accelerate", r"\bcreate_model\(": "timm"}
        found = re.search(r"^stacks/(\w+)|integrations\.(\w+)", told)
        if found is not None:
            return found[1] or found[2]
        return next((stack for sign, stack in signs.items() if re.search(sign, told)), "")


def readings() -> Iterator[Reading]:
    """All there are, in the order of the pages."""
    for page in PAGES:
        text = page.read_text()
        found: dict[str, Reading] = {}
        for block in FENCE.finditer(text):
            if block[2] not in ("python", "py"):
                continue
            part = _last(TAB, text, block.start()) if block[1] else ""
            if page.name in ALONE:
                part = _last(re.compile(r"^## (.*)$", re.MULTILINE), text, block.start())
            code = "\n".join(line.removeprefix(block[1]) for line in block[3].split("\n"))
            reading = found.setdefault(part, Reading(page, part))
            reading.blocks.append((text[: block.start(3)].count("\n"), code))
        yield from found.values()


def _last(pattern: re.Pattern[str], text: str, end: int) -> str:
    return [found[1] for found in pattern.finditer(text, 0, end)][-1]


def of_the_reader() -> dict[str, Any]:
    """What a reader has: a network, its optimizer, images, a loss, and a loop."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 8, 8, generator=random)
    labels = torch.randint(3, (40,), generator=random)
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = plain(norm=False)
        fc = list(model.modules())[-1]
        with torch.no_grad():
            fc.bias -= model(images).mean(0)  # so that each class is somewhere the likeliest, and single filters decide
        return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return float((model(images).argmax(1) == labels).double().mean())

    model, optimizer = build()
    return {
        **{"torch": torch, "nn": nn, "tr": tr, "build": build, "model": model, "optimizer": optimizer},
        **{"example_inputs": images[:2], "loader": loader, "train_loader": loader, "loss_fn": cross_entropy},
        **{"train_one_epoch": train_one_epoch, "evaluate": evaluate},
    }


def _of_lightning() -> dict[str, Any]:
    from tests.integrations.lit import Lit, data, pl

    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = partial(pl.Trainer, accelerator="cpu", logger=False, **quiet)
    return {"Trainer": trainer, "module": Lit(), "train_loader": DataLoader(data(), batch_size=24)}


def _of_transformers() -> dict[str, Any]:
    from tests.integrations.hf import Images, Trainer, arguments, resnet

    told = arguments(Path("out"), num_train_epochs=40)
    return {"Trainer": Trainer, "model": resnet(), "arguments": told, "images": Images(6)}


def _of_accelerate() -> dict[str, Any]:
    from accelerate import Accelerator

    with torch.random.fork_rng():
        model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return {"accelerator": Accelerator(cpu=True), "model": model, "optimizer": optimizer}


def _of_timm() -> dict[str, Any]:
    from tests.zoo import torchvision_importable

    torchvision_importable()
    from timm import create_model
    from timm.optim import create_optimizer_v2

    def small(name: str, **options: Any) -> nn.Module:
        """One of timm's that is made for tests, for whatever name."""
        return create_model("test_resnet", **options)

    return {"create_model": small, "create_optimizer_v2": create_optimizer_v2}


#: What the reader of a page on one of these has besides, or instead.
STACKS: dict[str, Callable[[], dict[str, Any]]] = {
    "lightning": _of_lightning,
    "transformers": _of_transformers,
    "accelerate": _of_accelerate,
    "timm": _of_timm,
}
