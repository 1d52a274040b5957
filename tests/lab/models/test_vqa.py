import copy
import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.twins import Twins
from tests.zoo import torchvision_importable
from torch import nn

import torchreaper as tr
from torchreaper.lab.data import epoch_generator
from torchreaper.lab.data.batches import normalise
from torchreaper.lab.data.questions import KINDS, QuestionsSpec, accuracy, load_questions
from torchreaper.lab.errors import UserError
from torchreaper.lab.models import MODELS
from torchreaper.lab.models import build as build_classifier
from torchreaper.lab.models.vqa import VQAOptions, vqa
from torchreaper.lab.objects import drawing
from torchreaper.lab.settings import parse

torch.set_num_threads(1)

SMALL = {"name": "cnet", "options": {"depth": 2, "width": 6, "batch_norm": True, "pool": True}}
WORDS = 9
# Networks small enough for a test, of every way of ending: flattened pixels, mean over them, concatenated branches.
CNNS = {
    "cnet": SMALL,
    "resnet20": {"name": "resnet20", "options": {"width": 4}},
    "densenet5": {"name": "densenet5"},
    "inception-v1": {"name": "inception-v1"},
    "vgg16": {"name": "vgg16", "options": {"width": 2}},
}


def make(*, seed=0, size=(12, 12), classes=5, vocabulary=11, base=None, **options):
    options.setdefault("cnn", SMALL)
    sizes = {"embedding": 4, "hidden": 6, "mlp": 8}
    with drawing(seed):
        return vqa(
            parse(VQAOptions, {**sizes, **options}, at="model.options"),
            in_channels=3,
            classes=classes,
            image_size=size,
            vocabulary=vocabulary,
            words=WORDS,
            base=base,
        )


def inputs(seed=0, n=4, size=(12, 12), vocabulary=11, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, *size, generator=generator, dtype=torch.float64).to(dtype)
    questions = torch.randint(1, vocabulary, (n, WORDS), generator=generator)
    lengths = torch.randint(1, WORDS + 1, (n, 1), generator=generator)
    return images, questions * (torch.arange(WORDS) < lengths)


def refused(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@hypothesis_settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(1, 10), max_size=6), min_size=1, max_size=4),
    st.integers(0, 5),
    st.sampled_from(["concat", "product"]),
)
def test_a_question_is_read_to_its_last_word_whatever_stands_behind_it(questions, more, fusion):
    model = make(fusion=fusion).double().eval()
    images = inputs(n=len(questions), dtype=torch.float64)[0]
    words = max(1, *map(len, questions)) + more
    together = torch.tensor([question + [0] * (words - len(question)) for question in questions])
    logits = model(images, together)
    for image, question, alone in zip(images, questions, logits):
        single = model(image[None], torch.tensor([question or [0]]))[0]
        torch.testing.assert_close(alone, single, rtol=1e-12, atol=1e-12)


def test_order_and_last_word_of_a_question_count():
    model = make().double()
    images = inputs(n=1, dtype=torch.float64)[0]
    told = [model(images, torch.tensor([question])) for question in ([3, 4, 0], [4, 3, 0], [3, 4, 5], [3, 0, 0])]
    assert all(not torch.allclose(a, b) for k, a in enumerate(told) for b in told[:k])


@pytest.mark.parametrize("fusion", ["concat", "product"])
def test_it_is_traced_by_fx(fusion):
    model = make(fusion=fusion).eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*inputs()), model(*inputs()))


@pytest.mark.parametrize("name", CNNS)
def test_a_convnet_of_the_zoo_gives_what_its_classifier_reads(name):
    size = (32, 32) if name in ("inception-v1", "vgg16") else (12, 12)
    model = make(cnn=CNNS[name], size=size).eval()
    plain = build_classifier(
        name, CNNS[name].get("options", {}), in_channels=3, classes=2, image_size=size, generator_seed=1
    ).eval()
    found = plain.load_state_dict(model.cnn.state_dict(), strict=False)
    assert found.missing_keys == ["fc.weight", "fc.bias"]
    assert not found.unexpected_keys
    read = []
    plain.fc.register_forward_hook(lambda module, given, result: read.append(given[0]))
    images = inputs(size=size)[0]
    plain(images)
    torch.testing.assert_close(model.cnn(images), read[0])


@pytest.mark.parametrize("name", CNNS)
def test_routes_are_those_of_the_network_that_classifies(name):
    size = (32, 32) if name in ("inception-v1", "vgg16") else (12, 12)
    options = CNNS[name].get("options", {})
    plain = build_classifier(name, options, in_channels=3, classes=5, image_size=size, generator_seed=0)
    known = {layer.name: layer.route for layer in tr.find_filters(plain, inputs(n=2, size=size)[0], skip=None).layers}
    bank = tr.find_filters(make(cnn=CNNS[name], size=size), inputs(n=2, size=size), skip=None)
    assert {layer.name.removeprefix("cnn."): layer.route for layer in bank.layers} == known
    assert all(layer.ranked for layer in bank.layers)


def test_every_name_of_the_zoo_can_be_used():
    """Those that take a while are only asked for, not made."""
    for name in MODELS:
        parse(VQAOptions, {"cnn": {"name": name}})


@pytest.mark.parametrize(("fusion", "reader"), [("concat", "mlp.fc1"), ("product", "image")])
def test_the_columns_that_read_a_filter_go_with_it(fusion, reader):
    model = make(fusion=fusion)
    bank = tr.find_filters(model, inputs(), skip=None)
    linear = model.get_submodule(reader)
    whole, values = linear.weight.shape, linear.weight.detach().clone()
    pixels = 3 * 3  # of 12 x 12, halved twice
    lstm = {name: one.detach().clone() for name, one in model.lstm.named_parameters()}
    with bank.without({"cnn.conv2": [1, 4], "cnn.conv1": [0]}, mode="compact"):
        assert linear.weight.shape == (whole[0], whole[1] - 2 * pixels)
        stays = [column for column in range(whole[1]) if column // pixels not in (1, 4)]
        assert torch.equal(linear.weight, values[:, stays])
        assert model.cnn.conv2.weight.shape == (4, 5, 3, 3)
        assert all(torch.equal(one, lstm[name]) for name, one in model.lstm.named_parameters())
    assert torch.equal(linear.weight, values)


@pytest.mark.parametrize("fusion", ["concat", "product"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_compact_equals_masked(fusion, optimizer):
    def step(seed):
        def train(model, optimizer):
            optimizer.zero_grad()
            logits = model(*inputs(seed, dtype=torch.float64))
            nn.functional.cross_entropy(logits, torch.arange(4)).backward()
            optimizer.step()
            return logits.detach()

        return train

    how = {"lr": 0.05, "momentum": 0.9} if optimizer is torch.optim.SGD else {"lr": 0.01, "eps": 1e-2}
    twins = Twins(
        make(fusion=fusion).double(), inputs(dtype=torch.float64), lambda p: optimizer(p, weight_decay=0.01, **how)
    )
    lstm = twins.models["compact"].lstm
    before = {name: one.detach().clone() for name, one in lstm.named_parameters()}
    held = dict(lstm.named_parameters())
    twins.each(step(1))
    for cycle, reinit in enumerate(["orthogonal", "released"]):
        twins.drop({"cnn.conv1": [cycle, 3], "cnn.conv2": [0, 2, 5]})
        assert twins.smaller
        # What torch's LSTM computes with is a list of its own, which must go on holding the very parameters.
        assert all(flat is held[name] for flat, name in zip(lstm._flat_weights, lstm._flat_weights_names))
        for seed in (2, 3):
            twins.each(step(seed))
        twins.restore(reinit)
        assert all(one is held[name] for name, one in lstm.named_parameters())
        twins.each(step(4))
    assert all(not torch.equal(one, before[name]) for name, one in lstm.named_parameters())


def test_the_scheme_keeps_to_its_scope_and_state_dicts_stay_whole():
    model = make()
    whole = {name: value.shape for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheme = tr.RePr(
        model, optimizer, inputs(), full=1, sub=1, cycles=2, fraction=0.3, scope="cnn", max_per_layer=0.4, skip=None
    )
    for unit in range(5):
        for seed in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(*inputs(seed)), torch.arange(4)).backward()
            optimizer.step()
        change = scheme.step()
        if scheme.phase == "sub":
            assert set(change.filters) <= {"cnn.conv1", "cnn.conv2"}
            assert sum(map(len, change.filters.values())) == 3
        assert {name: value.shape for name, value in model.state_dict().items()} == whole
        assert (scheme.phase == "sub") == (unit in (0, 2))
    fresh = make(seed=5)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.eval()(*inputs()), model.eval()(*inputs()))


def test_a_frozen_convnet_stays_as_it_is():
    model = make(frozen=True).train()
    assert model.training
    assert model.mlp.training
    assert not any(module.training for module in model.cnn.modules())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(*inputs(seed)), torch.arange(4)).backward()
        optimizer.step()
    same = {name: torch.equal(value, before[name]) for name, value in model.state_dict().items()}
    assert all(kept == name.startswith("cnn.") for name, kept in same.items())
    with pytest.raises(tr.ReaperError, match="frozen"):
        tr.find_filters(model, inputs())
    assert make().train().cnn.norm1.training


@pytest.mark.parametrize("fusion", ["concat", "product"])
def test_it_learns_what_needs_both_sides(fusion):
    """Two pictures and two questions, whose answer is an exclusive or: neither side alone tells anything."""
    model = make(fusion=fusion, classes=2, vocabulary=4, mlp=16)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(120):
        which, asked = torch.randint(0, 2, (2, 32), generator=generator)
        images = torch.randn(32, 3, 12, 12, generator=generator) * 0.1
        images[:, 0] += which[:, None, None]
        questions = torch.stack([asked + 2, torch.ones_like(asked), torch.zeros_like(asked)], 1)
        logits = model(images, questions)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, which ^ asked).backward()
        optimizer.step()
    assert (logits.argmax(1) == which ^ asked).float().mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seen", [True, False])
def test_easy_vqa_is_learned_by_looking(seen):
    """The defaults, 8,000 of its questions, seven epochs: about a minute; without pictures it is language alone."""
    if importlib.util.find_spec("easy_vqa") is None:
        pytest.skip("easy-vqa is not installed")
    data = load_questions(QuestionsSpec(name="easy-vqa", limit=8000, test_limit=2000))
    with drawing(0):
        model = vqa(
            VQAOptions(),
            in_channels=3,
            classes=len(data.classes),
            image_size=data.train.shape[1:],
            vocabulary=len(data.vocabulary),
            words=data.words,
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batches(split, order):
        for (images, questions), targets in split.read(order):
            yield normalise(images, data.mean, data.std) * seen, questions, targets

    for epoch in range(7 if seen else 3):
        order = torch.randperm(len(data.train), generator=epoch_generator(0, epoch)).split(32)
        for images, questions, targets in batches(data.train, order):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images, questions), targets[:, 0]).backward()
            optimizer.step()
    with torch.no_grad():
        found = [
            accuracy(model(images, questions).argmax(1), targets)
            for images, questions, targets in batches(data.test, torch.arange(len(data.test)).split(250))
        ]
    right = torch.cat(found)
    other = right[data.test.kinds == KINDS.index("other")].mean()
    print(f"seen {seen}: all {right.mean():.4f}, other {other:.4f}")
    assert right.mean() > 0.78 if seen else right.mean() < 0.73
    assert other > 0.6 if seen else other < 0.3


def test_all_weights_come_from_the_global_random_state():
    first, again, other = make(seed=1).state_dict(), make(seed=1).state_dict(), make(seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for part in ("cnn.conv1.weight", "embedding.weight", "lstm.weight_ih_l0", "mlp.fc1.weight"):
        assert not torch.equal(first[part], other[part])


def test_children_have_the_promised_names():
    assert [name for name, _ in make().named_children()] == ["cnn", "embedding", "lstm", "mlp"]
    dropout = make(dropout=0.5, fusion="product")
    assert list(dict(dropout.mlp.named_children())) == ["fc1", "relu1", "dropout1", "fc2", "relu2", "dropout2", "fc"]
    assert make().embedding.weight[0].eq(0).all()


OWN = """
import torch
from torch import nn


def sequence(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes))


class Ends(nn.Module):
    def __init__(self, classes, way):
        super().__init__()
        self.conv, self.way = nn.Conv2d(3, 6, 3), way
        self.head = nn.Conv2d(6, classes, 1) if way == "conv" else nn.Linear(6, classes)

    def forward(self, x):
        x = self.conv(x)
        if self.way == "conv":
            return self.head(x).mean((2, 3))
        if self.way == "map":
            return self.head(x.movedim(1, 3)).mean((1, 2))
        x = self.head(x.mean((2, 3)))
        return x.log_softmax(1) if self.way == "softmax" else x


def alone(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(432, classes))
"""


def test_networks_of_the_users_own(mine):
    (mine / "mynets" / "nets.py").write_text(OWN)

    def own(name, **options):
        return make(cnn={"name": f"mynets.nets:{name}", "options": options}, base=mine)

    model = own("sequence")
    assert isinstance(model.cnn[4], nn.Identity)
    assert model.mlp.fc1.in_features == 16 + 6
    assert model(*inputs()).shape == (4, 5)
    assert own("Ends", way="linear").mlp.fc1.in_features == 6 + 6
    assert own("alone").mlp.fc1.in_features == 432 + 6
    for way in ("conv", "softmax", "map"):
        assert refused(own, "Ends", way=way) == (
            "model.options.cnn.name='mynets.nets:Ends': its classifier cannot be taken off: must end in one nn.Linear, "
            "used once, whose result it returns; of the zoo all do, such as cnet and resnet20"
        )


@pytest.mark.parametrize(
    ("name", "width"),
    [("torchvision:mobilenet_v3_small", 1024), ("timm:test_resnet", 96), ("torchvision:squeezenet1_1", 0)],
)
def test_networks_of_the_libraries(name, width):
    torchvision_importable()
    if width:
        assert make(cnn={"name": name}, size=(32, 32)).mlp.fc1.in_features == width + 6
    else:
        assert "cannot be taken off" in refused(make, cnn={"name": name}, size=(32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cnn": {"name": "cnett"}}, "model.options.cnn.name='cnett': unknown model; did you mean 'cnet'?"),
        ({"cnn": {"name": "cnet", "options": {"depht": 3}}}, "model.options.cnn.options.depht: unknown key; did you"),
        ({"fusion": "sum"}, "model.options.fusion='sum': must be 'concat' or 'product'"),
        ({"hidden": 0}, "model.options.hidden=0: must be at least 1"),
        ({"dropout": 1.0}, "model.options.dropout=1.0: must be less than 1"),
        ({"lstm": 3}, "model.options.lstm: unknown key; known: cnn, embedding, hidden, mlp, dropout, fusion, frozen"),
        (
            {"cnn": {"name": "inception-v1"}},
            "model.options.cnn.name='inception-v1': needs images of at least 32x32 pixels",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    assert refused(make, **options).startswith(message)


def test_options_read_themselves_back():
    options = parse(VQAOptions, {"cnn": CNNS["resnet20"], "frozen": True})
    assert parse(VQAOptions, options.model_dump(mode="json")) == options
    assert options.cnn.options["shortcut"] == "pad"
