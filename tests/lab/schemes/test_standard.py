"""Standard training changes nothing."""

import torch
import torch.nn.functional as F
from torch import nn

from torchreaper.lab.data import FixedBatches, Split
from torchreaper.lab.schemes import StandardSpec

NOTHING = Split(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
UNREAD = FixedBatches(NOTHING, "training", torch.zeros(1), torch.ones(1), batch=4)


def test_it_is_the_network_all_the_time():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scheme = StandardSpec().attach(model, optimizer, torch.zeros(2, 1, 8, 8), seed=0, batches=UNREAD)
    StandardSpec().check(epochs=1)
    for _ in range(100):
        assert scheme.step() is None
        assert (scheme.phase, scheme.dropped, scheme.bank) == ("full", {}, None)
    scheme.load_state_dict(scheme.state_dict())
    scheme.close()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_its_loss_is_cross_entropy():
    outputs, targets = torch.randn(7, 10), torch.randint(10, (7,))
    model = nn.Linear(3, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheme = StandardSpec().attach(model, optimizer, torch.zeros(1, 3), seed=0, batches=UNREAD)
    assert torch.equal(scheme.loss(model, torch.zeros(7, 3), targets, outputs), F.cross_entropy(outputs, targets))
