"""What the CPU's tests ask, asked of a CUDA device: nothing here runs without one."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

import torchreaper as tr
from tests.nets import NETS, build, inputs
from tests.processes import in_two_ranks
from tests.test_ddp_loops import MODES, Loop, plain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DATA = [inputs(1, dtype=torch.float64), inputs(2, 4, torch.float64)]


def banks(net):
    """The same float64 network on the CPU and on the device."""
    model = build(net)[0].double()
    both = model, deepcopy(model).cuda()
    return [tr.find_filters(one, DATA[0][0].to(next(one.parameters()).device)) for one in both]


@pytest.mark.parametrize("name", tr.criteria.names())
@pytest.mark.parametrize("net", list(NETS))
def test_scores_are_the_cpus(net, name):
    found = []
    for bank in banks(net):
        try:
            found.append(tr.criteria.make(name, DATA).scores(bank))  # batches are moved to the model
        except tr.ReaperError as error:
            assert name == "batchnorm-scale"
            found.append(str(error))
    cpu, gpu = found
    if isinstance(cpu, str):
        assert cpu == gpu
        return
    for layer, values in cpu.items():
        torch.testing.assert_close(gpu[layer].cpu(), values, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mode", ["masked", "compact"])
@pytest.mark.parametrize("net", list(NETS))
def test_a_cycle_is_the_cpus(net, mode):
    states = []
    for device in ("cpu", "cuda"):
        model, _ = build(net)
        model = model.double().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        images, labels = (x.to(device) for x in inputs(0, dtype=torch.float64))
        settings = {"full": 1, "sub": 2, "cycles": 2, "max_per_layer": 0.5, "subnetwork": mode}
        scheme = tr.RePr(model, optimizer, images, criterion="magnitude", **settings)
        for _ in range(8):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            scheme.step()
        states.append((model.state_dict(), [transition.filters for transition in scheme.history]))
    assert states[0][1] == states[1][1]
    for key, value in states[0][0].items():
        torch.testing.assert_close(states[1][0][key].cpu(), value, rtol=1e-7, atol=1e-9)


def test_half_precision_training_ranks_by_images():
    model, _ = build("residual")
    model = model.cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    criterion = tr.criteria.Taylor([inputs(1)])
    scheme = tr.RePr(model, optimizer, inputs()[0].cuda(), full=1, sub=1, criterion=criterion, max_per_layer=0.5)
    with torch.autocast("cuda", torch.float16):
        assert scheme.step().kind == "drop"
    assert scheme.step().kind == "restore"


def synced(rank):
    """DDP by NCCL, each rank on a device of its own, with norms over both halves of the batch."""
    torch.cuda.set_device(rank)
    settings = {"device": f"cuda:{rank}", "convert": torch.nn.SyncBatchNorm.convert_sync_batchnorm}
    return {mode: Loop(rank, mode, "residual", wrap={"device_ids": [rank]}, **settings).run(plain) for mode in MODES}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_ranks_with_norms_over_both_train_as_one_process(tmp_path):
    ranks = in_two_ranks(synced, tmp_path, "nccl")
    for mode in MODES:
        seen, filters = Loop(None, mode, "residual").run(plain)
        for found in ranks:
            assert found[mode][1] == filters
            for ours, its in zip(found[mode][0], seen, strict=True):
                for name, value in its.items():
                    torch.testing.assert_close(ours[name], value, rtol=1e-7, atol=1e-9)
