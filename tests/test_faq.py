"""The messages that docs/faq.md quotes are those that come."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchreaper as tr
from tests.nets import plain
from tests.readers import DOCS, FENCE
from torchreaper.integrations.adapter import Adapter
from torchreaper.lab.models.cnet import CNetOptions, cnet

X, Y = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])


class MySGD(torch.optim.SGD):
    pass


class Unranked(nn.Module):
    """Filters that nothing can leave out for real: the first is read by a sum of its own channels' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.fc = nn.GroupNorm(1, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.norm(self.b(self.norm(self.a(x)))).mean((2, 3)))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def scheme(model: nn.Module | None = None, optimizer: Callable = sgd, **settings) -> tr.RePr:
    model = model or net()
    return tr.RePr(model, optimizer(model), X[:2], **{"full": 1, "sub": 1, "cycles": 4, **settings})


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return plain(widths=(8, 8, 8))


def train(model: nn.Module) -> None:
    cross_entropy(model(X), Y).backward()


def quietly(step: Callable) -> tr.Transition:
    """Of three layers it is no wonder that one has most."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tr.OneLayerWarning)
        return step()


def why_masked(found: tr.RePr) -> None:
    raise UserWarning(quietly(found.step).notes[-1])


def in_a_phase(**settings) -> tr.RePr:
    found = scheme(**settings)
    quietly(found.step)
    assert found.phase == "sub"
    return found


def one_layer() -> None:
    scheme(cnet(CNetOptions(), in_channels=3, classes=3, image_size=(8, 8)), skip=None).step()


@torch._dynamo.config.patch(recompile_limit=8)  # importing timm.optim sets it to 1,000,000
def compiled() -> None:
    model = net()
    found = scheme(model)
    forward = torch.compile(model, backend="eager")
    for mode in (True, False):
        model.train(mode)
        forward(X)
    why_masked(found)


def loaded_with_another_fraction() -> None:
    scheme(fraction=0.4).load_state_dict(scheme().state_dict())


def another_optimizer() -> None:
    model = nn.Sequential(*list(net())[:7])
    model.append(nn.Conv2d(8, 3, 1))
    tr.RePr(model, sgd(net()), X)


def averaged() -> None:
    model = net()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    found = scheme(model)
    train(model)
    ema.update_parameters(model)
    quietly(found.step)
    ema.update_parameters(model)


def named_over_state_dicts() -> None:
    model = net()
    copied = copy.deepcopy(model)
    in_a_phase(model=model, followers=[copied])
    for _ in range(2):
        for mine, theirs in zip(copied.state_dict().values(), model.state_dict().values()):
            mine.copy_(theirs)


def twice() -> None:
    model = net()
    scheme(model)
    scheme(model)


def stale() -> None:
    found = scheme(subnetwork="compact")
    ddp = nn.parallel.DistributedDataParallel(found.model)
    train(ddp)
    quietly(found.step)
    train(ddp)


def ends_in_a_phase() -> None:
    model = net()
    Adapter(full=20, sub=10, cycles=3).start(model, sgd(model), X, until=85)


#: Part of each message -> what makes it come.
MESSAGES: dict[str, Callable[[], object]] = {
    "sit in 'conv1'": one_layer,
    "masked: LBFGS": lambda: why_masked(scheme(optimizer=lambda model: torch.optim.LBFGS(model.parameters()))),
    "masked: no layer": lambda: why_masked(scheme(Unranked())),
    "masked: torch.distributed": lambda: why_masked(scheme()),
    "masked: compiled": compiled,
    "MySGD": lambda: scheme(optimizer=lambda model: MySGD(model.parameters(), lr=0.1), subnetwork="compact"),
    "already compiled": lambda: scheme(torch.compile(net())),
    "a wrapper": lambda: scheme(nn.parallel.DistributedDataParallel(net())),
    "managed already": twice,
    "does not hold": another_optimizer,
    "made for the shapes": stale,
    "size of tensor a": averaged,
    "written into the one before": named_over_state_dicts,
    "its dropped filters": lambda: (found := in_a_phase()).model.load_state_dict(found.model.state_dict()),
    "when saved": loaded_with_another_fraction,
    "training ends": ends_in_a_phase,
    "remove: the model": lambda: in_a_phase().remove(),
}
LINES = [
    line
    for block in FENCE.finditer((DOCS / "faq.md").read_text())
    if block[2] == "text"
    for line in block[3].splitlines()
]


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("part", MESSAGES)
def test_the_message_comes_as_it_is_quoted(part, request):
    if part in ("masked: torch.distributed", "a wrapper", "made for the shapes"):
        request.getfixturevalue("one_rank")
    (quoted,) = [line for line in LINES if part in line]
    kind, text = re.fullmatch(r"(?:(\w+(?:Error|Warning)): )?(.*)", quoted).groups()
    with pytest.raises((Exception, UserWarning)) as caught:
        MESSAGES[part]()
    assert str(caught.value) == text
    assert kind in (None, caught.type.__name__)


def test_every_quoted_message_is_tried():
    assert len(LINES) == len(MESSAGES)
