"""Made-up runs in the documented format of a run folder, without training anything."""

import importlib
import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.lab.seeing import known
from tests.lab.tiny import recipe

from torchreaper.lab.run import train

LAYERS = {"conv1": 8, "conv2": 16, "conv3": 16}

NETS = """
import torch
from torch import nn


def make(width=4, norm=True):
    norms = [nn.BatchNorm2d(width)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), *norms, nn.ReLU(),
        nn.Conv2d(width, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 10),
    )


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = make()

    def forward(self, x):
        return self.model(x)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        if x.sum() > 1e9:  # which values there are decides what is done
            x = x / 2
        return self.head(x.mean((2, 3)))


class NoGradient(Untraceable):
    @torch.no_grad()
    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))


class Row(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv1d(1, 4, 5), nn.Conv1d(4, 6, 3), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.b(self.a(x.flatten(2)).relu()).relu().mean(2))


def narrow():
    return nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10),
    )


def alone():
    return nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))


def fails():
    raise ValueError("no width")


def table():
    return {"a": 1}


number = 3
"""


def metrics(seed=0, *, epochs=12, full=3, sub=2, cycles=2, layers=LAYERS, best=0.7):
    """Lines of ``metrics.jsonl``; ``cycles=0`` is standard training."""
    draw = random.Random(f"{seed} {cycles}")
    dropped, lines = {}, []
    phases = ["full"] * full + ["sub"] * sub
    for epoch in range(1, epochs + 1):
        place = epoch - 1
        phase = phases[place % (full + sub)] if place < cycles * (full + sub) else "full"
        if phase == "full":
            dropped = {}
        elif not dropped:
            dropped = {
                name: sorted(draw.sample(range(count), max(1, count // 3))) for name, count in list(layers.items())[1:]
            }
        accuracy = best * (1 - math.exp(-4 * epoch / epochs)) - 0.02 * (phase == "sub") + draw.gauss(0, 0.005)
        overlap = {name: 0.1 + 0.05 * place / epochs + 0.1 * number / len(layers) for number, name in enumerate(layers)}
        lines.append(
            {
                "epoch": epoch,
                "phase": phase,
                "train_loss": 2.0 / epoch,
                "train_accuracy": min(1.0, accuracy + 0.2 * epoch / epochs),
                "validation_accuracy": None,
                "test_accuracy": accuracy,
                "test_loss": 2.2 / epoch,
                "lr": 0.05,
                "overlap": overlap,
                "overlap_total": sum(overlap[name] * count for name, count in layers.items()),
                "dropped": dropped,
                "images_per_second": 8000.0,
                "seconds": 0.5,
            }
        )
    return lines


def result(scheme="repr", seed=0, accuracy=0.7, *, gap=0.1, seconds=6.0, layers=LAYERS, epochs=12):
    """A ``result.json``."""
    return {
        "recipe": "made-up",
        "scheme": scheme,
        "seed": seed,
        "epochs": epochs,
        "test_accuracy": accuracy,
        "train_accuracy": accuracy + gap,
        "gap": gap,
        "validation_accuracy": None,
        "seconds": seconds,
        "fingerprint": "0" * 64,
        "report": "last",
        "layers": layers,
    }


def folder(out, scheme="repr", seed=0, *, finished=True, layers=LAYERS, **how):
    """A run folder of the recipe ``made-up``."""
    lines = metrics(seed, layers=layers, cycles=how.pop("cycles", 0 if scheme == "standard" else 2), **how)
    path = Path(out) / "made-up" / scheme / f"seed-{seed}"
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        last = lines[-1]["test_accuracy"]
        value = result(scheme, seed, last, layers=layers, epochs=len(lines))
        (path / "result.json").write_text(json.dumps(value))
    return path


@pytest.fixture
def one_thread():
    """Networks this small are slowed down by a second thread, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seeing():
    """Criteria that read images, "seeing" and "failing", are registered for the length of a test."""
    with known():
        yield


@pytest.fixture
def made_up():
    return SimpleNamespace(metrics=metrics, result=result, folder=folder, layers=LAYERS)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of the tiny recipe, two schemes with two seeds each, all snapshots kept; do not write into it."""
    out = tmp_path_factory.mktemp("trained")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for scheme in ("standard", "repr"):
        for seed in (0, 1):
            train(recipe(snapshots=1), scheme=scheme, seed=seed, out=out)
    torch.set_num_threads(before)
    return out / "tiny"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package of the user's own, ``mynets.nets``, in the current folder; forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").touch()
    (tmp_path / "mynets" / "nets.py").write_text(NETS)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("mynets", "broken")]:
        del sys.modules[name]
