"""Standard training changes nothing."""

import torch
import torch.nn.functional as F
from tests.lab.schemes.setups import attach
from torch import nn

from torchreaper.lab.schemes import Batch, StandardSpec


def test_it_is_the_network_all_the_time():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scheme = attach(StandardSpec(), model)
    StandardSpec().check(epochs=1)
    for epoch in range(100):
        assert scheme.step() is None
        assert (scheme.phase, scheme.dropped, scheme.bank, scheme.network) == ("full", {}, None, None)
        assert scheme.epoch == epoch + 1
    scheme.load_state_dict(scheme.state_dict())
    scheme.close()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_its_loss_is_cross_entropy_and_its_images_are_the_images():
    outputs, targets = torch.randn(7, 10), torch.randint(10, (7,))
    model = nn.Linear(64, 10)
    scheme = attach(StandardSpec(), model)
    images = torch.zeros(7, 64)
    mixed, aims = scheme.mix(images, targets)
    assert mixed is images
    assert aims is targets
    batch = Batch(model, (mixed,), aims, outputs)
    loss = F.cross_entropy(outputs, aims, label_smoothing=scheme.label_smoothing)
    assert scheme.loss(batch, loss) is loss
    assert torch.equal(loss, F.cross_entropy(outputs, targets))
