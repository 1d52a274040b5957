"""Dropout: a share of what a layer reads is 0 in training, and only then."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import attach, hooks_on, network, setup, train_epoch, weights_of
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import parse
from torchreaper.lab.schemes.dropout import DropoutSpec


def read_by(module, model, images):
    """What a layer reads."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(images)
    handle.remove()
    return seen[0]


@given(p=st.floats(0.05, 0.95))
def test_a_share_of_the_input_is_0_and_the_rest_enlarged_in_training_only(p):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    scheme = attach(DropoutSpec(p=p), model)
    images = torch.ones(200, 1, 8, 8)
    seen = read_by(model[1], model.train(), images)
    assert abs((seen == 0).float().mean().item() - p) < 6 * (p * (1 - p) / seen.numel()) ** 0.5
    torch.testing.assert_close(seen[seen != 0], torch.full_like(seen[seen != 0], 1 / (1 - p)))
    assert torch.equal(read_by(model[1], model.eval(), images), torch.ones_like(seen))
    scheme.close()
    assert hooks_on(model) == 0
    assert torch.equal(read_by(model[1], model.train(), images), torch.ones_like(seen))


def test_layers_are_chosen_by_name():
    model = network(torch.float32)
    images = torch.rand(50, 1, 8, 8) + 0.1
    dropped = {}
    for layers in (None, "0", ["0", "6"], "[036]"):
        scheme = parse({"name": "dropout", "layers": layers}).attach(setup(model))
        dropped[str(layers)] = [name for name in ("0", "3", "6") if hooks_on(dict(model.named_modules())[name])]
        if layers == "0":
            assert (read_by(model[0], model.train(), images) == 0).any()
        scheme.close()
    assert dropped == {"None": ["6"], "0": ["0"], "['0', '6']": ["0", "6"], "[036]": ["0", "3", "6"]}


@pytest.mark.parametrize("mode", ["masked", "compact"])
def test_it_works_where_filters_are_gone(mode):
    model = network()
    on = setup(model)
    options = {"full": 1, "sub": 1, "cycles": 1, "fraction": 0.4, "subnetwork": mode}
    scheme = parse({"name": "dropout+repr", "parts": {"repr": options}}).attach(on)
    train_epoch(scheme, on)
    scheme.step()
    assert scheme.phase == "sub"
    gone = 16 * len(scheme.dropped["3"])
    images, _ = next(on.drawn(0, 1))
    model.train()
    shares = []
    for _ in range(20):
        seen = read_by(model[6], model, images)
        whole = 6 * 16
        assert seen.shape[1] == (whole if mode == "masked" else whole - gone)
        shares.append((seen == 0).double().mean())
    # ReLU makes zeros too, so half of the others must be there at the most.
    model.eval()
    alive = (read_by(model[6], model, images) != 0).double().mean()
    assert abs(1 - torch.stack(shares).mean() - alive / 2) < 0.03
    train_epoch(scheme, on)
    scheme.step()
    assert scheme.phase == "full"
    assert all(value.isfinite().all() for value in weights_of(model).values())
    scheme.close()
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (None, "scheme.layers=None: the network has no fully connected layer; name the layers"),
        (["0", "fc*"], "scheme.layers='fc*': no such layer; the network has 0, 1"),
    ],
)
def test_layers_that_are_not_there_are_named(layers, text):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 10, 6))
    with pytest.raises(UserError) as error:
        parse({"name": "dropout", "layers": layers}).attach(setup(model))
    assert str(error.value) == text


@pytest.mark.parametrize("layers", [3, [], [3], {"fc": 1}])
def test_what_is_no_list_of_names_is_refused(layers):
    with pytest.raises(UserError, match=r"^scheme\.layers=.*: must be the name of a layer or a list of names"):
        parse({"name": "dropout", "layers": layers})
