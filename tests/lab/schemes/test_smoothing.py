"""Label smoothing: the cross entropy with smoothed targets, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import hooks_on, network, setup, train_step

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import parse
from torchreaper.lab.schemes.smoothing import SmoothingSpec


@given(smoothing=st.floats(0.01, 0.99))
def test_the_true_class_is_one_among_others_a_little(smoothing):
    model = network()
    on = setup(model)
    scheme = SmoothingSpec(smoothing=smoothing).attach(on)
    images, targets = next(on.drawn(0, 1))
    batch, loss = train_step(scheme, on, images, targets)
    aims = torch.full((len(targets), 10), smoothing / 10, dtype=torch.float64)
    aims[range(len(targets)), targets] += 1 - smoothing
    expected = -(aims * F.log_softmax(batch.outputs.detach(), dim=1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    scheme.close()
    assert hooks_on(model) == 0


@pytest.mark.parametrize("smoothing", [0, 1, -0.1])
def test_none_and_all_are_refused(smoothing):
    with pytest.raises(UserError, match=rf"^scheme\.smoothing={smoothing}: must be "):
        parse({"name": "label-smoothing", "smoothing": smoothing})
