"""Averages of the weights: by hand-written loops, with BatchNorm, and as the network that is judged."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import (
    hooks_on,
    network,
    optimizer_of,
    pictures,
    same,
    setup,
    train_epoch,
    train_step,
    weights_of,
)
from tests.lab.tiny import recipe
from torch import nn

from torchreaper.lab.analyze.subjects import find_subjects
from torchreaper.lab.checkpoints import judged_weights, load_checkpoint
from torchreaper.lab.data import FixedBatches, Split
from torchreaper.lab.errors import UserError
from torchreaper.lab.measures import fingerprint
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, read_metrics
from torchreaper.lab.schemes import parse
from torchreaper.lab.schemes.averaging import EMASpec, SWASpec


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decay", [0.15, 0.9])
def test_the_moving_average_is_that_of_a_plain_loop(optimizer, decay):
    model = network()
    on = setup(model, optimizer_of(optimizer, model))
    scheme = EMASpec(decay=decay).attach(on)
    assert scheme.network is None
    assert not scheme.counts
    average, steps = weights_of(model), 0
    for _ in range(3):
        model.train()
        for images, targets in on.drawn(0, scheme.epoch + 1):
            train_step(scheme, on, images, targets)
            kept = min(decay, (1 + steps) / (10 + steps)) if steps else 0.0
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name] = kept * average[name] + (1 - kept) * value
            steps += 1
            found = scheme.network.state_dict()
            for name, value in average.items():
                if value.is_floating_point():
                    torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
        scheme.step()
    assert scheme.counts
    scheme.close()
    assert hooks_on(model) == 0


def test_training_is_the_same_as_without_an_average():
    found = []
    for options in ({"name": "standard"}, {"name": "ema"}, {"name": "swa", "start": 0.1}):
        model = network()
        on = setup(model)
        scheme = parse(options).attach(on)
        for _ in range(3):
            train_epoch(scheme, on)
            scheme.step()
        found.append(weights_of(model))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_the_stochastic_average_is_the_mean_of_the_last_epochs_with_statistics_of_its_own():
    model = network()
    on = setup(model)
    scheme = SWASpec(start=0.7).attach(on)
    taken = []
    for epoch in range(1, 11):
        train_epoch(scheme, on)
        assert (scheme.network is None) == (epoch < 8)
        assert scheme.counts == (epoch >= 8)
        if epoch >= 8:
            taken.append(dict(weights_of(model)))
            average = dict(scheme.network.named_parameters())
            for name, value in average.items():
                torch.testing.assert_close(value.data, sum(weights[name] for weights in taken) / len(taken))
            images = on.training.take(40, seed=on.seed)
            seen = [scheme.network[0](batch) for batch, _ in images]
            norm = scheme.network[1]
            torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
            torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
            assert norm.momentum == 0.1
        scheme.step()


def test_images_sorted_by_class_do_not_narrow_the_statistics():
    labels = torch.arange(400) // 40
    images = (labels * 25)[:, None, None, None].expand(400, 1, 8, 8).to(torch.uint8)  # a class is a shade of grey
    training = FixedBatches(Split(images, labels), "training", torch.tensor([0.5]), torch.tensor([0.25]), batch=40)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    on = setup(model, training=training)
    scheme = SWASpec(start=0.1).attach(on)
    for _ in range(2):
        train_epoch(scheme, on)
        scheme.step()
    whole = torch.cat([batch for batch, _ in training]).var()
    assert scheme.network[0].running_var.item() == pytest.approx(whole.item(), rel=0.1)


@given(epochs=st.integers(1, 60), start=st.floats(0.01, 0.99))
def test_an_average_of_one_epoch_is_refused(epochs, start):
    spec = SWASpec(start=start)
    averaged = [epoch for epoch in range(1, epochs + 1) if epoch >= spec.first(epochs)]
    if len(averaged) > 1:
        spec.check(epochs)
        return
    text = f"scheme.start={start}: leaves one of {epochs} epochs to average; lower it or train longer"
    with pytest.raises(UserError, match=f"^{re.escape(text)}$"):
        spec.check(epochs)


@pytest.mark.parametrize("average", [{"name": "ema", "decay": 0.5}, {"name": "swa", "start": 0.1}], ids=["ema", "swa"])
def test_masked_and_compact_sub_networks_have_the_same_average(average):
    found = []
    for mode in ("masked", "compact"):
        model = network()
        on = setup(model)
        options = {"full": 1, "sub": 2, "cycles": 2, "fraction": 0.4, "skip": None, "subnetwork": mode}
        name = f"{average['name']}+repr"
        scheme = parse({"name": name, "parts": {average["name"]: average, "repr": options}}).attach(on)
        states, outputs = [], []
        for _ in range(7):
            train_epoch(scheme, on)
            judged = scheme.network or model
            with torch.no_grad():
                outputs.append(judged.eval()(next(iter(pictures(dtype=torch.float64)))[0]))
            assert scheme.counts == (scheme.phase == "full" and scheme.network is not None)
            scheme.step()
            states.append(weights_of(scheme.network or model))
        found.append((outputs, states))
        scheme.close()
        assert hooks_on(model) == 0
    for masked, compact in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(masked, compact, rtol=1e-10, atol=1e-10)
    for masked, compact in zip(found[0][1], found[1][1], strict=True):
        for name, value in masked.items():
            torch.testing.assert_close(value, compact[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", ["ema", "swa", "ema+repr"])
def test_the_average_is_what_is_judged_kept_and_analysed(scheme, tmp_path, one_thread):
    what = recipe(schemes={"swa": {"start": 0.3}, "ema": {"decay": 0.9}}, snapshots=5)
    result = train(what, scheme=scheme, seed=0, out=tmp_path)
    folder = folder_of(tmp_path, "tiny", scheme, 0)
    state = load_checkpoint(folder, print)
    average = judged_weights(state)
    assert fingerprint(average) == result["fingerprint"] != fingerprint(state["model"])
    snapshot = torch.load(folder / "snapshots" / "epoch-0005.pt", weights_only=True)
    assert fingerprint(snapshot["model"]) == result["fingerprint"]
    ((source,),) = [subject.sources for subject in find_subjects([folder])]
    notes = []
    epoch, analysed = source.last(notes.append)
    assert (epoch, notes) == (5, [])
    assert fingerprint(analysed) == result["fingerprint"]


def test_with_validation_only_averages_are_chosen(tmp_path, one_thread):
    what = recipe(report="validation", schemes={"swa": {"start": 0.5}})
    result = train(what, scheme="swa", seed=0, out=tmp_path)
    assert result["reported_epoch"] >= 3


@pytest.mark.parametrize("scheme", ["ema", "swa"])
def test_the_network_is_trained_as_without_an_average(scheme, tmp_path, one_thread):
    """It has Dropout: what the average draws for its statistics must not be drawn from the network's numbers."""
    what = recipe(schemes={"swa": {"start": 0.3}})
    losses = []
    for key in ("standard", scheme):
        train(what, scheme=key, seed=0, out=tmp_path)
        losses.append([line["train_loss"] for line in read_metrics(folder_of(tmp_path, "tiny", key, 0))])
    assert losses[0] == losses[1]
