"""What shares a model out among ranks is refused in words, before anything is half done."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

import torchreaper as tr
from tests.nets import build, inputs
from tests.test_ddp_loops import Loop, plain

IMAGES = inputs()[0]
SETTINGS = {"full": 1, "sub": 1, "cycles": 1, "skip": None}


@pytest.fixture
def alone(tmp_path):
    """A world of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_shards_of_fsdp_are_refused_when_the_scheme_is_built_and_when_it_drops():
    model, _ = build("plain")
    scheme = tr.RePr(model, sgd(model), IMAGES, **SETTINGS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = r"^model=.*: 0\.weight is a shard, a DTensor, and filters are dropped whole; use DistributedDataParallel$"
    sharded(model)
    with pytest.raises(tr.ReaperError, match=message):
        scheme.step()
    assert scheme.steps == 0
    assert scheme.phase == "full"
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert torch.equal(whole, before[name])
    with pytest.raises(tr.ReaperError, match=message):
        tr.find_filters(sharded(build("plain")[0]), IMAGES)


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_wrapper_of_the_first_fsdp_is_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(build("plain")[0], device_id=torch.device("cpu"))
    with pytest.raises(tr.ReaperError, match=r"it is wrapped by FSDP, and filters are dropped whole"):
        tr.find_filters(model, IMAGES)


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\..*` is deprecated:DeprecationWarning")
def test_an_optimizer_that_shares_its_state_out_is_refused():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, _ = build("plain")
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.1)
    with pytest.raises(
        tr.ReaperError, match=r"^optimizer=ZeroRedundancyOptimizer: works through another one, 'optim', whose"
    ):
        tr.RePr(model, optimizer, IMAGES, **SETTINGS)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.usefixtures("alone")
def test_a_layer_that_ranks_share_is_refused():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model, _ = build("plain")
    parallelize_module(model, init_device_mesh("cpu", (1,)), {"8": ColwiseParallel()})
    with pytest.raises(tr.ReaperError, match=r"^model=Sequential: 8\.weight is a shard, a DTensor, and filters"):
        tr.RePr(model, sgd(model), IMAGES, **SETTINGS)


synced = nn.SyncBatchNorm.convert_sync_batchnorm


@pytest.mark.usefixtures("alone")
def test_torch_has_norms_over_all_ranks_on_gpus_alone():
    """When that changes, the table in docs/distributed.md has to."""
    with pytest.raises(ValueError, match="SyncBatchNorm layers only work with GPU modules"):
        nn.parallel.DistributedDataParallel(synced(build("residual")[0]))


class Sized(nn.Module):
    """Reads sizes as plain numbers behind its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = self.last(x if x.shape[2] > 2 else -x)
        return x.view(int(x.shape[0]), -1).sum(1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("build", [Sized, lambda: build("residual")[0]])
def test_norms_over_all_ranks_are_not_run_to_find_the_filters(build):
    """Where ranks are there, they would wait for each other, and on the CPU fail."""
    banks = [tr.find_filters(model, IMAGES, skip=None) for model in (build(), synced(build()))]
    assert not banks[1].flow.untraced
    assert str(banks[0]) == str(banks[1])


@pytest.mark.parametrize("mode", ["masked", "compact"])
def test_a_network_with_norms_over_all_ranks_trains_alone_as_with_its_own(mode):
    (mine, filters), (own, same) = (Loop(None, mode, "residual", convert=c).run(plain) for c in (synced, lambda m: m))
    assert filters == same
    for one, other in zip(mine, own, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_statistics_of_all_ranks_are_followed_like_those_of_one():
    """SyncBatchNorm: cut, masked and compact, in evaluation."""
    model = synced(build("residual")[0]).double().eval()
    plain = build("residual")[0].double().eval()
    plain.load_state_dict(model.state_dict())
    images = IMAGES.double()
    banks = [tr.find_filters(one, images, skip=None) for one in (model, plain)]
    assert [layer.route for layer in banks[0]] == [layer.route for layer in banks[1]]
    filters = banks[0].preview(0.4, "random").filters
    found = []
    for bank in banks:
        for mode in ("masked", "compact"):
            with bank.without(filters, mode=mode):
                found.append(bank.model(images))
    for one in found[1:]:
        assert torch.allclose(one, found[0], rtol=0, atol=1e-10)
