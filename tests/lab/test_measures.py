"""Accuracy, overlap by layer, fingerprints."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchreaper as tr
from torchreaper.lab.data import Split
from torchreaper.lab.environment import make_fabric
from torchreaper.lab.measures import convolutions, evaluate, event, fingerprint, overlap_by_layer


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 4, 3, groups=2)
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(self.grouped(self.norm(self.conv(images)).relu()).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@given(batch=st.integers(1, 12), count=st.integers(1, 11))
def test_an_evaluation_does_not_depend_on_its_batches_and_changes_nothing(batch, count):
    torch.manual_seed(0)
    net = Net()
    images, labels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8), torch.randint(3, (count,))
    before = fingerprint(net.state_dict())
    loss, accuracy = evaluate(
        make_fabric("cpu", "32-true"), net, Split(images, labels), mean=torch.zeros(1), std=torch.ones(1), batch=batch
    )
    net.eval()
    with torch.no_grad():
        outputs = net(images / 255)
    assert accuracy == (outputs.argmax(1) == labels).sum().item() / count
    assert loss == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-4)
    assert fingerprint(net.state_dict()) == before


def test_overlap_is_the_methods_layer_by_layer(net):
    layers = convolutions(net)
    assert list(layers) == ["conv", "grouped"]
    means, total = overlap_by_layer(layers, {"conv": 6, "grouped": 4}, {})
    expected = {"conv": tr.overlap(net.conv.weight), "grouped": tr.overlap(net.grouped.weight, groups=2)}
    assert means == pytest.approx({name: overlaps.mean().item() for name, overlaps in expected.items()})
    assert total == pytest.approx(sum(overlaps.sum().item() for overlaps in expected.values()))


def test_in_a_sub_network_only_the_kept_filters_count_masked_or_compact_alike(net):
    layers, dropped = convolutions(net), {"conv": (1, 4)}
    expected = tr.overlap(net.conv.weight[[0, 2, 3, 5]])
    masked, _ = overlap_by_layer(layers, {"conv": 6, "grouped": 4}, dropped)
    assert masked["conv"] == pytest.approx(expected.mean().item())
    small = nn.Conv2d(1, 4, 3)
    small.weight.data = net.conv.weight.data[[0, 2, 3, 5]]
    compact, total = overlap_by_layer({"conv": small}, {"conv": 6}, dropped)
    assert compact["conv"] == pytest.approx(expected.mean().item())
    assert total == pytest.approx(expected.sum().item())


@pytest.mark.parametrize("training", [True, False])
def test_to_measure_a_weight_that_is_computed_changes_nothing(net, training):
    nn.utils.parametrizations.spectral_norm(net.conv)
    nn.utils.parametrizations.weight_norm(net.grouped)
    net.train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (overlap_by_layer(convolutions(net), {"conv": 6, "grouped": 4}, {}) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {module.training for module in net.modules()} == {training}
    assert first[0]["conv"] == pytest.approx(tr.overlap(net.eval().conv.weight).mean().item())


def test_a_network_without_convolutions_has_no_overlap():
    assert overlap_by_layer(convolutions(nn.Linear(2, 2)), {}, {}) == ({}, 0.0)


def test_a_fingerprint_sees_every_bit_name_type_and_shape(net):
    state = net.state_dict()
    whole = fingerprint(state)
    assert whole == fingerprint(dict(reversed(state.items())))
    for name, value in state.items():
        changed = value.clone()
        flat = changed.view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0)) if flat.is_floating_point() else flat[-1] + 1
        assert fingerprint({**state, name: changed}) != whole
    assert fingerprint({"a": torch.zeros(2, 3)}) != fingerprint({"a": torch.zeros(3, 2)})
    assert fingerprint({"a": torch.zeros(2)}) != fingerprint({"b": torch.zeros(2)})
    assert fingerprint({"a": torch.zeros(2)}) != fingerprint({"a": torch.zeros(2, dtype=torch.int32)})
    assert fingerprint({"a": torch.tensor(0.0)}) != fingerprint({"a": torch.tensor(-0.0)})


def test_a_fingerprint_sees_what_modules_give_as_their_extra_state():
    class Counting(nn.Linear):
        extra = None

        def get_extra_state(self):
            return self.extra

    net = Counting(2, 2)
    found = set()
    extras = [None, 3, 3.0, "3", {"a": [1, 2]}, {"a": [2, 1]}, {"b": [1, 2]}]
    for extra in [*extras, {"a": torch.zeros(2)}, {"a": torch.ones(2)}]:
        net.extra = extra
        found.add(fingerprint(net.state_dict()))
        assert fingerprint(net.state_dict()) in found
    assert len(found) == 9


def test_a_fingerprint_does_not_see_how_a_tensor_lies_in_memory():
    tensor = torch.randn(2, 3, 4, 5)
    views = [tensor, tensor.clone(memory_format=torch.channels_last), torch.randn(4, 3, 4, 5)[::2].copy_(tensor)]
    assert len({fingerprint({"a": view}) for view in views}) == 1
    numbers = torch.randn(3, dtype=torch.complex64)
    assert fingerprint({"a": numbers.conj()}) == fingerprint({"a": numbers.conj().resolve_conj()})
    assert fingerprint({"a": numbers.conj()}) != fingerprint({"a": numbers})


def test_an_event_is_plain_values():
    transition = tr.Transition("drop", 1, 20, {"conv": (1, 4)}, {"conv": torch.tensor([0.5, 1.0])}, 0.1, ("note",))
    line = event(20, transition)
    assert json.loads(json.dumps(line)) == line
    assert line == {
        **{"epoch": 20, "kind": "drop", "cycle": 1, "filters": {"conv": [1, 4]}, "scores": {"conv": [0.5, 1.0]}},
        **{"seconds": 0.1, "notes": ["note"]},
    }
