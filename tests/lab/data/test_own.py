"""Data sets of the user's own, by package.module:callable."""

import importlib
import random
import sys

import numpy as np
import pytest
import torch
from tests.lab.tiny import recipe

from torchreaper.lab import data
from torchreaper.lab.data import DataSpec, Split, load
from torchreaper.lab.data.stream import Streamed
from torchreaper.lab.errors import UserError
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import train
from torchreaper.lab.runs import read_metrics
from torchreaper.lab.settings import parse

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = '''
import os
import random
import numpy as np
import torch
from PIL import Image


class Set:
    """`count` images of noise; class 0 is dark."""

    def __init__(self, count, seed, kind="bytes", noise=0, classes=2, side=6):
        draw = np.random.default_rng(seed)
        self.kind, self.noise = kind, noise
        self.images = draw.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
        self.labels_ = [number % classes for number in range(count)]
        self.images[::2] //= 4

    def __len__(self):
        return len(self.labels_)

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[index])
        if self.noise:
            image = image ^ random.randrange(8) ^ int(np.random.randint(8)) ^ int(torch.randint(8, ()))
        if self.kind == "picture":
            image = Image.fromarray(image.permute(1, 2, 0).numpy())
        if self.kind == "floats":
            image = image.float() / 64 - 2
        return image, self.labels_[index]


class Targets(Set):
    classes = ["dark", "light"]

    @property
    def targets(self):
        return self.labels_

    def __getitem__(self, index):
        Targets.asked = getattr(Targets, "asked", 0) + 1
        return super().__getitem__(index)


class Shifted(Targets):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, 1 - label


class Wandering(Set):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label if random.random() < 0.9 else 1 - label


class Raising(Set):
    """``what`` of it raises."""

    def __init__(self, what):
        super().__init__(8, 0)
        self.what = what

    def __len__(self):
        return 1 // (self.what != "length") * super().__len__()

    @property
    def targets(self):
        return self.labels_[99] if self.what == "targets" else self.labels_

    @property
    def classes(self):
        return {}["names"] if self.what == "classes" else ["dark", "light"]


class Odd:
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.item(index)


def make(count=20, **how):
    return Set(count, 0, **how), Set(6, 1, **how)


def sides(train, test):
    return Set(20, 0, side=train), Set(6, 1, side=test)


def raising(what):
    return Raising(what), Set(6, 1)


def targets():
    return Targets(20, 0), Targets(6, 1)


def named(train, test, count=20, classes=2, shift=0, array=False):
    sets = Set(count, 0, classes=classes), Set(8, 1, classes=classes)
    for one, names in zip(sets, (train, test)):
        one.labels_ = [label + shift for label in one.labels_]
        if names is not None:
            one.classes = np.array(names) if array else names
    return sets


def shifted():
    return Shifted(20, 0), Shifted(6, 1)


def wandering():
    return Wandering(200, 0), Wandering(6, 1)


def drawn():
    return Set(20, int(np.random.randint(99))), Set(6, random.randrange(99))


def odd(kind):
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    items = {
        "fails": lambda i: 1 // 0,
        "alone": lambda i: image,
        "array": lambda i: (np.zeros((3, 4, 4)), 0),
        "word": lambda i: (image, "cat"),
        "last": lambda i: (torch.zeros(6, 5, 3, dtype=torch.uint8), i % 2),
        "last, floats": lambda i: (torch.zeros(6, 6, 1), i % 2),
        "sizes, floats": lambda i: (image.float()[:, : 4 - i % 2], i % 2),
        "flat": lambda i: (image[0], i % 2),
        "shorts": lambda i: (image.short(), i % 2),
        "gap": lambda i: (image, 2 * (i % 2)),
        "below": lambda i: (image, -1),
        "sizes": lambda i: (image[:, : 4 - i % 2], i % 2),
        "types": lambda i: (image.float() if i % 2 else image, i % 2),
        "channels": lambda i: (image[: 3 - i % 2], i % 2),
        "nan": lambda i: (torch.full((3, 4, 4), torch.nan if i == 2 else 0.0), i % 2),
        "infinite": lambda i: (torch.full((3, 4, 4), -torch.inf if i == 2 else 0.0), i % 2),
        "dies": lambda i: os._exit(1) if i == 3 and torch.utils.data.get_worker_info() else (image, i % 2),
    }
    return Odd(items[kind]), Odd(items[kind])


def three():
    return 1, 2, 3


def stream():
    return iter([]), iter([])


def empty():
    return [], []
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module beside the recipe; another is the current one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "mydata_beside.py").write_text(DATA)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("mydata_beside", None)


def spec(name="make", options=(), **how):
    return parse(DataSpec, {"name": f"mydata_beside:{name}", "options": dict(options), **how}, at="data")


def batches(dataset, epoch=1, augment="none", seed=0):
    how = {"batch": 4, "augment": augment, "seed": seed, "epoch": epoch}
    return list(data.training(dataset.train, dataset.mean, dataset.std, **how))


def alike(one, other):
    return len(one) == len(other) and all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other))


def test_noisy_classes_are_not_taken_for_classes_that_change(here):
    clean, noisy = (load(spec(label_noise=share, workers=0), here) for share in (0.0, 0.5))
    ((there, known),), ((same, told),) = (one.train.read([torch.arange(20)]) for one in (clean, noisy))
    assert torch.equal(there, same)
    assert int((known != told).sum()) == 10


@pytest.mark.parametrize("kind", ["bytes", "picture"])
def test_bytes_and_pictures_are_normalised_and_can_be_held_in_memory(here, kind):
    options = {"kind": kind}
    read, held = (
        load(spec(options=options, validation=4), here),
        load(spec(options=options, validation=4, memory=True), here),
    )
    assert isinstance(read.train, Streamed)
    assert isinstance(held.train, Split)
    assert read.classes == held.classes == ("0", "1")
    assert torch.equal(read.mean, held.mean)
    for augment in ("none", "crop-flip"):
        assert alike(batches(read, augment=augment), batches(held, augment=augment))
    pixels = torch.cat([images for images, _ in data.judging(held.train, held.mean, held.std, batch=5)])
    assert pixels.mean((0, 2, 3)).abs().max() < 1e-5


def test_floats_are_taken_as_they_are_and_not_augmented(here):
    dataset = load(spec(options={"kind": "floats"}), here)
    source = dataset.train.source.dataset
    images, labels = next(iter(data.judging(dataset.train, dataset.mean, dataset.std, batch=20)))
    assert torch.equal(images, torch.stack([source[i][0] for i in range(20)]))
    assert labels.tolist() == source.labels_
    assert dataset.train.prepared
    with pytest.raises(
        UserError, match=r"^augment='crop-flip': the data set gives floats, which are taken as they are"
    ):
        data.check_augmentation(dataset.train, "crop-flip")
    held = load(spec(options={"kind": "floats"}, memory=True), here)
    assert alike(batches(held), batches(dataset))
    with pytest.raises(UserError, match=r"^data\.size=4: data\.train: item 0 is an image of torch\.float32"):
        load(spec(options={"kind": "floats"}, size=4), here)


def test_random_transforms_are_those_of_seed_and_epoch_whatever_reads_them(here):
    one, other = (load(spec(options={"noise": 1}, workers=workers), here) for workers in (0, 2))
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = batches(one)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state
    random.seed(1)
    torch.manual_seed(1)
    assert alike(first, batches(other))
    assert alike(first, batches(one))
    plain = load(spec(options={"noise": 0}), here)
    assert torch.equal(first[0][1], batches(plain)[0][1]), "the order is that of all data"
    first_images = [
        torch.cat([images.flatten(1).sum(1) for images, _ in batches(one, epoch=epoch)]).sort().values
        for epoch in (1, 2)
    ]
    assert not torch.allclose(*first_images)


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(here, monkeypatch):
    values = {**recipe(epochs=3, scheme={"name": "standard"}, batch=5).canonical(), "data": {
        "name": "mydata_beside:make", "options": {"noise": 1}, "validation": 4}}  # fmt: skip
    one = Recipe.model_validate(values).at(here)
    whole = train(one, scheme="standard", seed=0, out=here / "whole")

    class After(NullProgress):
        def epoch(self, metrics):
            if metrics["epoch"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(one, scheme="standard", seed=0, out=here / "cut", progress=After())
    again = Recipe.model_validate({**values, "data": {**values["data"], "workers": 0}}).at(here)
    assert read_metrics(here / "cut" / "tiny" / "standard" / "seed-0")[-1]["epoch"] == 2
    assert train(one, scheme="standard", seed=0, out=here / "cut")["fingerprint"] == whole["fingerprint"]
    assert train(again, scheme="standard", seed=0, out=here / "alone")["fingerprint"] == whole["fingerprint"]


def test_targets_save_reading_and_name_the_classes_unless_they_do_not_agree(here):
    found = load(spec("targets", workers=0), here)
    assert found.classes == ("dark", "light")
    # Three looks at each set, the form, and the samples that tell the mean, and whether the test images are alike.
    assert sys.modules["mydata_beside"].Targets.asked == 3 + 3 + 1 + 20 + 6
    assert found.train.labels.tolist() == [0, 1] * 10
    assert load(spec("shifted"), here).train.labels.tolist() == [1, 0] * 10


def test_what_makes_the_sets_draws_from_the_split_seed(here):
    def first(**how):
        found = load(spec("drawn", **how), here)
        return data.first(found.train, 4, found.mean, found.std)

    assert torch.equal(first(), first(limit=20))
    assert not torch.equal(first(), first(split_seed=1))


def test_limits_choose_among_the_users_images_too(here):
    found = load(spec(options={"count": 40, "classes": 4}, limit=8, test_limit=4, validation=8, split_seed=3), here)
    assert found.train.labels.bincount().tolist() == [2] * 4
    assert found.validation.labels.bincount().tolist() == [2] * 4
    assert len(found.test) == 4
    assert not set(found.train.rows.tolist()) & set(found.validation.rows.tolist())


ERRORS = {
    "fails": r"data\.train: item 0: cannot be read \(ZeroDivisionError: ",
    "alone": r"data\.train: item 0: is 'Tensor'; must be a pair \(image, class\)$",
    "array": r"data\.train: item 0: its image is a ndarray; must be a PIL image or a tensor \[channels, ",
    "word": r"data\.train: item 0: its class is 'cat'; must be a whole number$",
    "flat": r"data\.train: item 0: image of torch\.uint8 and shape \[4, 4\]; must be \[channels, height, width\]",
    "shorts": r"data\.train: item 0: image of torch\.int16 and shape \[3, 4, 4\]; must be",
    "gap": r"data\.train: class 1 has no images, class 2 has; classes must be 0, 1, 2, \.\.\. without gaps",
    "below": r"data\.train: item 0: class -1 is below 0; classes must be 0, 1, 2, \.\.\.; leave out images that",
    "sizes": r"data\.train: item 1: image of 3x4 pixels, others have 4x4; set data\.size to bring all to one size$",
    "sizes, floats": r"data\.train: item 1: image of 3x4 pixels, others have 4x4; resize in the data set$",
    "last": r"data\.train: item 0: image of shape \[6, 5, 3\], which looks like \[height, width, channels\]; must be "
    r"\[channels, height, width\]: image\.permute\(2, 0, 1\)$",
    "last, floats": r"data\.train: item 0: image of shape \[6, 6, 1\], which looks like \[height, width, channels\]; ",
    "types": r"data\.train: item 1: image of torch\.float32, others are torch\.uint8; all must have one type$",
    "nan": r"data\.train: item 2: holds values that are not finite; mend the image or leave it out$",
    "infinite": r"data\.train: item 2: holds values that are not finite; mend the image or leave it out$",
    "channels": r"data\.train: item 1: image of 2 channels, others have 3; ",
}


@pytest.mark.parametrize("kind", ERRORS)
def test_what_is_wrong_with_an_item_is_told_with_its_number(here, kind):
    with pytest.raises(UserError, match="^" + ERRORS[kind]) as caught:
        load(spec("odd", {"kind": kind}), here)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(8, 30, 3), (16, 9, 1)])
def test_floats_of_few_columns_are_data_as_others(here, shape):
    """Three axes in time, say."""
    from torchreaper.lab.data.stream import Form

    image = torch.zeros(shape)
    assert Form.of(image, None, "here").fit(image, "here", None).shape == shape


@pytest.mark.parametrize("memory", [False, True])
def test_test_images_that_do_not_fit_are_told_before_anything_is_trained(here, memory):
    with pytest.raises(UserError, match=r"^data\.test: item 0: image of 8x8 pixels, others have 6x6; set data\.size"):
        load(spec("sides", {"train": 6, "test": 8}, memory=memory, workers=0), here)


def test_classes_of_the_same_name_stay_apart(here):
    names = ["cat", "crane", "dog", "crane"]
    found = load(spec("named", {"train": names, "test": names, "classes": 4}), here)
    assert found.classes == ("cat", "crane (1)", "dog", "crane (3)")
    assert found.train.labels.tolist() == [0, 1, 2, 3] * 5
    kept = load(spec("named", {"train": names, "test": None, "classes": 4}, classes=["crane (3)", "cat"]), here)
    assert kept.train.labels.tolist() == [1, 0] * 5


def test_names_of_classes_may_be_an_array(here):
    names = ["cat", "dog"]
    assert load(spec("named", {"train": names, "test": names, "array": True}), here).classes == ("cat", "dog")


@pytest.mark.parametrize("test", [None, ["ant", "bee", "cat"], ["ant", "bee"]])
def test_a_test_set_whose_names_go_with_its_numbers_is_read(here, test):
    found = load(spec("named", {"train": ["ant", "bee", "cat"], "test": test}), here)
    assert found.classes == ("ant", "bee", "cat")


WRONG = {
    "other names": (
        {"train": ["ant", "bee", "cat"], "test": ["bee", "cat"]},
        "data.test: class 0 is 'bee' by its `classes`, and 'ant' by those of data.train; give both sets the same "
        "`classes`",
    ),
    "one class": (
        {"train": None, "test": None, "classes": 1},
        "data.train: all images are of one class, '0'; there must be two or more to learn",
    ),
    "one name": (
        {"train": ["ant"], "test": ["ant"], "classes": 1},
        "data.train: all images are of one class, 'ant'; there must be two or more to learn",
    ),
    "below 0": (
        {"train": None, "test": None, "shift": -1},
        "data.train: item 0: class -1 is below 0; classes must be 0, 1, 2, ...; leave out images that have none",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_classes_that_cannot_be_meant_are_refused(here, case):
    options, message = WRONG[case]
    with pytest.raises(UserError) as caught:
        load(spec("named", options), here)
    assert str(caught.value) == message


def test_classes_that_change_are_noticed(here):
    with pytest.raises(
        UserError, match=r"^data\.train: item \d+: is of class \d now and of \d before; an image must keep"
    ):
        load(spec("wandering"), here)


def test_a_process_that_dies_is_told(here, monkeypatch):
    monkeypatch.setattr(data.gather, "_BATCH", 2)
    with pytest.raises(
        UserError, match=r"^data\.workers=1: a process that reads images has died \(RuntimeError: .*\); "
    ):
        load(spec("odd", {"kind": "dies"}), here)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mydata_beside:three", "three() gives a tuple; must be a pair (training set, test set)"),
        (
            "mydata_beside:stream",
            "data.train is a list_iterator; must be a torch data set with __len__ and __getitem__",
        ),
        ("mydata_beside:empty", "data.train has no images"),
        ("mydata_beside:nothing", "mydata_beside has no nothing"),
        (
            "nodata:make",
            "nodata cannot be imported (ModuleNotFoundError: No module named 'nodata'); install it, or put",
        ),
        ("mydata_beside:Set", "Set() fails (TypeError: "),
    ],
)
def test_what_gives_no_two_sets_is_told(here, name, message):
    with pytest.raises(UserError) as caught:
        load(DataSpec(name=name), here)
    assert str(caught.value).startswith(f"data.name={name!r}: {message}")


def test_what_raises_in_ones_own_data_set_is_told_or_not_needed(here):
    name = "data.name='mydata_beside:raising'"
    for what, message in {
        "length": f"{name}: data.train: how many images it has cannot be read (ZeroDivisionError: ",
        "classes": "data.train: its `classes` cannot be read (KeyError: 'names')",
    }.items():
        with pytest.raises(UserError) as caught:
            load(spec("raising", {"what": what}), here)
        assert str(caught.value).startswith(message)
    found = load(spec("raising", {"what": "targets"}), here)  # an IndexError; the images have their classes, too
    assert found.train.labels.tolist() == load(spec("raising", {"what": "none"}), here).train.labels.tolist()


def test_a_name_is_checked_by_its_form_alone():
    assert DataSpec(name="nodata.there:make").memory is False
    assert DataSpec(name="digits").memory is True
    with pytest.raises(UserError, match=r"^data\.name='a/b:c': must be package\.module:callable, such as mydata\."):
        parse(DataSpec, {"name": "a/b:c"}, at="data")
