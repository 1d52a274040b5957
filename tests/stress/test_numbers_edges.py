"""The ends of every scale: fractions, limits, layers of one filter and of 4,096, weights and optimizers at extremes."""

from __future__ import annotations

import random
import re
import time
import warnings

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.architectures import Architecture, architectures
from tests.live import LiveBytes
from tests.nets import inputs, plain
from tests.stress.recording import lengths
from tests.twins import assert_all_close, flat_state
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.criteria.ranking import quota
from torchreaper.filters import cuts, dropped_ids

pytestmark = pytest.mark.filterwarnings("ignore::torchreaper.errors.OneLayerWarning")
MODES = ("masked", "compact")
NONE_TO_DROP = (
    r"of \d+ ranked filters that is none|no layer may lose a filter|no convolution to rank|no layer can be made smaller"
)
CRITERIA = (
    "orthogonality",
    "orthogonality-corrected",
    "orthogonality-released",
    "magnitude",
    "geometric-median",
    "random",
)
WEIGHTS = ("drawn", "zero", "equal", "denormal", "huge", "duplicates")
PRECISIONS = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def extreme(model: nn.Module, kind: str) -> None:
    """Give every convolution weights at one end of what there is."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            weight = module.weight.data
            if kind in ("zero", "equal"):
                weight.fill_(0.0 if kind == "zero" else 0.3)
            elif kind == "denormal":
                weight.mul_(1e-40 if weight.dtype in (torch.float32, torch.bfloat16) else 1e-7)
            elif kind == "huge":
                weight.mul_(1e3 if weight.dtype == torch.float16 else 1e30)
            elif kind == "duplicates":
                weight[1::2] = weight[: len(weight) // 2 * 2 : 2][: len(weight[1::2])]


@st.composite
def settings_of_a_scheme(draw):
    fraction = draw(st.one_of(st.sampled_from([0.01, 0.29, 0.5, 0.9]), st.floats(0.01, 0.9)))
    return {
        "fraction": fraction,
        "min_filters": draw(st.sampled_from([1, 1, 2, 3, 50])),
        "max_per_layer": draw(st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1])),
        "criterion": draw(st.sampled_from(CRITERIA)),
        "skip": draw(st.sampled_from([None, "first"])),
        "subnetwork": draw(st.sampled_from([*MODES, "auto"])),
    }


@lengths(8, 500)
def test_any_fraction_of_any_network_goes_and_returns(times, trials):
    count = trials(
        "numbers",
        "random networks, p from 0.01 to 0.9, limits, criteria, precisions, weights zero, equal, denormal, 1e30, "
        "doubled: floor(p * ranked) filters go or a note says why not, and return orthogonal where there is room",
        "schemes",
    )
    seen = {"refused": 0, "held back": 0, "with room": 0}

    @settings(max_examples=times, database=None, phases=[Phase.generate])  # making examples smaller takes minutes
    @given(
        architectures,
        settings_of_a_scheme(),
        st.sampled_from(list(PRECISIONS)),
        st.sampled_from(WEIGHTS),
        st.booleans(),
    )
    def holds(architecture: Architecture, options, precision, kind, trains):
        model = architecture.build().to(precision)
        extreme(model, kind)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        example, labels = (part.to(precision) if part.is_floating_point() else part for part in architecture.inputs(0))
        try:
            scheme = tr.RePr(model, optimizer, example, full=1, sub=1, cycles=2, **options)
        except tr.ReaperError as error:
            if not re.search(NONE_TO_DROP, str(error)):
                raise
            seen["refused"] += 1
            return
        with count.one():
            shapes = {name: value.shape for name, value in model.state_dict().items()}
            for _ in range(2):
                gone = scheme.step()
                check_count(scheme, gone, options, seen)
                if trains and kind in ("drawn", "duplicates") and precision in (torch.float32, torch.float64):
                    nn.functional.cross_entropy(model(example), labels).backward()
                    optimizer.step()
                back = scheme.step()
                assert back.filters == gone.filters
                assert {name: value.shape for name, value in model.state_dict().items()} == shapes
                for name in gone.filters:
                    assert scheme.bank[name].rows.isfinite().all()
                if kind != "denormal":  # whose directions have no digits
                    seen["with room"] += check_orthogonal(back.notes, PRECISIONS[precision])

    holds()
    count.note = ", ".join(f"{name} {number:,}" for name, number in seen.items())


def check_count(scheme: tr.RePr, gone: tr.Transition, options, seen) -> None:
    bank = scheme.bank
    wanted = quota(options["fraction"], sum(one.filters for one in bank.ranked))
    found = sum(map(len, gone.filters.values()))
    if found < wanted:
        seen["held back"] += 1
        assert f"{found} filters dropped instead of {wanted}: every layer is at its limit" in gone.notes
    else:
        assert found == wanted
    for name, indices in gone.filters.items():
        layer = bank[name]
        assert len(indices) <= quota(options["max_per_layer"], layer.filters)
        assert layer.filters - len(indices) >= options["min_filters"]


def check_orthogonal(notes: tuple[str, ...], limit: float) -> int:
    """How many layers had room for all that returned; there the worst cosine must be within the limit."""
    found = [re.fullmatch(r".*: (\d+) back, room (\d+) of \d+, worst \|cos\| (\S+)", note) for note in notes]
    roomy = [one for one in found if one and int(one[1]) <= int(one[2])]
    assert all(float(one[3]) < limit for one in roomy), notes
    return len(roomy)


def optimizers(draw: random.Random, model: nn.Module) -> torch.optim.Optimizer:
    """At extremes: rates, momenta, decays, groups, parameters that are frozen."""
    parameters = list(model.parameters())
    frozen = draw.random() < 0.5
    if frozen:
        model[-1].weight.requires_grad_(False)  # the reader, and some biases and norm entries
        for parameter in parameters:
            if parameter.ndim == 1 and draw.random() < 0.5:
                parameter.requires_grad_(False)
    lr, decay = draw.choice([0.0, 1e-3, 0.1, 1e3]), draw.choice([0.0, 0.01, 1.0])
    half = len(parameters) // 2
    second = {"lr": draw.choice([0.0, 0.01]), "weight_decay": 1.0}
    groups = [{"params": parameters[:half]}, {"params": parameters[half:], **second}]
    if draw.random() < 0.5:
        # Below, eps: a bias under a norm has a gradient of rounding errors alone, which Adam would blow up.
        return torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=draw.choice([0.0, 0.9, 0.999]))
    return torch.optim.AdamW(groups, lr=lr, weight_decay=decay, amsgrad=draw.random() < 0.5, eps=1e-3)


@lengths(5, 80)
def test_narrow_layers_and_optimizers_at_extremes(times, trials):
    count = trials(
        "numbers",
        "layers of 1, 2, 3 and 8 filters anywhere, min_filters up to a layer and beyond; rates of 0 and 1e3, momentum "
        "0.999, decay 1, frozen parameters: no layer below its limit, dropped filters bit for bit as they were, masked "
        "and compact agree, but at a rate of 1e3",
        "networks",
    )
    seen = {"refused": 0, "diverged": 0, "exploding": 0}
    for trial in range(times):
        ends, refusals = {}, {}
        for mode in MODES:
            draw = random.Random(trial)
            widths = tuple(draw.choice([1, 2, 3, 8]) for _ in range(3))
            with torch.random.fork_rng():
                torch.manual_seed(trial)
                model = plain(draw.random() < 0.7, widths).double()
            optimizer, least = optimizers(draw, model), draw.choice([1, 1, 2, 3, 9])
            exploding = optimizer.param_groups[0]["lr"] > 1
            limits = {"fraction": draw.choice([0.1, 0.5, 0.9]), "skip": draw.choice([None, "first"])}
            limits["min_filters"] = least
            try:
                ends[mode] = cycle(model, optimizer, mode, limits)
            except tr.ReaperError as error:
                refusals[mode] = str(error)
                if not re.search(NONE_TO_DROP + "|not finite|NaN", str(error)):
                    raise
        if "masked" in refusals and re.search(NONE_TO_DROP, refusals["masked"]):
            seen["refused"] += 1
            assert refusals["compact"] == refusals["masked"]
            continue
        with count.one():
            if "masked" in refusals:
                seen["diverged"] += 1
                assert refusals.keys() == set(MODES)
            elif "compact" not in refusals and exploding:
                seen["exploding"] += 1  # any rounding error is soon as large as the weights
            elif "compact" not in refusals:
                for masked, compact in zip(ends["masked"], ends["compact"]):
                    assert_all_close(masked, compact, str(trial), rtol=1e-7, atol=1e-9)
    count.note = ", ".join(f"{name} {number:,}" for name, number in seen.items())


def cycle(model: nn.Module, optimizer: torch.optim.Optimizer, mode: str, limits) -> list[dict[str, Tensor]]:
    """Drop, train, put back untouched; drop, train, bring back; what the model and the optimizer hold at the end."""
    example = inputs(dtype=torch.float64)[0]
    scheme = tr.RePr(model, optimizer, example, full=1, sub=1, cycles=1, subnetwork=mode, criterion="random", **limits)

    def step(seed: int) -> None:
        images, labels = inputs(seed, dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step(0)
    filters, _ = scheme.bank.select(
        tr.criteria.make("random").scores(scheme.bank), limits["fraction"], min_filters=limits["min_filters"]
    )
    found = cuts(scheme.bank.flow, dropped_ids(scheme.bank.layers, filters))
    mine = [(getattr(model.get_submodule(name), key), cut) for name, of in found.items() for key, cut in of.items()]
    before = [tensor.detach()[cut.mask(tensor)].clone() for tensor, cut in mine]
    scheme.bank.drop(filters, mode=mode)
    step(1), step(2)
    scheme.bank.restore()
    for (tensor, cut), value in zip(mine, before):
        now = tensor.detach()[cut.mask(tensor)]
        assert torch.equal(now.view(torch.int64), value.view(torch.int64)), "not bit for bit"
    transition = scheme.step()
    for name, indices in transition.filters.items():
        assert scheme.bank[name].filters - len(indices) >= limits["min_filters"]
    step(3)
    scheme.step()
    return [model.state_dict(), flat_state(optimizer)]


WIDE = {
    "3x3 on 4 channels": (lambda: nn.Conv2d(4, 4096, 3, padding=1), {}),
    "1x1 on 64 channels": (lambda: nn.Sequential(nn.Conv2d(4, 64, 1), nn.ReLU(), nn.Conv2d(64, 4096, 1)), {}),
    "depthwise": (lambda: nn.Conv2d(4096, 4096, 3, padding=1, groups=4096), {"include": ["1.wide"], "channels": 4096}),
}


class Wide(nn.Module):
    def __init__(self, wide: nn.Module) -> None:
        super().__init__()
        self.wide, self.norm = wide, nn.BatchNorm2d(4096)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.wide(x)).relu()


@lengths(1, 3)
def test_a_layer_of_4096_filters(times, trials):
    count = trials(
        "numbers",
        "a layer of 4,096 filters, 3x3 on 4 channels, 1x1 on 64, depthwise; half of them drop and return: weights "
        "finite, memory beside what is there bounded",
        "transitions",
    )
    notes = []
    for name, (wide, options) in list(WIDE.items())[:times]:
        channels = options.get("channels", 4)
        model = nn.Sequential(
            nn.Conv2d(3, channels, 1), Wide(wide()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4096, 3)
        )
        optimizer, (images, labels) = torch.optim.AdamW(model.parameters()), inputs(n=2)
        scheme = tr.RePr(
            *(model, optimizer, images), full=1, sub=1, cycles=1, fraction=0.5, include=options.get("include", ())
        )
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        took = []
        for _ in range(2):
            with count.one():
                there = [*model.state_dict().values(), *flat_state(optimizer).values()]
                start = time.process_time()
                with LiveBytes(there) as live:
                    before = live.now
                    transition = scheme.step()
                beside = live.peak - before
                took.append(f"{time.process_time() - start:.1f} s, {beside / 2**20:.0f} MB")
                assert sum(map(len, transition.filters.values())) > 1500
                assert all(value.isfinite().all() for value in model.state_dict().values())
                # The layer's own weights some times over, in float64, and one block of cosines.
                assert beside < 2**20 * 40 + 8 * sum(tensor.nbytes for tensor in there), beside
                nn.functional.cross_entropy(model(images), labels).backward()
        notes.append(f"{name}: drop {took[0]}, return {took[1]}")
    count.note = "; ".join(notes)


def test_schedules_that_make_little_sense():
    """More cycles than can ever be, units of one call, none at all: they do what they say."""
    for full, sub, cycles, steps in ((1, 1, 10**9, 7), (1, 1, 0, 5), (10**9, 1, 1, 5), (1, 10**9, 1, 5)):
        model = plain()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheme = tr.RePr(model, optimizer, inputs()[0], full=full, sub=sub, cycles=cycles)
            kinds = [scheme.step() for _ in range(steps)]
        expected = {10**9: ["drop", "restore"] * 3 + ["drop"], 0: [], 1: ["drop"] if full == 1 else []}[cycles]
        assert [one.kind for one in kinds if one] == expected
        assert str(scheme)
