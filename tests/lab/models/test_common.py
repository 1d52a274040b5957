import math

import pytest
import torch
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models.common import draw_he_normal, refuse_small


def test_he_normal_has_deviation_root_two_over_fan_in_and_zero_biases():
    net = nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 5, groups=64), nn.Flatten(), nn.Linear(400, 50))
    torch.manual_seed(0)
    draw_he_normal(net)
    for module, fan_in in ((net[0], 16 * 9), (net[1], 25), (net[3], 400)):
        assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert module.bias.abs().max() == 0


def test_the_smaller_side_decides_and_the_message_names_both():
    refuse_small("vgg16", (32, 33), least=32)
    message = r"^model\.name='vgg16': needs images of at least 32x32 pixels, these have 40x31$"
    with pytest.raises(UserError, match=message):
        refuse_small("vgg16", (40, 31), least=32)
