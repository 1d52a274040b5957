"""Snapshots: the network of an epoch as it was trained, through kills and resumes, without any effect on the run."""

from __future__ import annotations

import pytest
import torch
from tests.lab.cut import Died, die_after
from tests.lab.test_run import stopped
from tests.lab.test_runs import folder_at, metrics_line
from tests.lab.tiny import recipe
from torch import nn

from torchreaper.lab import snapshots
from torchreaper.lab import snapshots as snapshots_module
from torchreaper.lab.measures import fingerprint
from torchreaper.lab.run import RunFailed, train
from torchreaper.lab.runs import read_events, read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def at(out, scheme="repr"):
    return out / "tiny" / scheme / "seed-0"


def read(folder):
    return {epoch: torch.load(path, weights_only=True) for epoch, path in snapshots.find(folder).items()}


def fingerprints(folder):
    return {epoch: fingerprint(content["model"]) for epoch, content in read(folder).items()}


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5]), (None, [])])
def test_each_so_many_th_epoch_and_the_last_are_kept(every, epochs):
    assert [epoch for epoch in range(1, 6) if snapshots.due(epoch, every=every, epochs=5)] == epochs


@pytest.mark.parametrize("subnetwork", ["masked", "compact"])
def test_a_snapshot_is_the_network_that_the_epoch_trained(tmp_path, subnetwork):
    result = train(
        recipe(snapshots=1, scheme__subnetwork=subnetwork, model__options__dropout=0.0),
        scheme="repr", seed=0, out=tmp_path,
    )  # fmt: skip
    folder = at(tmp_path)
    names = [f"epoch-000{n}.pt{suffix}" for n in range(1, 6) for suffix in ("", ".sha256")]
    assert sorted(path.name for path in (folder / "snapshots").iterdir()) == names
    found, metrics = read(folder), read_metrics(folder)
    for line in metrics:
        content = found[line["epoch"]]
        assert content.keys() == {"epoch", "phase", "dropped", "model"}
        assert {key: content[key] for key in ("epoch", "phase", "dropped")} == {
            key: line[key] for key in ("epoch", "phase", "dropped")
        }
        assert content["model"]["conv2.weight"].shape == (6, 6, 3, 3), "full shapes in every phase"
    assert [content["phase"] for content in found.values()] == ["full", "sub", "sub", "full", "full"]
    assert fingerprint(found[5]["model"]) == result["fingerprint"]
    # Epoch 1 ends before the drop, epoch 3 before the return: what returns then is not in it yet.
    (dropped,) = found[3]["dropped"].values()
    weights = [found[epoch]["model"]["conv2.weight"] for epoch in (1, 2, 3, 4)]
    assert torch.equal(weights[0][dropped], weights[1][dropped])
    assert torch.equal(weights[0][dropped], weights[2][dropped])
    assert not torch.equal(weights[2][dropped], weights[3][dropped])
    kept = [number for number in range(6) if number not in dropped]
    assert not torch.equal(weights[1][kept], weights[2][kept])


@pytest.mark.parametrize("scheme", ["standard", "repr"])
def test_they_change_no_number_of_a_run(tmp_path, scheme):
    outs = {out: tmp_path / out for out in ("without", "with")}
    results = [
        train(recipe(snapshots=every, augment="crop-flip"), scheme=scheme, seed=0, out=out)
        for every, out in zip((None, 1), outs.values())
    ]
    for read_lines in (read_metrics, read_events):
        logs = [read_lines(at(out, scheme)) for out in outs.values()]
        for line in (*logs[0], *logs[1], *results):
            for measured in ("seconds", "images_per_second"):
                line.pop(measured, None)
        assert logs[0] == logs[1]
    assert results[0] == results[1]
    states = [torch.load(at(out, scheme) / "last.pt", weights_only=True) for out in outs.values()]
    assert fingerprint(states[0]["model"]) == fingerprint(states[1]["model"])
    assert states[0]["run"] == states[1]["run"]
    assert not (at(outs["without"], scheme) / "snapshots").exists()


def test_a_run_with_other_snapshots_is_the_same_run(tmp_path):
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path)
    # Finished: it is not repeated, and has none.
    assert train(recipe(snapshots=1), scheme="repr", seed=0, out=tmp_path) == result
    assert snapshots.find(at(tmp_path)) == {}
    # On the way: what is due from there on.
    stopped(tmp_path / "cut", 2, recipe=recipe(snapshots=2), scheme="repr", seed=0)
    assert (
        train(recipe(snapshots=1), scheme="repr", seed=0, out=tmp_path / "cut")["fingerprint"]
        == (result["fingerprint"])
    )
    assert list(snapshots.find(at(tmp_path / "cut"))) == [2, 3, 4, 5]


@pytest.mark.parametrize("after", [1, 2, 4])
def test_an_interrupted_run_has_the_same_ones(tmp_path, after):
    train(recipe(snapshots=2), scheme="repr", seed=0, out=tmp_path / "whole")
    stopped(tmp_path / "cut", after, recipe=recipe(snapshots=2), scheme="repr", seed=0)
    assert list(snapshots.find(at(tmp_path / "cut"))) == [epoch for epoch in (2, 4) if epoch <= after]
    train(recipe(snapshots=2), scheme="repr", seed=0, out=tmp_path / "cut")
    assert fingerprints(at(tmp_path / "cut")) == fingerprints(at(tmp_path / "whole"))


def test_a_save_cut_off_anywhere_leaves_those_of_the_epochs_that_count(tmp_path, monkeypatch):
    steps = 0
    while True:
        folder = folder_at(tmp_path / str(steps))
        with monkeypatch.context() as patch:
            die_after(patch, steps)
            died = False
            try:
                for epoch in (1, 2, 3):
                    snapshot = snapshots.take(nn.Linear(2, 2), epoch, "full", {})
                    folder.save(epoch, {}, metrics_line(epoch), [], snapshot)
            except Died:
                died = True
        state = folder.load(print)
        folder.align(state, print)
        assert list(read(folder.path)) == list(range(1, (state["epoch"] if state else 0) + 1))
        if (folder.path / "snapshots").exists():
            assert not list((folder.path / "snapshots").glob("*.tmp"))
        if not died:
            break
        steps += 1
    assert steps > 20


def test_starting_afresh_deletes_them_and_nothing_else(tmp_path):
    train(recipe(snapshots=1), scheme="repr", seed=0, out=tmp_path)
    folder = at(tmp_path) / "snapshots"
    (folder / "epoch-0003.pt.tmp").write_text("cut off")
    (folder / "epoch-0004.pt.sha256.tmp").write_text("cut off")
    (folder / "epoch-0099.pt.sha256").write_text("its file was never written")
    (folder / "notes.txt").write_text("mine")
    train(recipe(), scheme="repr", seed=0, out=tmp_path, resume=False)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    train(recipe(), scheme="repr", seed=0, out=tmp_path, resume=False)
    assert not folder.exists()


def test_where_one_cannot_be_written_the_run_goes_on_later(tmp_path, monkeypatch):
    whole = train(recipe(snapshots=2), scheme="repr", seed=0, out=tmp_path / "whole")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots_module, "write", full)
        with pytest.raises(RunFailed, match=r"^epoch 2: cannot be saved in .*No space left on device"):
            train(recipe(snapshots=2), scheme="repr", seed=0, out=tmp_path / "cut")
    assert [line["epoch"] for line in read_metrics(at(tmp_path / "cut"))] == [1]
    again = train(recipe(snapshots=2), scheme="repr", seed=0, out=tmp_path / "cut")
    assert again["fingerprint"] == whole["fingerprint"]
    assert list(snapshots.find(at(tmp_path / "cut"))) == [2, 4, 5]
