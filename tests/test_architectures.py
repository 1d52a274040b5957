"""The method's promises on published architectures: ten here, every one of the zoo with `-m sweep`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchreaper as tr
from tests import zoo
from tests.zoo import ZOO, Entry, check

torch.set_num_threads(1)

# Other people's model code warns of what they will change one day.
pytestmark = pytest.mark.filterwarnings("default")

QUICK = [
    "torchvision:resnet18",
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "timm:test_resnet",
    "timm:test_convnext",
    "timm:test_efficientnet",
    "timm:test_nfnet",
    "timm:lcnet_050",
    "timm:dla46_c",
]


@pytest.mark.parametrize("name", QUICK)
def test_an_architecture(name):
    assert check(ZOO[name]).result.startswith("ok")


@pytest.mark.sweep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in ZOO if name not in QUICK])
def test_every_architecture(name):
    result = check(ZOO[name]).result
    if result.startswith("not run"):
        pytest.skip(result)
    assert result.startswith("ok")


def test_the_zoo_holds_every_classification_convnet_of_torchvision():
    zoo.torchvision_importable()
    from torchvision import models

    names = [f"torchvision:{name}" for name in models.list_models(module=models)]
    convnets = {name for name in names if not name.split(":")[1].startswith(("vit_", "swin_", "maxvit"))}
    assert convnets == {name for name in ZOO if name.startswith("torchvision:")}


def test_the_zoo_holds_every_convnet_of_torchvision_that_segments_or_sees_films():
    zoo.torchvision_importable()
    from torchvision import models

    for home in ("segmentation", "video"):
        names = [
            name for name in models.list_models(module=getattr(models, home)) if not name.startswith(("mvit", "swin"))
        ]
        assert set(names) == {entry.name.split(":")[1] for entry in zoo.OTHERS if f".{home}:" in entry.name}


def test_the_zoo_holds_many_of_timm_once_each():
    zoo.torchvision_importable()
    import timm

    names = [entry.name.split(":")[1] for entry in zoo.TIMM]
    assert len(names) == len(set(names))
    assert len(names) >= 70
    assert set(names) <= set(timm.list_models())


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_nfnet", "timm:test_convnext2"])
def test_a_network_of_the_zoo_leaves_nothing_to_chance_and_no_gain_near_zero(name):
    entry = Entry(name)
    before = torch.get_rng_state()
    model, again = entry.build(), entry.build()
    assert torch.equal(before, torch.get_rng_state())
    for (key, value), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    images, _ = entry.inputs()
    assert torch.equal(model(images), again(images)), "two steps of training differ"
    for key, parameter in model.named_parameters():
        assert parameter.dtype is torch.float64
        assert parameter.numel() == 1 or parameter.unique().numel() > 1, f"{key} is still constant"
        if parameter.ndim == 1 and not key.endswith("bias"):
            assert parameter.abs().min() > 0.1, key


# The check itself: each fault is put beside the package's own code, and has to be found.


def result_with(monkeypatch, method: str, fault) -> str:
    """The check's result where ``fault(bank, filters, mode)`` follows every call of a method of the bank."""
    right = getattr(tr.FilterBank, method)

    def faulty(bank, *args, **kwargs):
        dropped = dict(bank.dropped)
        found = right(bank, *args, **kwargs)
        with torch.no_grad():
            fault(bank, bank.dropped or dropped, kwargs.get("mode"))
        return found

    monkeypatch.setattr(tr.FilterBank, method, faulty)
    return check(ZOO["timm:test_resnet"]).result


def test_the_check_finds_a_part_taken_out_of_the_wrong_place(monkeypatch):
    result = result_with(monkeypatch, "drop", lambda bank, filters, mode: bank.model.fc.weight[:, 0].zero_())
    assert "dropped filters are seen" in result


def test_the_check_finds_filters_that_are_not_masked(monkeypatch):
    def unmask(bank, filters, mode):
        for name in filters:
            bank[name].module._forward_hooks.clear()
        for module in bank.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module._forward_hooks.clear()

    assert "dropped filters are seen" in result_with(monkeypatch, "drop", unmask)


def test_the_check_finds_filters_that_are_still_there(monkeypatch):
    def fill(bank, filters, mode):
        name = next(iter(filters))
        bank[name].module.weight[filters[name][0]] = 1.0

    assert "still holds dropped filters" in result_with(monkeypatch, "drop", fill)


def test_the_check_finds_filters_that_come_back_changed(monkeypatch):
    def nudge(bank, filters, mode):
        for name, indices in filters.items():
            bank[name].module.weight[indices[0]] *= 1 + 1e-12

    assert "did not come back" in result_with(monkeypatch, "restore", nudge)


def test_the_check_finds_two_modes_that_differ(monkeypatch):
    def nudge(bank, filters, mode):
        if mode == "compact":
            bank.model.fc.bias *= 1 + 1e-8

    assert "masked and compact differ" in result_with(monkeypatch, "drop", nudge)
