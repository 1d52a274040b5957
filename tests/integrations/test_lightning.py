"""RePr in Lightning's Trainer: the bits of a plain loop, also when it was stopped and goes on in a fresh process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import torchreaper as tr
from tests.integrations.lit import (
    CHECKPOINTS,
    EPOCHS,
    SETTINGS,
    CSVLogger,
    Lit,
    Loader,
    ModelCheckpoint,
    StochasticWeightAveraging,
    data,
    fit,
    pl,
    trainer,
)
from torchreaper.integrations.lightning import RePrCallback

ROOT = Path(__file__).parents[2]
#: What Lightning says of torch, and of loaders that are as small as these.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:The number of training batches .* is smaller than the logging interval:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:You're resuming from a checkpoint that ended before the epoch ended:UserWarning"
    ),
]


def plain(
    mode: str, epochs: int = EPOCHS, precision: str = "32-true", judge=None, kept: Path | None = None, **settings
) -> tuple[nn.Module, tr.RePr]:
    """The same training in a loop of one's own; checkpoints in `kept` hold the network of each epoch's end."""
    module = Lit()
    (optimizer,), (schedule,) = module.configure_optimizers()
    scheme = tr.RePr(module.net, optimizer, data()[0][0][None], **{**SETTINGS, "subnetwork": mode, **settings})
    for epoch in range(epochs):
        for images, labels in Loader():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = nn.functional.cross_entropy(module.net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        schedule.step()
        if judge is not None:
            judge(module.net)
        if kept is not None:
            saved = torch.load(kept / f"epoch={epoch}.ckpt", weights_only=True)
            assert all(torch.equal(saved["state_dict"][name], value) for name, value in module.state_dict().items())
        scheme.step()
    return module, scheme


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("mode", ["masked", "compact"])
def test_the_bits_of_a_plain_loop(mode, precision, tmp_path):
    module, callback = fit(tmp_path, mode, precision=precision)
    expected, scheme = plain(mode, precision=precision)
    assert same(module, expected)
    assert callback.scheme is None
    assert len(scheme.history) == 4
    assert [t["filters"] for t in callback.state_dict()["scheme"]["history"]] == [
        {name: list(filters) for name, filters in t.filters.items()} for t in scheme.history
    ]
    assert not any(part._forward_hooks or part._state_dict_hooks for part in module.modules())


@pytest.mark.parametrize("mode", ["masked", "compact"])
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_what_is_judged_and_kept_is_the_network_that_was_trained(mode, unit, tmp_path):
    """Not the one that has just lost filters, or got untrained ones back; of a run that keeps what was best."""
    per, loader = (4 if unit == "step" else 1), Loader()
    settings = {**SETTINGS, "subnetwork": mode, "full": 2 * per, "sub": per}
    callback = RePrCallback(model="net", unit=unit, **settings)
    best = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="loss", save_top_k=-1)
    module, runs = Lit(), trainer(tmp_path, callback, enable_checkpointing=True, logger=CSVLogger(tmp_path, version=0))
    runs.callbacks.append(best)
    runs.fit(module, loader, Loader())
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        found = [float(row["loss"]) for row in csv.DictReader(file) if row.get("loss")]
    losses = []
    plain(mode, judge=lambda net: losses.append(judged(net)), kept=tmp_path)
    assert found == pytest.approx(losses, rel=1e-5)
    assert len(losses) == EPOCHS


def judged(net: nn.Module) -> float:
    """The mean loss of the validation batches."""
    with torch.no_grad():
        net.eval()
        losses = [nn.functional.cross_entropy(net(images), labels) for images, labels in Loader()]
        net.train()
    return float(torch.stack(losses).mean())


def test_without_cycles_nothing_is_different(tmp_path):
    with_it, _ = fit(tmp_path, "auto", cycles=0)
    assert same(with_it, fit(tmp_path, None)[0])


@pytest.mark.parametrize(
    ("unit", "limits", "phases"),
    [
        ("epoch", {"max_epochs": 20}, (1, 1, 8)),
        ("epoch", {"max_steps": 80}, (1, 1, 8)),  # of four batches an epoch
        ("step", {"max_epochs": 20}, (4, 4, 8)),
        ("step", {"max_steps": 80}, (4, 4, 8)),
        ("epoch", {"max_epochs": 20, "fast_dev_run": True}, (2, 2, 8)),
        ("epoch", {"max_epochs": -1, "max_time": {"seconds": 1}}, (2, 2, 8)),
        ("step", {"max_epochs": -1, "max_time": {"seconds": 1}}, (2, 2, 8)),
    ],
)
def test_phases_that_nobody_gave_are_planned_by_what_the_trainer_knows(unit, limits, phases, tmp_path):
    callback = RePrCallback(model="net", unit=unit)
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_):
            seen.append((callback.scheme.full, callback.scheme.sub, callback.scheme.cycles))

    runs = pl.Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
        **{"enable_model_summary": False, "default_root_dir": tmp_path, "callbacks": [callback, Look()], **limits},
    )
    runs.fit(Lit(), Loader())
    assert set(seen) == {phases}
    if len(limits) == 1:
        assert len(seen) == 80
        assert len(callback.state_dict()["scheme"]["history"]) == 16


def test_manual_optimization_with_two_optimizers_by_the_step(tmp_path):
    """The scheme counts the Trainer's steps, of which two optimizers make two in every batch."""
    module, callback = fit(tmp_path, "compact", lit=Lit(manual=True), unit="step", full=8, sub=8, cycles=2, until=None)
    steps = [(t["kind"], t["step"]) for t in callback.state_dict()["scheme"]["history"]]
    assert steps == [("drop", 8), ("restore", 16), ("drop", 24), ("restore", 32)]
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_what_is_logged(tmp_path):
    fit(tmp_path, "masked", logger=True)
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("repr/sub")]
    assert [float(row["repr/sub"]) for row in rows] == [0, 0, 1, 0, 0, 1, 0]
    assert [float(row["repr/filters_dropped"]) > 0 for row in rows] == [False, False, True, False, False, True, False]
    assert all(0 < float(row["repr/overlap"]) < 1 for row in rows)


def test_what_is_beside_the_progress_bar(tmp_path):
    runs = trainer(tmp_path, RePrCallback(model="net", **SETTINGS))
    runs.fit(Lit(), Loader())
    assert {"repr/sub", "repr/filters_dropped", "repr/overlap"} <= runs.progress_bar_metrics.keys()


@pytest.mark.filterwarnings("ignore:Swapping scheduler:UserWarning")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_stochastic_weight_averaging_loses_and_regains_filters_with_the_model(tmp_path):
    """It begins in the second epoch, passes two cycles, and ends as the model."""
    ends = [fit(tmp_path, mode, when="swa", precision="64-true")[0].state_dict() for mode in ("masked", "compact")]
    assert all(value.shape == Lit().state_dict()[name].shape for name, value in ends[1].items())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-10)
    plain = fit(tmp_path, "compact", precision="64-true")[0].state_dict()
    assert not any(torch.equal(plain[name], ends[1][name]) for name in plain if name.endswith("weight"))


RESUMED = [("masked", "epoch"), ("masked", "ema"), *(("compact", when) for when in CHECKPOINTS)]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Checkpoints of whole runs, each gone on with in a process that was fresh: scenario -> weights at the end."""
    out = tmp_path_factory.mktemp("resumed")
    whole = {}
    for mode, when in RESUMED:
        folder = out / f"{mode}-{when}"
        whole[folder.name] = fit(folder, mode, when=when)[0].state_dict()
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.integrations.lit", str(out)], cwd=ROOT, check=True)
    return {name: (state, torch.load(out / name / "ends.pt")) for name, state in whole.items()}


@pytest.mark.parametrize(("mode", "when"), RESUMED)
def test_a_fresh_process_goes_on_from_every_checkpoint_to_the_same_bits(resumed, mode, when):
    """Saved at the end of an epoch, before its unit was ended (after validation), and in the middle of one."""
    whole, ends = resumed[f"{mode}-{when}"]
    assert len(ends) == len(CHECKPOINTS[when])
    for name, end in ends.items():
        assert all(torch.equal(end[key], whole[key]) for key in whole), name


@pytest.mark.parametrize("mode", ["masked", "compact"])
def test_an_average_loses_and_regains_filters_with_the_model(mode, tmp_path):
    """Lightning's EMA ends with the numbers of torch's, which follows the scheme by hand."""
    module, _ = fit(tmp_path, mode, when="ema")
    by_hand = Lit()
    (optimizer,), (schedule,) = by_hand.configure_optimizers()
    ema = AveragedModel(by_hand.net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    settings = {**SETTINGS, "subnetwork": mode, "followers": [ema.module]}
    scheme = tr.RePr(by_hand.net, optimizer, data()[0][0][None], **settings)
    for _ in range(EPOCHS):
        for images, labels in Loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand.net(images), labels).backward()
            nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
            optimizer.step()
            ema.update_parameters(by_hand.net)
        schedule.step()
        scheme.step()
    for name, value in ema.module.state_dict().items():
        assert torch.allclose(module.net.state_dict()[name], value, atol=1e-6), name


def test_a_second_fit_goes_on_where_the_first_ended(tmp_path):
    module, callback = Lit(), RePrCallback(model="net", **{**SETTINGS, "subnetwork": "compact"})
    runs = trainer(tmp_path, callback, epochs=4, enable_checkpointing=False)
    loader = Loader()
    with pytest.warns(tr.NoEffectWarning, match="only 1 cycles fit into 4 epochs"):
        runs.fit(module, loader)
    runs.fit_loop.max_epochs = EPOCHS
    runs.fit(module, loader)
    assert [t["step"] for t in callback.state_dict()["scheme"]["history"]] == [2, 3, 5, 6]


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    pass


@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set, but there is no last checkpoint:UserWarning")
@pytest.mark.filterwarnings("ignore:`.fit.ckpt_path=None.` was called without a model:UserWarning")
def test_an_exception_leaves_a_plain_model_and_a_checkpoint_of_the_phase(tmp_path):
    module = Lit(stop=11)  # in the third epoch, without filters
    callback = RePrCallback(model="net", **{**SETTINGS, "subnetwork": "compact"})
    runs = trainer(tmp_path / "stopped", callback, when="exception")
    module.stopped, loader = Interrupted, Loader()
    with pytest.raises(Interrupted):
        runs.fit(module, loader)
    assert callback.scheme is None
    assert {name: p.shape for name, p in module.named_parameters()} == {
        name: p.shape for name, p in Lit().named_parameters()
    }
    (saved,) = (tmp_path / "stopped").rglob("*.ckpt")
    found = torch.load(saved, weights_only=True)["callbacks"]["RePrCallback"]["scheme"]
    assert found["dropped"]


def test_the_fitted_module_is_an_ordinary_one(tmp_path):
    module, callback = Lit(), RePrCallback(**SETTINGS)
    runs = trainer(tmp_path, callback)
    loader = Loader()
    runs.fit(module, loader, loader)
    assert runs.validate(module, loader, verbose=False)[0]["loss"] > 0
    assert len(runs.predict(module, DataLoader(data(), batch_size=6))) == 4
    runs.save_checkpoint(tmp_path / "end.ckpt")
    fresh = Lit()
    fresh.load_state_dict(torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"])
    assert same(fresh, module)


def test_a_compiled_network_that_the_sanity_check_has_called_is_hooked_all_the_same(tmp_path):
    module, callback = Lit(), RePrCallback(model="net", **{**SETTINGS, "subnetwork": "masked"})
    module.net.compile(backend="eager")
    runs = trainer(tmp_path, callback, num_sanity_val_steps=2)
    loader = Loader()
    runs.fit(module, loader, loader)
    expected, _ = plain("masked")
    assert same(module, expected)


def test_what_does_not_fit_is_refused_in_words(tmp_path):
    with pytest.raises(tr.ReaperError, match=r"^fractoin=0\.3: RePr has full, sub"):
        RePrCallback(fractoin=0.3)
    for epochs in (3, 6):
        with pytest.raises(tr.ReaperError, match=rf"training ends after {epochs} epochs, in a sub-network phase"):
            fit(tmp_path, "masked", epochs=epochs)
    named = [{"image": image, "label": label} for image, label in data()]
    with pytest.raises(tr.ReaperError, match=r"^example_inputs=None: a batch is a dict; pass what the model takes$"):
        trainer(tmp_path, RePrCallback(**SETTINGS)).fit(Lit(), DataLoader(named, batch_size=6))


def test_a_try_of_one_batch_is_no_training_that_could_end_too_early(tmp_path):
    callback = RePrCallback(model="net", **{**SETTINGS, "full": 1})
    trainer(tmp_path, callback, fast_dev_run=True).fit(Lit(), Loader())
    assert callback.state_dict()["scheme"]["history"] == []


@pytest.mark.filterwarnings("ignore:Swapping scheduler:UserWarning")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_the_pass_that_takes_statistics_only_is_no_epoch(tmp_path):
    """Stochastic weight averaging adds it where there are norms; filters that return for it would not be trained."""
    callback = RePrCallback(model="net", **SETTINGS)
    runs = trainer(tmp_path, callback, when="swa", epochs=6)
    with pytest.raises(tr.ReaperError, match="training ends after 6 epochs, in a sub-network phase"):
        runs.fit(Lit(), Loader())
    swa = StochasticWeightAveraging(0.05, swa_epoch_start=1)
    runs = trainer(tmp_path, RePrCallback(model="net", **{**SETTINGS, "cycles": 3}), epochs=8)
    runs.callbacks.append(swa)
    module = Lit()
    with pytest.warns(tr.NoEffectWarning, match="only 2 cycles fit into 8 epochs"):
        runs.fit(module, Loader())
    last = next(one for one in runs.callbacks if isinstance(one, RePrCallback)).state_dict()["scheme"]["history"]
    assert [t["step"] for t in last] == [2, 3, 5, 6]  # and not 8, as it begins


def test_two_processes_masked_under_ddp_and_compact_wrapped_anew(tmp_path):
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "tests.integrations.lit", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, env=environment, timeout=200)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for mode in ("masked", "compact"):
        (mine, dropped), (theirs, same_dropped) = (rank[mode] for rank in ranks)
        assert dropped == same_dropped == ranks[0]["masked"][1]
        assert len(dropped) == 4
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]) or "running" in name
            assert torch.allclose(value.double(), ranks[0]["masked"][0][name].double(), rtol=0, atol=1e-10)
