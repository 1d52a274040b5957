import pytest
import torch
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models import in_channels_last


def test_weights_of_convolutions_are_laid_out_anew_and_stay_the_same_parameters():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(2, 3, 2), nn.Conv1d(2, 3, 2), nn.Linear(4, 2))
    before = {name: (value, value.detach().clone()) for name, value in net.named_parameters()}
    assert in_channels_last(net) is net
    for name, value in net.named_parameters():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert net[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert net[2].weight.is_contiguous()


@pytest.mark.parametrize("net", [nn.Linear(3, 2), nn.Conv1d(2, 3, 2)], ids=["linear", "1d"])
def test_a_network_that_it_does_not_concern_is_refused(net):
    with pytest.raises(UserError, match=r"^channels_last=True: has no effect, the network has no convolution in 2 or"):
        in_channels_last(net)
