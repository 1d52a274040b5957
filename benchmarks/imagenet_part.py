"""One network of ImageNet's size in a process of its own: what `imagenet.py` starts, a part of its tables at a time.

    python benchmarks/imagenet_part.py '{"part": "memory", "net": "resnet50", "optimizer": "sgd", "mode": "masked",
                                         "batch": 8, "repeats": 3, "device": "cpu", "threads": 2}'

The task is JSON, the answer is JSON on the last line of stdout.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import Progress, QuietCollector, wall
from networks import FRACTION, repr_on
from published import NETWORKS, TINY
from training import Training

import torchreaper as tr

MODES = ("masked", "compact")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Bytes in use, now and at their highest since the last ``reset``.

    On the CPU of the process, as the kernel counts its resident pages; on CUDA what torch has allocated there.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    def reset(self) -> None:
        gc.collect()
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            CLEAR.write_text("5")  # the highest so far is what is resident now

    def now(self) -> int:
        return torch.cuda.memory_allocated(self._cuda) if self._cuda is not None else _kernel("VmRSS")

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._cuda) if self._cuda is not None else _kernel("VmHWM")


def _kernel(field: str) -> int:
    lines = STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def warmed() -> None:
    """Load what a process loads once, at its first scheme and transitions: libraries are not the network's."""
    for mode in MODES:
        training = TINY.training("sgd", 2)
        scheme = repr_on(training, mode)
        for _ in range(3):
            training.step()
            scheme.step()


def memory(task: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of every stage of RePr, ``repeats`` cycles: the peak while it ran, and what lay there before."""
    device = torch.device(task["device"])
    warmed()
    training = _training(task, device)
    for _ in range(2):
        training.step()
    meter, stages = Meter(device), defaultdict[str, list[dict[str, int]]](list)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        meter.reset()
        before = meter.now()
        yield
        stages[name].append({"before": before, "peak": meter.peak(), "after": meter.now()})

    for _ in range(task["repeats"]):
        with stage("plain"):
            training.step()
    with stage("build"):
        scheme = repr_on(training, task["mode"])
    with stage("attached"):
        training.step()
    kept = {}
    progress = Progress(task["label"], task["repeats"])
    for _ in range(task["repeats"]):
        with stage("drop"):
            scheme.step()
        kept = scheme.bank.stored_bytes
        with stage("sub"):
            training.step()
        with stage("checkpoint"):
            states = training.model.state_dict(), training.optimizer.state_dict()
        del states
        with stage("restore"):
            scheme.step()
        with stage("full"):
            training.step()
        progress.advance()
    training.check()
    state = training.optimizer.state_dict()["state"].values()
    return {
        "stages": stages,
        "kept": kept,
        "weights": sum(p.numel() * p.element_size() for p in training.model.parameters()),
        "state": sum(t.numel() * t.element_size() for s in state for t in s.values() if isinstance(t, torch.Tensor)),
    }


def times(task: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of steps and transitions, all on one model in turn, ``repeats`` rounds after one that warms up.

    On the CPU with one thread, as `torchrun` starts a process, and seconds of the CPU: what another load takes of the
    clock is not counted. A scheme is taken off again before the next is put on, so that every step of a round is of the
    same weights: plain, attached, masked, compact.
    """
    device = torch.device(task["device"])
    torch.set_num_threads(1)
    warmed()
    training = _training(task, device)
    found, counts = defaultdict[str, list[float]](list), {}
    progress = Progress(task["label"], task["repeats"] + 1)

    def timed(name: str, action: Callable[[], Any]) -> Any:
        result, start = [], time.process_time()
        clock = wall(lambda: result.append(action()), device)
        found[name].append(clock if device.type == "cuda" else time.process_time() - start)
        return result[0]

    def cycle(mode: str) -> None:
        scheme = timed("build", lambda: repr_on(training, mode))
        counts.update(layers=len(scheme.bank.layers), ranked=len(scheme.bank.ranked))
        counts.update(filters=sum(layer.filters for layer in scheme.bank.ranked))
        if mode == "masked":
            counts.update(multiply_adds=_share(scheme.bank))
            timed("attached", training.step)
            with torch.no_grad():
                timed("rank", lambda: scheme.criterion.scores(scheme.bank))
        timed(f"drop {mode}", scheme.step)
        if mode == "compact":
            timed("first compact", training.step)
        timed(mode, training.step)
        timed(f"restore {mode}", scheme.step)
        scheme.remove()
        if mode == "compact":
            timed("first full", training.step)

    with QuietCollector():
        for _ in range(task["repeats"] + 1):
            timed("plain", training.step)
            for mode in MODES:
                cycle(mode)
            gc.collect()
            progress.advance()
    training.check()
    rounds = task["repeats"] + 1
    kept = {name: values[len(values) // rounds :] for name, values in found.items()}  # the first round warms up
    return {"seconds": kept, **counts}


def _share(bank: tr.FilterBank) -> float:
    """Multiply-adds of the sub-network, of the whole network's."""
    preview = bank.preview(FRACTION, "random", max_per_layer=FRACTION)
    return preview.sub.multiply_adds / preview.full.multiply_adds


def _training(task: Mapping[str, Any], device: torch.device) -> Training:
    return NETWORKS[task["net"]].training(task["optimizer"], task["batch"], device)


def main(text: str) -> None:
    task = json.loads(text)
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    parts: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"memory": memory, "times": times}
    print(json.dumps(parts[task["part"]](task)))


if __name__ == "__main__":
    main(sys.argv[1])
