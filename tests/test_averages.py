"""Averages of the weights made during a run: what they hold at every step, and at the end, masked and compact.

What is expected is computed from full state dicts of the model, recorded after every step, with the filters' entries
found by hand (:data:`BELONGS`): nothing of the package takes part in it.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import torchreaper as tr
from tests.nets import build, inputs
from tests.twins import assert_all_close, routed
from tests.zoo import torchvision_importable

torch.set_num_threads(1)

MODES = ("masked", "compact")
DECAY = 0.8
FULL, SUB, CYCLES = 2, 3, 2
STEPS = CYCLES * (FULL + SUB) + 2
EXAMPLE = inputs(dtype=torch.float64)[0]
EXACT = {"rtol": 1e-12, "atol": 1e-12}
State = dict[str, Tensor]
Filters = Mapping[str, Sequence[int]]

#: Network -> layer -> its norm, and who reads its filters: (module, how many columns each channel has there).
BELONGS: dict[str, dict[str, tuple[str, list[tuple[str, int]]]]] = {
    "plain-norm": {"0": ("1", [("3", 1)]), "3": ("4", [("6", 1)]), "6": ("7", [("11", 16)])},
    "residual": {
        "stem": ("norm", [("block1.conv1", 1)]),  # and a sum, which is not the filter's
        "block1.conv1": ("block1.bn1", [("block1.conv2", 1)]),
        "block1.conv2": ("block1.bn2", []),
        "block2.conv1": ("block2.bn1", [("block2.conv2", 1)]),
        "block2.conv2": ("block2.bn2", []),
        "block2.shortcut.0": ("block2.shortcut.1", []),
    },
}
NETS = tuple(BELONGS)
OF_NORMS = ("weight", "bias", "running_mean", "running_var")


def masks(net: str, filters: Filters, state: State) -> State:
    """For every tensor, which of its entries belong to these filters."""
    found = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in state.items()}
    for layer, indices in filters.items():
        norm, readers = BELONGS[net][layer]
        for name in (f"{layer}.weight", f"{layer}.bias", *(f"{norm}.{part}" for part in OF_NORMS)):
            if name in found:
                found[name][list(indices)] = True
        for reader, width in readers:
            for index in indices:
                found[f"{reader}.weight"][:, index * width : (index + 1) * width] = True
    return found


class Torch:
    """`AveragedModel`, which starts as a copy at its first update."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.average = AveragedModel(model, **options)
        self.module = self.average.module
        self.state_dict, self.load_state_dict = self.average.state_dict, self.average.load_state_dict

    def update(self, model: nn.Module) -> None:
        self.average.update_parameters(model)


class Timm:
    """`ModelEmaV3`; with a warm-up it is told the number of the step, as timm's script does."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        torchvision_importable()
        from timm.utils import ModelEmaV3

        self.average, self.steps = ModelEmaV3(model, decay=DECAY, **options), 0
        self.module = self.average.module

    def update(self, model: nn.Module) -> None:
        self.steps += 1
        self.average.update(model, step=self.steps if self.average.use_warmup else None)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "module": self.module.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        self.module.load_state_dict(state["module"])


class ByParameters:
    """What many write themselves: a copy, ``zip(parameters)``, buffers as they are."""

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model)
        self.state_dict, self.load_state_dict = self.module.state_dict, self.module.load_state_dict

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for mine, theirs in zip(self.module.parameters(), model.parameters()):
            mine.mul_(DECAY).add_(theirs, alpha=1 - DECAY)
        for mine, theirs in zip(self.module.buffers(), model.buffers()):
            mine.copy_(theirs)


class ByStateDict:
    """The same over ``state_dict()``, into a dictionary; a network is made of it when it is needed."""

    def __init__(self, model: nn.Module) -> None:
        self.values = {name: value.clone() for name, value in model.state_dict().items()}
        self._like = copy.deepcopy(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            mine = self.values[name]
            self.values[name] = mine * DECAY + value * (1 - DECAY) if value.is_floating_point() else value.clone()

    @property
    def module(self) -> nn.Module:
        self._like.load_state_dict(self.values)
        return self._like

    def state_dict(self) -> State:
        return dict(self.values)

    def load_state_dict(self, state: State) -> None:
        self.values = dict(state)


def moving(before: Tensor, value: Tensor, count: int) -> Tensor:
    return DECAY * before + (1 - DECAY) * value


def moving_from_a_copy(before: Tensor, value: Tensor, count: int) -> Tensor:
    return moving(before, value, count) if count else value


def mean(before: Tensor, value: Tensor, count: int) -> Tensor:
    return (count * before + value) / (count + 1)


def warmed_up(before: Tensor, value: Tensor, count: int) -> Tensor:
    """timm's decay: 0 at first, then 1 - (1 + count)^(-2/3), up to the one that was asked for."""
    decay = min(1 - (1 + count) ** (-2 / 3), DECAY) if count else 0.0
    return decay * before + (1 - decay) * value


@dataclass(frozen=True)
class Kind:
    """One kind of average.

    Attributes:
        make: from the model.
        mix: the average after one more value; the last argument counts the values before.
        follows: it goes over ``parameters()``, so it is named; else over ``state_dict()``.
        buffers: it averages them too; else they are the model's.
    """

    make: Callable[[nn.Module], Any]
    mix: Callable[[Tensor, Tensor, int], Tensor]
    follows: bool
    buffers: bool


EMA = partial(Torch, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
KINDS = {
    "torch mean": Kind(Torch, mean, follows=True, buffers=False),
    "torch mean, buffers": Kind(partial(Torch, use_buffers=True), mean, follows=True, buffers=True),
    "torch ema": Kind(EMA, moving_from_a_copy, follows=True, buffers=False),
    "torch ema, buffers": Kind(partial(EMA, use_buffers=True), moving_from_a_copy, follows=True, buffers=True),
    "by parameters": Kind(ByParameters, moving, follows=True, buffers=False),
    "timm without buffers": Kind(partial(Timm, exclude_buffers=True), moving, follows=True, buffers=False),
    "timm": Kind(Timm, moving, follows=False, buffers=True),
    "timm, one by one": Kind(partial(Timm, foreach=False), moving, follows=False, buffers=True),
    "timm, warm-up": Kind(partial(Timm, use_warmup=True), warmed_up, follows=False, buffers=True),
    "by state dict": Kind(ByStateDict, moving, follows=False, buffers=True),
}
NAMED = [name for name, kind in KINDS.items() if kind.follows]
UNNAMED = [name for name, kind in KINDS.items() if not kind.follows]


class Expected:
    """What an average holds: DESIGN.md 3.7 in plain arithmetic on full state dicts.

    An average over parameters does not know of dropped filters: theirs stays as it was at the drop, and is the value
    they return with afterwards. One over state dicts sees their old values all along. Counters are not averaged here.
    """

    def __init__(self, kind: Kind, net: str, start: State) -> None:
        self.kind, self.net, self.count = kind, net, 0
        self.values = {name: value.clone() for name, value in start.items() if value.is_floating_point()}

    def update(self, state: State, dropped: Filters) -> None:
        gone = masks(self.net, dropped if self.kind.follows else {}, state)
        for name, before in self.values.items():
            averaged = self.kind.buffers or not name.endswith(("running_mean", "running_var"))
            after = self.kind.mix(before, state[name], self.count) if averaged else state[name]
            self.values[name] = torch.where(gone[name], before, after)
        self.count += 1

    def returned(self, state: State, filters: Filters) -> None:
        if self.kind.follows:
            for name, mask in masks(self.net, filters, state).items():
                if name in self.values:
                    self.values[name] = torch.where(mask, state[name], self.values[name])

    def check(self, module: nn.Module, when: Any) -> None:
        found = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        assert_all_close(found, self.values, str(when), **EXACT)


def recorded(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def fresh(net: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build(net, seed=seed)[0].double()
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def scheme_for(
    model: nn.Module, optimizer: torch.optim.Optimizer, mode: str, followers: Sequence[nn.Module]
) -> tr.RePr:
    cycle = {"full": FULL, "sub": SUB, "cycles": CYCLES, "fraction": 0.35, "max_per_layer": 0.6, "skip": None}
    return tr.RePr(model, optimizer, EXAMPLE, subnetwork=mode, followers=followers, **cycle)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images, labels = inputs(seed, dtype=torch.float64)
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()


def hooks_of(model: nn.Module) -> list[Any]:
    names = [(module, name) for module in model.modules() for name in vars(module) if name.endswith("_hooks")]
    own = [hook for module, name in names for hook in (getattr(module, name) or {}).values()]
    return own + [hook for p in model.parameters() for hook in (p._backward_hooks or {}).values()]


@dataclass
class Run:
    """A network in training, its scheme, and an average of it from step ``start`` on (-1: made before the scheme)."""

    net: str
    mode: str
    kind: str
    start: int = -1
    seed: int = 0

    def __post_init__(self) -> None:
        self.model, self.optimizer = fresh(self.net, self.seed)
        made = KINDS[self.kind]
        self.average = made.make(self.model) if self.start < 0 else None
        self.expected = Expected(made, self.net, recorded(self.model))
        self.scheme = scheme_for(self.model, self.optimizer, self.mode, [self.average.module] if made.follows else [])

    def steps(self, first: int, last: int) -> Iterator[int]:
        """Train, two steps a unit, each averaged; after every unit its number."""
        for epoch in range(first, last):
            if epoch == self.start:
                self.average = KINDS[self.kind].make(self.model)
                self.expected = Expected(KINDS[self.kind], self.net, recorded(self.model))
            for seed in (2 * epoch, 2 * epoch + 1):
                train(self.model, self.optimizer, seed)
                if self.average is not None:
                    self.average.update(self.model)
                    self.expected.update(recorded(self.model), self.scheme.dropped)
            assert self.scheme.bank.mode == (self.mode if self.scheme.phase == "sub" else None)
            transition = self.scheme.step()
            if transition is not None and transition.kind == "restore":
                self.expected.returned(recorded(self.model), transition.filters)
            yield epoch


@cache
def averages(net: str, mode: str, kind: str) -> list[State]:
    """The average after every step of a whole run, each as expected."""
    run, found = Run(net, mode, kind), []
    for epoch in run.steps(0, STEPS):
        run.expected.check(run.average.module, epoch)
        found.append(recorded(run.average.module))
    assert [one.kind for one in run.scheme.history] == ["drop", "restore"] * CYCLES
    assert all(len(one.filters) > 1 for one in run.scheme.history)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", NETS)
def test_at_every_step_it_holds_what_was_averaged_masked_and_compact(net, kind):
    for step, pair in enumerate(zip(*(averages(net, mode, kind) for mode in MODES), strict=True)):
        assert_all_close(*pair, f"masked and compact at step {step}")


def is_an_ordinary_network(module: nn.Module, like: nn.Module, net: str) -> None:
    """Full shapes, no hooks, and it computes, exports and compiles to what its state dict says."""
    assert {n: p.shape for n, p in module.named_parameters()} == {n: p.shape for n, p in like.named_parameters()}
    assert {n: b.shape for n, b in module.named_buffers()} == {n: b.shape for n, b in like.named_buffers()}
    assert not hooks_of(module)
    other, optimizer = fresh(net, seed=7)
    other.load_state_dict(module.state_dict())
    expected = other.eval()(EXAMPLE)
    assert torch.equal(module.eval()(EXAMPLE), expected)
    exported = torch.export.export(module, (EXAMPLE,)).module()
    torch.testing.assert_close(exported(EXAMPLE), expected, **EXACT)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tr.RePr(module, optimizer, EXAMPLE).remove()  # it may have a scheme of its own


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_at_the_end_it_is_an_ordinary_network(kind, mode):
    run = Run("residual", mode, kind)
    for _ in run.steps(0, STEPS):
        pass
    run.scheme.remove()
    is_an_ordinary_network(run.average.module, run.model, "residual")
    run.expected.check(run.average.module, "at the end")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", UNNAMED)
@pytest.mark.parametrize("start", [0, 1, FULL + SUB])
def test_over_state_dicts_it_may_be_made_in_any_full_phase(start, kind, mode):
    """Though it is a copy of a model with hooks then."""
    run = Run("residual", mode, kind, start)
    for epoch in run.steps(0, STEPS):
        if epoch >= start:
            run.expected.check(run.average.module, epoch)
    run.scheme.remove()
    is_an_ordinary_network(run.average.module, run.model, "residual")


def widths(net: str) -> dict[str, int]:
    return {layer: fresh(net)[0].get_submodule(layer).out_channels for layer in BELONGS[net]}


def drop_sets(net: str) -> st.SearchStrategy[dict[str, list[int]]]:
    """Any filters of any layers, one at least, but never all of a layer."""
    sets = {layer: st.sets(st.integers(0, n - 1), max_size=n - 1).map(sorted) for layer, n in widths(net).items()}
    return st.fixed_dictionaries(sets).filter(lambda gone: any(gone.values()))


@dataclass
class Phase:
    """What is dropped in it (nothing: a full one), whether each of its steps is averaged, and how filters return."""

    gone: dict[str, list[int]]
    averaged: list[bool]
    reinit: str | None


def phases(net: str) -> st.SearchStrategy[list[Phase]]:
    steps, reinit = st.lists(st.booleans(), max_size=3), st.sampled_from(["orthogonal", "random", None])
    full, sub = (st.builds(Phase, gone, steps, reinit) for gone in (st.just({}), drop_sets(net)))
    return st.tuples(full, sub, full, sub, full).map(list)


def through(net: str, mode: str, kind: str, scattered: bool, course: list[Phase]) -> list[State]:
    """The average after every phase, each as expected."""
    model, optimizer = fresh(net)
    average, expected = KINDS[kind].make(model), Expected(KINDS[kind], net, recorded(model))
    bank = tr.find_filters(model, EXAMPLE, skip=None)
    if scattered:
        routed(bank, {layer.name: "scatter" for layer in bank.layers if layer.route == "masked"})
    bank.attach(optimizer, followers=[average.module] if KINDS[kind].follows else [])
    found, step = [], 0
    for number, phase in enumerate(course):
        if phase.gone:
            bank.drop(phase.gone, mode=mode)
        for averaged in phase.averaged:
            train(model, optimizer, step)
            step += 1
            if averaged:
                average.update(model)
                expected.update(recorded(model), bank.dropped)
                expected.check(average.module, f"in phase {number}, step {step}")
        back = bank.dropped
        bank.restore(phase.reinit)
        if phase.reinit is not None:
            expected.returned(recorded(model), back)
        expected.check(average.module, f"after phase {number}")
        found.append(recorded(average.module))
    bank.detach()
    assert not hooks_of(average.module)
    return found


@pytest.mark.parametrize("net", NETS)
@settings(max_examples=12)
@given(data=st.data(), kind=st.sampled_from(list(KINDS)), scattered=st.booleans())
def test_whatever_goes_and_whenever_it_is_averaged(net, data, kind, scattered):
    course = data.draw(phases(net))
    for pair in zip(*(through(net, mode, kind, scattered, course) for mode in MODES), strict=True):
        assert_all_close(*pair, "masked and compact")


def without(net: str, state: State, dropped: Filters) -> nn.Module:
    """A full network of these values in which these filters give 0: their gamma and beta are."""
    model, _ = fresh(net, seed=3)
    model.load_state_dict(state)
    for layer, indices in dropped.items():
        norm = model.get_submodule(BELONGS[net][layer][0])
        norm.weight.data[list(indices)] = norm.bias.data[list(indices)] = 0
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["torch mean", "torch ema, buffers", "timm", "by parameters"])
@pytest.mark.parametrize("net", NETS)
def test_evaluation_and_update_bn_in_every_phase(net, kind, mode):
    """A follower is the sub-network in its phases; the dropped filters' own statistics stay as they were then."""
    batches = [inputs(100 + seed, dtype=torch.float64)[0] for seed in range(3)]
    run = Run(net, mode, kind)
    for _ in run.steps(0, STEPS):
        before, average = recorded(run.average.module), run.average.module
        dropped = run.scheme.dropped if KINDS[kind].follows else {}
        reference = without(net, before, dropped)
        torch.testing.assert_close(average.eval()(EXAMPLE), reference.eval()(EXAMPLE), **EXACT)
        update_bn(batches, average)
        update_bn(batches, reference)
        expected = recorded(reference)
        gone = masks(net, dropped, before)
        for name, value in average.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                wanted = torch.where(gone[name], before[name], expected[name])
                torch.testing.assert_close(value, wanted, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
                run.expected.values[name] = wanted
            elif not name.endswith("num_batches_tracked"):
                assert torch.equal(value, before[name]), name
    run.expected.check(average, "at the end")
    run.scheme.remove()
    is_an_ordinary_network(average, run.model, net)


STOP = FULL + 2  # in the first sub-network phase
SAVED = [(mode, kind) for mode in MODES for kind in KINDS]


def file_of(folder: Path, mode: str, kind: str, what: str) -> Path:
    return folder / f"{SAVED.index((mode, kind))}-{what}.pt"


def go_on(folder: Path) -> None:
    """Continue every run that was stopped in ``folder``, from objects with other values."""
    for mode, kind in SAVED:
        run = Run("residual", mode, kind, seed=5)
        saved = torch.load(file_of(folder, mode, kind, "stopped"), weights_only=True)
        for part in ("model", "optimizer", "average", "scheme"):
            getattr(run, part).load_state_dict(saved[part])
        assert run.scheme.phase == "sub"
        assert run.scheme.bank.mode == mode
        for _ in run.steps(STOP, STEPS):
            pass
        run.scheme.remove()
        torch.save(run.average.state_dict(), file_of(folder, mode, kind, "ended"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every kind of run, stopped in a sub-network phase, and continued by another process."""
    folder = tmp_path_factory.mktemp("averages")
    for mode, kind in SAVED:
        run = Run("residual", mode, kind)
        for _ in run.steps(0, STOP):
            pass
        assert run.scheme.phase == "sub"
        parts = {part: getattr(run, part).state_dict() for part in ("model", "optimizer", "average", "scheme")}
        torch.save(parts, file_of(folder, mode, kind, "stopped"))
    script = "import sys, pathlib; from tests.test_averages import go_on; go_on(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("mode", "kind"), SAVED)
def test_resumed_in_a_sub_network_phase_in_another_process_it_is_the_same_bit_for_bit(folder, mode, kind):
    run = Run("residual", mode, kind)
    for _ in run.steps(0, STEPS):
        pass
    ended = torch.load(file_of(folder, mode, kind, "ended"), weights_only=True)
    expected = run.average.state_dict()
    if "steps" in ended:
        assert ended["steps"] == expected["steps"]
        ended, expected = ended["module"], expected["module"]
    assert list(ended) == list(expected)
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


LOST = (
    "state_dict: what was written into the one before is lost, .* before the scheme or in a full phase, and do not name"
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["timm", "timm, one by one", "timm, warm-up"])
def test_one_over_state_dicts_that_is_made_in_a_sub_network_phase_is_refused(kind, mode):
    """It would be lost: what it writes into is a copy of its own weights. Its second value says so."""
    run = Run("residual", mode, kind, start=FULL)
    with pytest.raises(tr.ReaperError, match=LOST):
        for _ in run.steps(0, STEPS):
            pass
    assert run.expected.count == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("updates", [1, 2])
def test_one_over_state_dicts_that_is_named_is_refused(updates, mode):
    """By its second value in a phase or, if that never comes, by the restore, once."""
    model, optimizer = fresh("residual")
    average = Timm(model)
    scheme = scheme_for(model, optimizer, mode, [average.module])
    for _ in range(FULL):
        average.update(model)
        scheme.step()
    average.update(model)
    with pytest.raises(tr.ReaperError, match=LOST):
        average.update(model) if updates == 2 else scheme.restore()
    assert scheme.phase == "sub"
    if updates == 1:
        assert scheme.restore().kind == "restore"


@pytest.mark.parametrize("mode", MODES)
def test_reading_state_dicts_is_never_refused(mode):
    run = Run("residual", mode, "torch ema")
    copies = []
    for epoch in run.steps(0, STEPS):
        with torch.inference_mode(epoch % 2 == 0):
            for model in (run.model, run.average.module, *copies):
                assert_all_close(model.state_dict(), recorded(model), "read twice")
        copies.append(copy.deepcopy(run.average.module))
        copies.append(copy.deepcopy(run.model))


@pytest.mark.parametrize("mode", MODES)
def test_unnamed_an_average_over_parameters_is_not_the_average(mode):
    """What the documents warn of: compact, torch fails; masked, zeros are averaged."""
    model, optimizer = fresh("residual")
    average, expected = EMA(model), Expected(KINDS["torch ema"], "residual", recorded(model))
    scheme = scheme_for(model, optimizer, mode, [])

    def update() -> None:
        train(model, optimizer, 0)
        average.update(model)
        expected.update(recorded(model), scheme.dropped)

    update()
    for _ in range(FULL):
        scheme.step()
    if mode == "compact":
        with pytest.raises(RuntimeError, match="The size of tensor a"):
            update()
    else:
        update()
        with pytest.raises(AssertionError):
            expected.check(average.module, "unnamed")


def test_an_average_of_a_model_with_an_extra_state():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            pass

    model = nn.Sequential(*[nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Flatten(), Counting(6 * 64, 3)]).double()
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheme = tr.RePr(model, optimizer, EXAMPLE, full=1, sub=1, followers=[average.module])
    assert [scheme.step().kind for _ in range(2)] == ["drop", "restore"]
