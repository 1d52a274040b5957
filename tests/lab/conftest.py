"""Made-up runs in the documented format of a run folder, without training anything."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.lab.seeing import known

LAYERS = {"conv1": 8, "conv2": 16, "conv3": 16}


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
