"""A thousand transitions in a row: nothing grows but the record of them."""

from __future__ import annotations

import gc
import io
import time
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
import torch
from tests.families import FAMILIES
from tests.nets import NETS, OPTIMIZERS, inputs
from tests.stress.recording import lengths
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchreaper as tr
from torchreaper.transitions import SCORED

pytestmark = pytest.mark.filterwarnings("ignore::torchreaper.errors.OneLayerWarning")
PAGE = 4096
#: Chains, a sum behind 64 filters (scatter), concatenations with norms of slices, depthwise convolutions and gates.
CASES = [
    ("plain-norm", "masked", "adamw"),
    ("plain-norm", "compact", "momentum"),
    ("wide", "compact", "adamw"),
    ("pre-activation", "masked", "momentum"),
    ("mobile", "compact", "adamw"),
]
#: What a record of a transition is made of, in the collector's eyes.
RECORD = {"Transition", "dict", "tuple", "list"}


class Trained:
    """A network with an optimizer, an average that follows it, a schedule and a scheme that acts after every step."""

    def __init__(self, net: str, mode: str, rule: str, transitions: int, compiled: bool = False) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = {**NETS, **FAMILIES}[net]()
        self.optimizer = OPTIMIZERS[rule](list(self.model.parameters()))
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 10, 0.999)
        settings = {"full": 1, "sub": 1, "cycles": transitions, "subnetwork": mode, "followers": [self.average.module]}
        self.scheme = tr.RePr(
            *(self.model, self.optimizer, inputs()[0]), fraction=0.3, max_per_layer=0.5, criterion="random", **settings
        )
        self.called = torch.compile(self.model, backend="eager") if compiled else self.model
        self.seconds: list[float] = []

    def go(self, transitions: int) -> None:
        for _ in range(transitions):
            images, labels = inputs(len(self.seconds))
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.called(images), labels).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.average.update_parameters(self.model)
            start = time.process_time()  # not the wall's: others use the machine too
            assert self.scheme.step() is not None
            self.seconds.append(time.process_time() - start)

    def hooks(self) -> Counter[str]:
        """How many hooks there are, by where they are."""
        found: Counter[str] = Counter()
        for owner in (*self.model.modules(), *self.average.modules(), *self.model.parameters(), self.optimizer):
            for name, value in vars(owner).items() if not isinstance(owner, Tensor) else ():
                if "hook" in name and isinstance(value, dict):
                    found[f"{type(owner).__name__} {name}"] += len(value)
            if isinstance(owner, Tensor):
                found["parameters"] += len(owner._backward_hooks or ())
        return found

    def sizes(self) -> dict[str, int]:
        """Bytes of the state dicts as files, but for the record of transitions."""
        scheme = {**self.scheme.state_dict(), "history": []}
        states = {"model": self.model, "optimizer": self.optimizer, "average": self.average, "schedule": self.schedule}
        return {"scheme": saved(scheme), **{name: saved(part.state_dict()) for name, part in states.items()}}

    def record(self) -> int:
        """Bytes of the record of transitions as a file."""
        return saved(self.scheme.state_dict()["history"])

    def alive(self) -> Counter[str]:
        """Objects by type, without the scores that the record keeps of its last drops."""
        gc.collect()
        found = Counter(type(one).__name__ for one in gc.get_objects())
        found["Tensor"] -= sum(len(one.scores) for one in self.scheme.history)
        return found


def saved(state: object) -> int:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def grown(trained: Trained, transitions: int, warm: int) -> dict[str, float]:
    """Go on, and check that nothing has grown since the transitions of the warm-up; what was seen."""
    trained.go(warm)
    before = trained.hooks(), trained.sizes()
    resident_before, record, alive = resident(), trained.record(), trained.alive()
    trained.go(transitions)
    assert trained.scheme.phase == "full"
    assert (trained.hooks(), trained.sizes()) == before
    more = trained.alive() - alive
    # Some caches (of the interpreter, of torch) may still fill; a leak is an object or more at every transition.
    allowed = {name: 40 + (8 if name in RECORD else 0.05) * transitions for name in more}
    assert all(more[name] <= allowed[name] for name in more), more
    assert sum(bool(one.scores) for one in trained.scheme.history) <= SCORED
    return {
        "resident": resident() - resident_before,
        "record": (trained.record() - record) / transitions,
        "slower": median(trained.seconds[-100:]) / median(trained.seconds[warm : warm + 100]),
    }


@lengths(20, 1_000)
def test_a_thousand_transitions_leave_nothing_behind(times, trials):
    count = trials(
        "numbers",
        "transitions in a row on each of five networks (chain, sum, concatenations, depthwise with gates), with an "
        "average, a schedule and clipping: no more hooks, tensors, memory, larger files or time a transition",
        "transitions",
    )
    seen: dict[str, list[float]] = {}
    for net, mode, rule in CASES[: 2 if times < 100 else None]:
        warm = 2 * SCORED if times > 2 * SCORED else 4
        trained = Trained(net, mode, rule, times)
        for name, value in grown(trained, times - warm, warm).items():
            seen.setdefault(name, []).append(value)
        for _ in trained.scheme.history:
            with count.one():
                pass
    if times >= 1_000:
        assert max(seen["resident"]) < 16 * 2**20, seen
        assert max(seen["slower"]) < 1.5, seen
        count.note = (
            f"memory +{max(seen['resident']) / 2**20:.1f} MB at most, the record {max(seen['record']):,.0f} bytes a "
            f"transition at most, the last hundred take {max(seen['slower']):.2f} times the first hundred's time"
        )
    # A record is indices and notes: bounded by what there is to drop, and without tensors but for the last drops'.
    assert max(seen["record"]) < 4_000, seen


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_under_compile_nothing_grows_either(trials):
    count = trials(
        "numbers",
        "transitions in a row under torch.compile (eager backend), masked: the same, and no graph beyond the first",
        "transitions",
    )
    trained = Trained("plain-norm", "masked", "momentum", 200, compiled=True)
    trained.go(4)
    graphs = trained.scheme.bank._subnetwork.graphs
    grown(trained, 196 - 2 * SCORED, 2 * SCORED)
    assert trained.scheme.bank._subnetwork.graphs == graphs
    for _ in trained.scheme.history:
        with count.one():
            pass
    count.note = f"{graphs} graphs"
