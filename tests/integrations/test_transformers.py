"""RePr in the Hugging Face Trainer: the bits of a plain loop, also when it goes on in a fresh process."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import torchreaper as tr
from tests.integrations.hf import CHECKPOINTS, EPOCHS, SETTINGS, Images, arguments, fit, resnet, transformers
from torchreaper.integrations.transformers import RePrCallback

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.filterwarnings("ignore:.*is an Enum subclass:UserWarning")]

EXPECTED = {
    "resnet, basic": {"narrow": 2, "masked": 4},
    "resnet, bottleneck": {"narrow": 4, "masked": 4},
    "convnext": {"masked": 2},
    "mobilenet v1": {"narrow": 14},
    "mobilenet v2": {"narrow": 20, "masked": 15},
}


def built(name: str) -> nn.Module:
    sizes = {"hidden_sizes": [8, 16], "num_labels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name.startswith("resnet"):
            kind = {"layer_type": name.partition(", ")[2], "depths": [1, 1], "embedding_size": 8}
            return transformers.ResNetForImageClassification(transformers.ResNetConfig(**kind, **sizes))
        if name == "convnext":
            config = transformers.ConvNextConfig(depths=[1, 1], num_stages=2, **sizes)
            return transformers.ConvNextForImageClassification(config)
        tiny = {"depth_multiplier": 0.1, "min_depth": 8, "num_labels": 3, "classifier_dropout_prob": 0.0}
        if name == "mobilenet v1":
            return transformers.MobileNetV1ForImageClassification(transformers.MobileNetV1Config(**tiny))
        return transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(**tiny))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "mobilenet v2" else []) for name in EXPECTED]
)
def test_the_filters_of_its_architectures_are_found_and_compact_is_masked(name):
    model = built(name).double()
    images = {"pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64)}
    bank = tr.find_filters(model, images, skip=None)
    assert not bank.flow.untraced
    routes = [layer.route for layer in bank.ranked]
    assert {route: routes.count(route) for route in set(routes)} == EXPECTED[name]
    filters = bank.preview(0.3, "random").filters
    found = []
    for mode in ("masked", "compact"):
        if mode == "compact" and set(routes) == {"masked"}:
            continue
        with bank.without(filters, mode=mode):
            found.append(model(**images).logits)
    for one in found[1:]:
        assert torch.allclose(one, found[0], rtol=0, atol=1e-10)
    assert not torch.allclose(model(**images).logits, found[0])


def plain(
    mode: str, *, accumulate: int = 1, precision: str = "", epochs: int = EPOCHS, judge=None, kept: Path | None = None
) -> tuple[nn.Module, tr.RePr]:
    """The same training in a loop of one's own; checkpoints in `kept` hold the network of each epoch's end."""
    model, images = resnet(), Images()
    decayed = {name for name, _ in model.named_parameters() if not name.endswith("bias")}
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in decayed) == kind], "weight_decay": 0.01 * kind}
        for kind in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8, fused=True)
    steps = epochs * 4 // accumulate
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / steps))
    scheme = tr.RePr(model, optimizer, {"pixel_values": images[0]["pixel_values"][None]}, subnetwork=mode, **SETTINGS)
    for epoch in range(epochs):
        for number, batch in enumerate(DataLoader(images, batch_size=6), 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss / accumulate
            loss.backward()
            if number % accumulate == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                model.zero_grad()
        if judge is not None:
            judge(model)
        if kept is not None:
            saved = transformers.ResNetForImageClassification.from_pretrained(kept / f"checkpoint-{4 * epoch + 4}")
            assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())
        scheme.step()
    return model, scheme


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(("mode", "more"), [("masked", {}), ("compact", {}), ("compact", {"bf16": True})])
def test_the_bits_of_a_plain_loop(mode, more, tmp_path):
    runs, callback = fit(tmp_path, mode, **more)
    expected, scheme = plain(mode, precision="bf16" if more else "")
    assert same(runs.model, expected)
    assert len(scheme.history) == 4
    assert callback.scheme is None
    steps = [(t["step"], t["filters"]) for t in callback.state_dict()["scheme"]["history"]]
    assert steps == [(t.step, {name: list(i) for name, i in t.filters.items()}) for t in scheme.history]
    assert not any(part._forward_hooks or part._state_dict_hooks for part in runs.model.modules())


def test_accumulated_gradients(tmp_path):
    runs, _ = fit(tmp_path, "compact", gradient_accumulation_steps=2)
    for mine, theirs in zip(runs.model.state_dict().values(), plain("compact", accumulate=2)[0].state_dict().values()):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "unit"), [("masked", "epoch"), ("compact", "epoch"), ("masked", "step")])
def test_what_is_judged_and_kept_is_the_network_that_was_trained(mode, unit, tmp_path):
    """Not the one that has just lost filters, or got untrained ones back."""
    per = 4 if unit == "step" else 1
    callback = RePrCallback(unit=unit, subnetwork=mode, **{**SETTINGS, "full": 2 * per, "sub": per})
    each = {"eval_strategy": unit if unit == "epoch" else "steps", "eval_steps": 4, "save_steps": 4}
    settings = arguments(tmp_path, each["eval_strategy"], **each, logging_strategy=each["eval_strategy"])
    transformers.Trainer(
        resnet(), settings, train_dataset=Images(), eval_dataset=Images(), callbacks=[callback]
    ).train()
    told = json.loads((tmp_path / "checkpoint-28" / "trainer_state.json").read_text())["log_history"]
    losses = []
    plain(mode, judge=lambda model: losses.append(judged(model)), kept=tmp_path)
    assert [row["eval_loss"] for row in told if "eval_loss" in row] == pytest.approx(losses, rel=1e-5)
    assert [row["repr/sub"] for row in told if "loss" in row] == [0, 0, 1, 0, 0, 1, 0]


def judged(model: nn.Module) -> float:
    """The mean loss of the images."""
    model.eval()
    with torch.no_grad():
        losses = [float(model(**batch).loss) * len(batch["labels"]) for batch in DataLoader(Images(), batch_size=8)]
    model.train()
    return sum(losses) / len(Images())


class Enough(transformers.TrainerCallback):
    """Ends training after ten steps, as early stopping does."""

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 10


def test_the_best_is_loaded_after_an_end_in_a_sub_network_phase(tmp_path, monkeypatch, caplog):
    """The losses are arranged: that after eight steps, with all filters, is the lowest."""
    callback = RePrCallback(subnetwork="compact", unit="step", **{**SETTINGS, "full": 8, "sub": 4})
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    settings = arguments(tmp_path, "steps", **best, eval_strategy="steps", eval_steps=2, save_steps=2)
    callbacks, sets = [callback, Enough()], {"train_dataset": Images(), "eval_dataset": Images()}
    runs = transformers.Trainer(resnet(), settings, callbacks=callbacks, **sets)
    losses, evaluate = iter([5.0, 4.0, 3.0, 2.0, 3.0]), runs.evaluate
    monkeypatch.setattr(runs, "evaluate", lambda **how: {**evaluate(**how), "eval_loss": next(losses)})
    with caplog.at_level(logging.WARNING, "torchreaper"):
        runs.train()
    assert runs.state.best_model_checkpoint.endswith("checkpoint-8")
    assert "training ended in a sub-network phase" in caplog.text
    kept = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "checkpoint-8")
    assert same(runs.model, kept)


def test_without_cycles_nothing_is_different(tmp_path):
    assert same(fit(tmp_path, "auto", settings={"cycles": 0})[0].model, fit(tmp_path, None)[0].model)


def test_what_is_logged(tmp_path):
    runs, _ = fit(tmp_path, "masked")
    rows = [row for row in runs.state.log_history if "loss" in row]
    assert [row["repr/sub"] for row in rows] == [0, 0, 1, 0, 0, 1, 0]
    assert [row["repr/filters_dropped"] > 0 for row in rows] == [False, False, True, False, False, True, False]
    assert all(0 < row["repr/overlap"] < 1 for row in rows)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    out = tmp_path_factory.mktemp("hf") / "runs"
    whole = {}
    for mode, when in RESUMED:
        folder = out / f"{mode}-{when}"
        whole[folder.name] = fit(folder, mode, when=when)[0].model.state_dict()
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.integrations.hf", str(out)], cwd=ROOT, check=True)
    return {name: (state, torch.load(out / name / "ends.pt")) for name, state in whole.items()}


RESUMED = [("masked", "epoch"), ("compact", "epoch"), ("compact", "steps")]


@pytest.mark.parametrize(("mode", "when"), RESUMED)
def test_a_fresh_process_goes_on_from_every_checkpoint_to_the_same_bits(resumed, mode, when):
    whole, ends = resumed[f"{mode}-{when}"]
    assert tuple(ends) == CHECKPOINTS[when]
    for step, end in ends.items():
        assert all(torch.equal(end[key], whole[key]) for key in whole), step


def test_a_saved_model_is_whole_in_every_phase(tmp_path):
    fit(tmp_path, "compact", when="epoch")
    shapes = {name: value.shape for name, value in resnet().state_dict().items()}
    for step in (8, 12, 16):  # in a full phase, in a sub-network phase, after a return
        loaded = transformers.ResNetForImageClassification.from_pretrained(tmp_path / f"checkpoint-{step}")
        assert {name: value.shape for name, value in loaded.state_dict().items()} == shapes


def test_the_trainers_own_way_of_restoring_callbacks_works_too(tmp_path):
    whole, _ = fit(tmp_path / "whole", "compact", when="epoch")
    start = str(tmp_path / "whole" / "checkpoint-8")
    again, _ = fit(tmp_path / "again", "compact", start=start, restore_callback_states_from_checkpoint=True)
    assert same(again.model, whole.model)


def test_a_best_model_out_of_a_sub_network_phase_is_told(tmp_path, caplog, monkeypatch):
    """The loss of the epochs is arranged: that of the third one, without filters, is the lowest."""
    callback = RePrCallback(subnetwork="masked", **SETTINGS)
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "metric_for_best_model": "eval_loss"}
    settings = arguments(tmp_path, "epoch", **best, greater_is_better=False)
    runs = transformers.Trainer(resnet(), settings, train_dataset=Images(), eval_dataset=Images(), callbacks=[callback])
    losses, evaluate = cycle([3.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0]), runs.evaluate
    monkeypatch.setattr(runs, "evaluate", lambda **how: {**evaluate(**how), "eval_loss": next(losses)})
    with caplog.at_level(logging.WARNING, "torchreaper"):
        runs.train()
    assert "checkpoint-12, the best, was judged without the filters that it holds" in caplog.text


def test_epochs_of_a_part_and_steps_as_the_unit(tmp_path):
    by_step = {"unit": "step", "full": 8, "sub": 4}
    _, callback = fit(tmp_path, "masked", settings=by_step, max_steps=25, num_train_epochs=1)
    assert [t["step"] for t in callback.state_dict()["scheme"]["history"]] == [8, 12, 20, 24]
    _, callback = fit(tmp_path, "masked", max_steps=26, num_train_epochs=1)  # six epochs and a half
    assert callback.state_dict()["scheme"]["steps"] == 6


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Images()[row] for row in range(24)])


def test_passes_over_a_stream_are_its_epochs(tmp_path):
    """The Trainer does not know its length, and calls the share of all steps an epoch."""
    images = {"pixel_values": Images()[0]["pixel_values"][None]}
    callback = RePrCallback(images, subnetwork="masked", **SETTINGS)
    settings = arguments(tmp_path, max_steps=4 * EPOCHS, lr_scheduler_type="linear")
    runs = transformers.Trainer(resnet(), settings, train_dataset=Stream(), callbacks=[callback])
    runs.train()
    assert same(runs.model, plain("masked")[0])
    assert [t["step"] for t in callback.state_dict()["scheme"]["history"]] == [2, 3, 5, 6]


def test_what_does_not_fit_is_refused_in_words(tmp_path):
    for epochs in (3, 6):
        with pytest.raises(tr.ReaperError, match=rf"training ends after {epochs} epochs, in a sub-network phase"):
            fit(tmp_path, "masked", num_train_epochs=epochs)
    with pytest.raises(tr.ReaperError, match=r"training ends after 6 epochs, in a sub-network phase"):
        fit(tmp_path, "masked", max_steps=21)
    endless = transformers.Trainer(
        resnet(), arguments(tmp_path, max_steps=4), train_dataset=Stream(), callbacks=[RePrCallback(**SETTINGS)]
    )
    with pytest.raises(tr.ReaperError, match=r"^example_inputs=None: no first image .*; pass what the model takes$"):
        endless.train()
    saved, _ = fit(tmp_path / "saved", "masked", when="epoch")
    with pytest.raises(tr.ReaperError, match=r"^load_state_dict: fraction was 0\.3 when saved and is 0\.4 now; build"):
        fit(tmp_path, "masked", start=str(tmp_path / "saved" / "checkpoint-8"), settings={"fraction": 0.4})
    assert saved.state.epoch == EPOCHS


def test_compact_under_its_ddp_is_refused(monkeypatch):
    callback = RePrCallback(subnetwork="compact")
    two = type("Arguments", (), {"world_size": 2})()
    with pytest.raises(tr.ReaperError, match=r'^subnetwork="compact": the Trainer keeps one DDP wrapper'):
        callback.on_train_begin(two, None, None)


def test_its_state_is_plain_json():
    callback = RePrCallback(full=3, model="resnet")
    state = json.loads(json.dumps(callback.state()))
    assert state["args"] == {"model": "resnet", "unit": "epoch", "full": 3}
    assert callback.read_text(state["attributes"]["text"]) == {}
    layers = RePrCallback(skip=["first", "full-width"])
    assert json.loads(json.dumps(layers.state()))["args"]["skip"] == ["first", "full-width"]
    own = RePrCallback(criterion=object())
    assert own.state()["args"] == {}
    assert copy.deepcopy(own.state()) == own.state()


def test_what_the_trainers_own_way_cannot_restore_is_refused_in_words(tmp_path):
    """It makes the callback anew, of what stands in the checkpoint."""
    images = {"pixel_values": Images()[0]["pixel_values"][None]}
    settings = {"example_inputs": images, "reinit": tr.Reinit(consumers="keep")}
    whole, _ = fit(tmp_path / "whole", "masked", when="epoch", settings=settings)
    start = str(tmp_path / "whole" / "checkpoint-8")
    message = (
        r"^restore_callback_states_from_checkpoint=True: reinit, example_inputs cannot be kept in a checkpoint; leave"
    )
    with pytest.raises(tr.ReaperError, match=message):
        fit(tmp_path, "masked", start=start, settings=settings, restore_callback_states_from_checkpoint=True)
    assert same(fit(tmp_path / "again", "masked", start=start, settings=settings)[0].model, whole.model)


def test_two_processes_under_its_ddp_drop_the_same_and_end_alike(tmp_path):
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "tests.integrations.hf", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, env=environment, timeout=200)
    (mine, dropped), (theirs, theirs_dropped) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert dropped == theirs_dropped
    assert len(dropped) == 4
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items() if "running" not in name)


class CutOff(transformers.TrainerCallback):
    """Fails in a step, once."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step and self.error is not None:
            error, self.error = self.error, None
            raise error


def cut_off(tmp_path, error: BaseException, **more) -> tuple[transformers.Trainer, RePrCallback]:
    callback = RePrCallback(**{**SETTINGS, "subnetwork": "compact"})
    callbacks = [callback, CutOff(10, error)]
    return transformers.Trainer(
        resnet(), arguments(tmp_path, **more), train_dataset=Images(), callbacks=callbacks
    ), callback


@pytest.mark.parametrize("finished", [False, True])
def test_a_training_that_is_cut_off_leaves_a_model_that_trains_again(tmp_path, finished):
    runs, callback = cut_off(tmp_path, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs.train()
    assert callback.scheme.phase == "sub"
    whole = {name: value.shape for name, value in resnet().state_dict().items()}
    if finished:
        callback.finish()
        assert {name: value.shape for name, value in runs.model.state_dict().items()} == whole
        assert not any(module._forward_hooks for module in runs.model.modules())
    runs.train()
    assert len(callback.state_dict()["scheme"]["history"]) == 4
    assert {name: value.shape for name, value in runs.model.state_dict().items()} == whole
    assert not any(module._forward_hooks for module in runs.model.modules())


def test_a_smaller_batch_after_one_that_does_not_fit(tmp_path):
    pytest.importorskip("accelerate")
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    runs, callback = cut_off(tmp_path, error, auto_find_batch_size=True)
    runs.train()
    assert runs._train_batch_size < 6
    assert len(callback.state_dict()["scheme"]["history"]) == 4
