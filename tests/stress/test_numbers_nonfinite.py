"""NaN and infinity wherever they can arise: transitions are refused without a trace, runs stop where they can go on."""

from __future__ import annotations

import math
import random
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tests.families import FAMILIES
from tests.lab.tiny import TINY, recipe
from tests.nets import NETS, OPTIMIZERS, build, inputs
from tests.stress.recording import lengths
from tests.stress.standing import differences, standing
from torch import nn

import torchreaper as tr
from torchreaper.filters import cuts, dropped_ids
from torchreaper.lab import training
from torchreaper.lab.cli import main
from torchreaper.lab.measures import fingerprint
from torchreaper.lab.run import RunFailed, train
from torchreaper.lab.runs import load_checkpoint, read_metrics
from torchreaper.state import Cut

WRONG = (math.nan, math.inf, -math.inf)
MODES = ("masked", "compact")
pytestmark = pytest.mark.filterwarnings("ignore::torchreaper.errors.OneLayerWarning")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(name: str, optimizer: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    if name in NETS:
        return build(name, optimizer, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[name]()
    return model, OPTIMIZERS[optimizer](list(model.parameters()))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, clip: bool = False) -> None:
    images, labels = inputs(seed)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()


class Spoilable:
    """A criterion that gives what it is told for one layer, after having drawn random numbers."""

    def __init__(self) -> None:
        self.layer, self.value = "", 0.0

    def scores(self, bank):
        found = {one.name: torch.rand(one.filters, generator=bank.generator) for one in bank.ranked}
        if self.layer:
            found[self.layer][0] = self.value
        return found


@lengths(6, 400)
def test_a_transition_that_meets_them_is_refused_and_changes_no_bit(times, trials):
    count = trials(
        "numbers",
        "NaN or infinity in weights, second moments, readers or scores when filters are to go or return: refused by "
        "the layer's name, not a bit changed, and the step works when the value is mended",
        "transitions",
    )
    seen = set()
    for trial in range(times):
        draw = random.Random(trial)
        net = draw.choice([*NETS, "pre-activation", "mobile", "shuffle", "u-net"])
        model, optimizer = network(net, draw.choice(["momentum", "adamw", "rmsprop"]), trial)
        moments = isinstance(optimizer, (torch.optim.AdamW, torch.optim.RMSprop))
        kind = draw.choice(["weight at drop", "score", "weight at restore", "reader", *["moment"] * moments])
        criterion = Spoilable()
        options = {"optimizer_state": "layer-mean"} if kind == "moment" else {}
        reinit = tr.Reinit(**options, **({"consumers": "random"} if kind == "reader" else {}))
        settings = {"full": 1, "sub": 1, "cycles": 3, "max_per_layer": 0.6, "subnetwork": draw.choice(MODES)}
        scheme = tr.RePr(
            *(model, optimizer, inputs()[0]), fraction=0.35, criterion=criterion, reinit=reinit, seed=trial, **settings
        )
        step(model, optimizer, trial)
        if kind not in ("weight at drop", "score"):
            assert scheme.step().kind == "drop"
            step(model, optimizer, trial + 1)
        place = spoilt(scheme, optimizer, kind, draw, criterion)
        if place is None:
            continue  # nothing of that kind in this network
        tensor, name = place
        value = draw.choice(WRONG[:1] if kind == "score" else WRONG[:2] if kind == "moment" else WRONG)
        if kind == "score":
            criterion.layer, criterion.value = name, value
        else:
            index = tuple(draw.randrange(size) for size in tensor.shape)
            kept, tensor[index] = tensor[index].item(), value
        before = standing(scheme, optimizer)
        with count.one():
            with pytest.raises(tr.ReaperError, match=name.replace(".", r"\.")):
                scheme.step()
            assert differences(before, standing(scheme, optimizer)) == []
            if kind == "score":
                criterion.layer = ""
            else:
                tensor[index] = kept
            assert scheme.step() is not None
        seen.add((net, kind))
    assert times < 100 or len(seen) > 25
    count.note = f"{len(seen)} pairs of network and place"


def spoilt(scheme, optimizer, kind, draw, criterion):
    """The tensor to spoil, in place, and what the refusal has to name; ``None``: there is none."""
    model = scheme.model
    layers = [
        one.name for one in scheme.bank.ranked if kind in ("weight at drop", "score") or one.name in scheme.dropped
    ]
    layer = draw.choice(layers)
    weight = model.get_submodule(layer).weight
    if kind == "score":
        return weight, layer
    if kind == "moment":
        key = "exp_avg_sq" if isinstance(optimizer, torch.optim.AdamW) else "square_avg"
        return optimizer.state[weight][key], f"{layer}.weight"
    if kind == "reader":
        heads = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        flow = scheme.bank.flow.shares.get(heads[-1], {}).get("weight", ())
        gone = {scheme.bank[name].start + i for name, indices in scheme.dropped.items() for i in indices}
        if not any(gone & set(share.origin.tolist()) for share in flow):
            return None
        return model.get_submodule(heads[-1]).weight.detach(), f"{heads[-1]}.weight"
    return weight.detach(), layer


@lengths(2, 100)
def test_a_gradient_of_a_dropped_filter_that_is_not_finite_reaches_nothing(times, trials):
    count = trials(
        "numbers",
        "NaN or infinity in every gradient entry of dropped filters, with weight decay, momentum, clipping: the same "
        "bits everywhere as without, in the phase and after the return",
        "phases",
    )
    for trial in range(times):
        draw = random.Random(trial)
        net, rule, clip = draw.choice(list(NETS)), draw.choice(["momentum", "adamw"]), draw.random() < 0.5
        value, found = draw.choice(WRONG), []
        for spoil in (False, True):
            model, optimizer = build(net, rule, trial)
            parts: dict[str, Cut] = {}
            for name, parameter in model.named_parameters():
                parameter.register_hook(partial(poisoned, parts, name, value))
            settings = {"full": 1, "sub": 3, "cycles": 1, "max_per_layer": 0.6, "subnetwork": "masked", "skip": None}
            scheme = tr.RePr(model, optimizer, inputs()[0], fraction=0.4, seed=trial, **settings)
            for epoch in range(6):
                parts.clear()
                if spoil and scheme.phase == "sub":
                    parts.update(belongings(scheme))
                step(model, optimizer, 10 * trial + epoch, clip)
                scheme.step()
            found.append(standing(scheme, optimizer))
        with count.one():
            assert differences(*found) == []


def poisoned(parts: dict[str, Cut], name: str, value: float, gradient: torch.Tensor) -> torch.Tensor | None:
    return parts[name].fill(gradient.clone(), value) if name in parts else None


def belongings(scheme: tr.RePr) -> dict[str, Cut]:
    found = cuts(scheme.bank.flow, dropped_ids(scheme.bank.layers, scheme.dropped))
    return {f"{module}.{tensor}": cut for module, entries in found.items() for tensor, cut in entries.items()}


def spoiling(kind: str, at: int, value: float):
    """A replacement of `Run._backward` that spoils something in backward pass number ``at`` of a run."""
    real = training.Run._backward

    def backward(self, images, targets):
        self.passes = getattr(self, "passes", 0) + 1
        due = self.passes == at
        convolutions = [module for module in self.module.modules() if isinstance(module, nn.Conv2d)]
        if due and kind == "image":
            images = images.index_fill(0, torch.tensor([3]), value)
        handle = None
        if due and kind == "activation":
            handle = convolutions[0].register_forward_hook(lambda module, args, output: output * value)
        batch, loss = real(self, images, targets)
        if handle is not None:
            handle.remove()
        if due and kind == "loss":
            loss = loss * value
        if due and kind == "gradient":
            convolutions[-1].weight.grad[0] = value
        if due and kind == "weight":
            convolutions[0].weight.data[0] = value
        if due and kind == "statistic":
            norms = [module for module in self.module.modules() if isinstance(module, nn.BatchNorm2d)]
            norms[-1].running_mean[0] = value
        return batch, loss

    return backward


@lengths(2, 30)
def test_a_run_stops_names_the_place_and_goes_on_from_a_checkpoint_that_is_good(times, trials, tmp_path, monkeypatch):
    count = trials(
        "numbers",
        "NaN or infinity in an image, an activation, the loss, a gradient, a weight or a BatchNorm statistic of a run: "
        "it stops and names epoch or step, its checkpoint is finite, and given again it ends with the undisturbed bits",
        "runs",
    )
    whole: dict[str, str] = {}
    seen = set()
    for trial in range(times):
        draw = random.Random(trial)
        scheme = draw.choice(["standard", "repr", "ema", "swa", "sfp", "sam", "repr+ema", "ol"])
        mine = recipe(scheme={**TINY["scheme"], "cycles": 1})
        if scheme not in whole:
            whole[scheme] = train(mine, scheme=scheme, seed=0, out=tmp_path / "whole")["fingerprint"]
        kind = draw.choice(["image", "activation", "loss", "gradient", "weight", "statistic"])
        passes = 20 if scheme == "sam" else 10
        at, value = draw.randrange(1, passes + 1), draw.choice(WRONG)
        out = tmp_path / str(trial)
        folder = out / "tiny" / scheme / "seed-0"
        with count.one():
            with monkeypatch.context() as patch:
                patch.setattr(training.Run, "_backward", spoiling(kind, at, value))
                # In SAM's first pass the loss is only climbed from.
                with pytest.raises(
                    RunFailed, match=r"^epoch \d(, step \d)?: the (training loss|loss on the|values of) "
                ):
                    train(mine, scheme=scheme, seed=0, out=out)
            epochs = [line["epoch"] for line in read_metrics(folder)]
            state = load_checkpoint(folder, pytest.fail) if epochs else None
            assert (state["epoch"] if state else 0) == len(epochs) <= (at - 1) // (passes // 5)
            if state:
                assert all(value.isfinite().all() for value in state["model"].values())
                fingerprint(state["model"])
            assert train(mine, scheme=scheme, seed=0, out=out)["fingerprint"] == whole[scheme]
        seen.add((scheme, kind))
    count.note = f"{len(seen)} pairs of scheme and place"


@lengths(1, 40)
def test_the_command_ends_with_one_line_and_exit_code_one(times, trials, tmp_path, monkeypatch, capsys):
    count = trials(
        "numbers",
        "`reaper train` at learning rates from 1e4 to 1e6: one line that names the place, exit code 1, and every "
        "checkpoint finite",
        "commands",
    )
    for trial in range(times):
        draw = random.Random(trial)
        path, out = tmp_path / f"{trial}.yaml", tmp_path / str(trial)
        optim = {"name": "sgd", "lr": 10.0 ** draw.uniform(4, 6)}
        wild = {**TINY, "optim": optim, "model": {"name": "cnet", "options": {"depth": 2, "width": 6}}}
        path.write_text(yaml.safe_dump(wild))
        with count.one():
            monkeypatch.setattr(sys, "argv", ["reaper", "train", str(path), "--out", str(out), "--threads", "1"])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 1
            said = capsys.readouterr().err
            assert re.fullmatch(r"error: epoch \d.*the last good checkpoint is kept\n", said), said
            for found in Path(out).rglob("last.pt"):
                state = load_checkpoint(found.parent, pytest.fail)
                assert all(value.isfinite().all() for value in state["model"].values())
