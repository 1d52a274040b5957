"""Half precision with GradScaler across transitions: no step is skipped that plain training would not skip."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.lab.tiny import recipe
from tests.nets import NETS, build, inputs
from tests.stress.recording import lengths
from tests.stress.standing import differences, standing
from torch import nn

import torchreaper as tr

pytestmark = pytest.mark.filterwarnings("ignore::torchreaper.errors.OneLayerWarning")
FULL, SUB, CYCLES = 5, 4, 3
STEPS = CYCLES * (FULL + SUB) + 5
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
#: Steps, from 0, that end with a transition, their neighbours, and one inside each phase.
CRITICAL = sorted({at + k for c in range(CYCLES) for at in (c * 9 + 4, c * 9 + 8) for k in (-2, -1, 0, 1)})


@dataclass
class Scaled:
    """A network that trains in float16 with a scaler, with a scheme or (``mode`` None) without."""

    net: str
    rule: str
    mode: str | None
    seed: int
    device: str = "cpu"
    clip: bool = False
    interval: int = 2000
    scale: float = 2.0**16
    at: int = 0
    skipped: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model, _ = build(self.net, "sgd", self.seed)
        self.model.to(self.device)
        rules: dict[str, Any] = {
            "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
            "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        }
        self.optimizer = rules[self.rule](list(self.model.parameters()))
        self.scaler = torch.amp.GradScaler(self.device, init_scale=self.scale, growth_interval=self.interval)
        settings = {"full": FULL, "sub": SUB, "cycles": CYCLES, "max_per_layer": 0.6, "seed": self.seed}
        self.scheme = None
        if self.mode:
            example = inputs()[0].to(self.device)
            self.scheme = tr.RePr(self.model, self.optimizer, example, subnetwork=self.mode, **settings)

    def step(self, overflow: bool = False) -> bool:
        """One step; whether the scaler has skipped it, in which case nothing that is trained may have changed."""
        images, labels = (part.to(self.device) for part in inputs(1000 * self.seed + self.at))
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.float16):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        self.scaler.scale(loss * torch.inf if overflow else loss).backward()
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        before = self.trained()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.get_scale() < scale
        if skipped:
            self.skipped.append(self.at)
            assert all(torch.equal(a, b) for a, b in zip(before, self.trained(), strict=True))
        self.scales.append(self.scaler.get_scale())
        if self.scheme:
            self.scheme.step()
        self.at += 1
        return skipped

    def trained(self) -> list[torch.Tensor]:
        state = [v for entry in self.optimizer.state.values() for v in entry.values() if isinstance(v, torch.Tensor)]
        return [tensor.detach().clone() for tensor in (*self.model.parameters(), *state)]

    def run(self, overflows: Collection[int] = (), until: int = STEPS) -> Scaled:
        while self.at < until:
            self.step(self.at in overflows)
        return self


def drawn(trial: int) -> tuple[random.Random, dict[str, Any]]:
    draw = random.Random(trial)
    settings = {"net": draw.choice(list(NETS)), "rule": draw.choice(["momentum", "adamw"])}
    return draw, {**settings, "seed": trial, "clip": draw.random() < 0.3}


@pytest.mark.parametrize("device", DEVICES)
@lengths(1, 25)
def test_across_transitions_no_step_is_skipped_that_plain_training_does_not_skip(times, trials, device):
    count = trials(
        "numbers",
        "float16 with GradScaler over three cycles, overflows injected around every transition, the scale else far "
        "from the limit: masked and compact skip the steps that plain training skips; a skipped step changes nothing",
        "runs",
    )
    plain_steps = steps = 0
    for trial in range(times):
        draw, settings = drawn(trial)
        overflows = sorted(draw.sample(CRITICAL, draw.randrange(0, 9)))
        # Well below what overflows by itself: a sub-network's gradients can be larger, and near the limit one does.
        settings |= {"scale": 2.0**10, "device": device}
        plain = Scaled(**settings, mode=None).run(overflows)
        for mode in ("masked", "compact"):
            with count.one():
                found = Scaled(**settings, mode=mode).run(overflows)
                assert found.skipped == plain.skipped == overflows
                assert found.scales == plain.scales
                assert [t.kind for t in found.scheme.history] == ["drop", "restore"] * CYCLES
                steps, plain_steps = steps + len(found.skipped), plain_steps + len(plain.skipped)
    count.note = f"{steps:,} steps skipped, {plain_steps:,} in plain training, of {2 * times * STEPS:,} each"


@lengths(1, 20)
def test_a_scaler_that_probes_skips_as_often_as_in_plain_training(times, trials):
    """Growing every few steps it overflows again and again by itself; when exactly depends on the weights."""
    count = trials(
        "numbers",
        "a GradScaler that doubles its scale every 3 to 6 steps, until it overflows, again and again: in no run more "
        "than 3 skips beyond plain training's, and in all together at most 5 in 100 more",
        "runs",
    )
    plain_steps = steps = 0
    for trial in range(times):
        draw, settings = drawn(trial)
        settings |= {"interval": draw.randrange(3, 7), "scale": 2.0 ** draw.randrange(10, 17)}
        plain = Scaled(**settings, mode=None).run()
        for mode in ("masked", "compact"):
            with count.one():
                found = Scaled(**settings, mode=mode).run()
                assert len(found.skipped) <= len(plain.skipped) + 3, (found.skipped, plain.skipped)
                steps, plain_steps = steps + len(found.skipped), plain_steps + len(plain.skipped)
    assert times == 1 or steps <= 1.05 * plain_steps, (steps, plain_steps)
    count.note = f"{steps:,} steps skipped, {plain_steps:,} in plain training, of {2 * times * STEPS:,} each"


@lengths(1, 25)
def test_model_optimizer_scaler_and_scheme_go_on_together(times, trials):
    count = trials(
        "numbers",
        "float16 training saved at a random step, the scaler's state too, and loaded into fresh objects: the same "
        "bits, skips and scales to the end",
        "resumed runs",
    )
    for trial in range(times):
        draw, settings = drawn(trial)
        settings |= {"interval": draw.randrange(3, 7), "mode": draw.choice(["masked", "compact"])}
        overflows, stop = draw.sample(range(STEPS), 4), draw.randrange(1, STEPS)
        with count.one():
            whole = Scaled(**settings).run(overflows)
            half = Scaled(**settings).run(overflows, until=stop)
            parts = [half.model, half.optimizer, half.scaler, half.scheme]
            saved = [copy.deepcopy(part.state_dict()) for part in parts]
            fresh = Scaled(**settings)
            for part, state in zip((fresh.model, fresh.optimizer, fresh.scaler, fresh.scheme), saved):
                part.load_state_dict(state)
            fresh.at = stop
            fresh.run(overflows)
            assert half.skipped + fresh.skipped == whole.skipped
            assert half.scales + fresh.scales == whole.scales
            ends = [standing(one.scheme, one.optimizer) for one in (whole, fresh)]
            for end in ends:
                for name in [name for name in end if name.startswith("gradient ")]:
                    del end[name]
            assert differences(*ends) == []


def test_the_lab_has_no_half_precision_that_needs_a_scaler():
    with pytest.raises(ValueError, match=r"precision"):
        recipe(precision="16-mixed")
