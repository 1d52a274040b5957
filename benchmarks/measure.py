"""Timing for the benchmarks: several ways of doing one thing, in turn within one process, compared pair by pair.

On a machine that others use too, seconds mean little; the ratio of two times taken one after the other means more,
and the median of many such ratios is what the tables hold.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, comb
from statistics import median
from typing import Any

import torch

Step = Callable[[], Any]


@dataclass(frozen=True)
class Estimate:
    """A median and its interval, with the samples behind it."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    def __str__(self) -> str:
        return f"{short(self.median)} [{short(self.low)}, {short(self.high)}]"


def estimate(samples: Sequence[float]) -> Estimate:
    """The median, and its exact interval of at least 95 % whatever the distribution (sign test).

    With 7 samples that is their minimum and maximum (98.4 %); with 5 or fewer these cover less than 95 %.
    """
    ordered, n = sorted(samples), len(samples)
    k = 0  # samples to leave out at each end
    while 2 * sum(comb(n, i) for i in range(k + 2)) / 2**n <= 0.05:
        k += 1
    return Estimate(median(ordered), ordered[k], ordered[n - 1 - k], tuple(samples))


def ratio(times: Mapping[str, Sequence[float]], part: str, whole: str) -> Estimate | None:
    """``part / whole``, pair by pair; ``None`` where one of them was not measured."""
    if part not in times or whole not in times:
        return None
    return estimate([a / b for a, b in zip(times[part], times[whole])])


def short(value: float) -> str:
    """About three significant digits, never an exponent."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def seconds(step: Step, device: torch.device, number: int = 1) -> float:
    """Seconds per call of ``step``, over ``number`` calls."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(number):
            step()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1000 / number
    start = time.perf_counter()
    for _ in range(number):
        step()
    return (time.perf_counter() - start) / number


def wall(action: Step, device: torch.device) -> float:
    """Seconds of one call by the clock on the wall: for what works on the CPU and the device in turn."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    steps: Mapping[str, Step],
    *,
    repeats: int,
    device: torch.device,
    label: str = "",
    least: float = 0.2,
    warm_up: int = 3,
) -> dict[str, list[float]]:
    """Seconds per call of each step: A B C A B C ..., ``repeats`` samples each, all of the same number of calls.

    Args:
        least: seconds that a sample of the fastest step should last.
        warm_up: calls of each step that are not counted.
    """
    for step in steps.values():
        for _ in range(warm_up):
            step()
    fastest = min(seconds(step, device) for step in steps.values())
    number = max(1, ceil(least / fastest))
    times: dict[str, list[float]] = {name: [] for name in steps}
    progress = Progress(label, repeats)
    with QuietCollector():
        for _ in range(repeats):
            for name, step in steps.items():
                times[name].append(seconds(step, device, number))
            progress.advance()
    return times


class QuietCollector:
    """No garbage collection inside the block: it would hit whichever sample it likes."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()


class Progress:
    """Rounds done and time left, on stderr: a line rewritten on a terminal, now and then a new one elsewhere."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.start = self.spoke = time.monotonic()

    def advance(self) -> None:
        self.done += 1
        now, live, last = time.monotonic(), sys.stderr.isatty(), self.done == self.total
        if not (live or last or now - self.spoke > 30):
            return
        left = (now - self.start) / self.done * (self.total - self.done)
        text = f"  {self.label}: round {self.done} of {self.total}, {left:.0f} s left"
        print(f"\r{text:<60}" if live else text, end="\n" if last or not live else "", file=sys.stderr, flush=True)
        self.spoke = now
