"""``data.classes``: images of some classes only, as if the others had never been there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lab.data.conftest import pictures, write

from torchreaper.lab.data import DataSpec, load
from torchreaper.lab.data.digits import digits
from torchreaper.lab.data.split import of_classes
from torchreaper.lab.errors import UserError

NAMES = ("ant", "bee", "cat", "dog", "eel")
PARTS = ("train", "validation", "test")
SOME = st.lists(st.sampled_from(NAMES), min_size=2, unique=True).map(tuple)
DIGITS = st.lists(st.sampled_from("0123456789"), min_size=2, max_size=5, unique=True).map(tuple)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Parquet files of 100 and 50 images of five classes, and all images with their classes."""
    folder, stored, every = tmp_path_factory.mktemp("classes"), {}, {}
    for seed, (key, count) in enumerate({"train": 100, "test": 50}.items()):
        images, labels = pictures(count, seed=seed), [number % 5 for number in range(count)]
        stored[key] = str(write(folder / f"{key}.parquet", images, labels, names=NAMES))
        every[key] = torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels)
    return {"name": "parquet", **stored}, every


def keys(images):
    return [image.numpy().tobytes() for image in images]


@given(labels=st.lists(st.integers(0, 4), max_size=30), chosen=SOME)
def test_items_of_the_chosen_classes_stay_in_order_and_are_numbered_as_chosen(labels, chosen):
    there, mine = of_classes(torch.tensor(labels, dtype=torch.int64), NAMES, chosen)
    assert there.tolist() == [place for place, label in enumerate(labels) if NAMES[label] in chosen]
    assert [chosen[number] for number in mine] == [NAMES[labels[place]] for place in there]


@given(labels=st.lists(st.integers(0, 4), max_size=30))
def test_all_classes_in_their_own_order_change_nothing(labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    there, mine = of_classes(labels, NAMES, NAMES)
    assert torch.equal(there, torch.arange(len(labels)))
    assert torch.equal(mine, labels)


@settings(max_examples=8)
@given(chosen=SOME)
def test_images_of_parquet_are_those_filtered_by_hand(files, chosen):
    spec, every = files
    dataset = load(DataSpec(**spec, classes=chosen))
    assert dataset.classes == chosen
    for key, (images, labels) in every.items():
        split = getattr(dataset, key)
        wanted = [place for place, label in enumerate(labels) if NAMES[label] in chosen]
        assert torch.equal(split.images, images[wanted])
        assert [chosen[number] for number in split.labels] == [NAMES[labels[place]] for place in wanted]


@settings(max_examples=8)
@given(chosen=DIGITS)
def test_digits_are_those_filtered_by_hand(chosen):
    dataset = load(DataSpec(name="digits", classes=chosen))
    assert dataset.classes == chosen
    for split, every in zip((dataset.train, dataset.test), digits(), strict=True):
        wanted = torch.tensor([str(label) in chosen for label in every.labels.tolist()])
        assert torch.equal(split.images, every.images[wanted])
        assert [chosen[number] for number in split.labels] == [str(label) for label in every.labels[wanted].tolist()]


def limits(draw, chosen, train, test):
    """limit, test_limit and validation that ``train`` and ``test`` images of each chosen class allow."""
    validation = draw(st.integers(1, len(chosen) * train // 2))
    limit = draw(st.integers(len(chosen), len(chosen) * train - validation))
    return {"validation": validation, "limit": limit, "test_limit": draw(st.integers(len(chosen), len(chosen) * test))}


def check_balance(dataset, asked, chosen):
    """As many of each chosen class as there can be; of those to validate on in proportion."""
    counts = {part: getattr(dataset, part).labels.bincount(minlength=len(chosen)) for part in PARTS}
    assert [int(counts[part].sum()) for part in PARTS] == [asked[key] for key in ("limit", "validation", "test_limit")]
    assert all(len(count) == len(chosen) for count in counts.values()), "numbers of the chosen classes only"
    return {part: int(count.max() - count.min()) for part, count in counts.items()}


@settings(max_examples=10)
@given(data=st.data(), chosen=SOME, seed=st.integers(0, 50))
def test_limits_and_validation_are_balanced_over_the_chosen_classes(files, data, chosen, seed):
    asked = limits(data.draw, chosen, 20, 10)
    dataset = load(DataSpec(**files[0], classes=chosen, split_seed=seed, **asked))
    spread = check_balance(dataset, asked, chosen)
    assert max(spread["validation"], spread["test"]) <= 1
    # One image more of a class to validate on leaves one less of it to train on, where all that are left are used.
    assert spread["train"] <= (2 if asked["limit"] + asked["validation"] > 20 * len(chosen) - len(chosen) else 1)
    shown = keys(torch.cat([getattr(dataset, part).images for part in PARTS[:2]]))
    assert len(set(shown)) == asked["limit"] + asked["validation"], "none is trained on and judged by"


@settings(max_examples=8)
@given(data=st.data(), chosen=DIGITS)
def test_limits_and_validation_of_digits(data, chosen):
    asked = limits(data.draw, chosen, 40, 30)  # far fewer than there are of any
    dataset = load(DataSpec(name="digits", classes=chosen, **asked))
    spread = check_balance(dataset, asked, chosen)
    assert max(spread["train"], spread["test"]) <= 1


@settings(max_examples=5)
@given(chosen=SOME, seed=st.integers(0, 50))
def test_the_same_as_from_files_without_the_other_classes(files, chosen, seed, tmp_path_factory):
    """Which images are chosen does not depend on those that are left out."""
    spec, every = files
    folder, alone = tmp_path_factory.mktemp("alone"), {}
    for key, (images, labels) in every.items():
        wanted = [place for place, label in enumerate(labels) if NAMES[label] in chosen]
        new = [chosen.index(NAMES[labels[place]]) for place in wanted]
        alone[key] = str(
            write(folder / f"{key}.parquet", images[wanted].permute(0, 2, 3, 1).numpy(), new, names=chosen)
        )
    asked = {"limit": 7, "test_limit": 6, "validation": 5, "split_seed": seed}
    with_others = load(DataSpec(**spec, classes=chosen, **asked))
    without = load(DataSpec(name="parquet", **alone, **asked))
    assert with_others.classes == without.classes
    assert all(getattr(with_others, part).same(getattr(without, part)) for part in PARTS)
    assert torch.equal(with_others.mean, without.mean)


@pytest.mark.parametrize("name", ["bea", "3"])
def test_a_class_that_there_is_not_is_refused(files, name):
    with pytest.raises(UserError) as error:
        load(DataSpec(**files[0], classes=("ant", name)))
    guess = "did you mean 'bee'? " if name == "bea" else ""
    assert str(error.value) == f"data.classes: there is no class {name!r}; {guess}known: {', '.join(NAMES)}"


def test_of_digits_too():
    with pytest.raises(UserError, match=r"^data\.classes: there is no class '10'; .*known: 0, 1, 2, 3, "):
        load(DataSpec(name="digits", classes=("1", "10")))
    assert load(DataSpec(name="digits", classes=[7, 3])).classes == ("7", "3"), "numbers will do as names"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"limit": 2}, "data.limit=2: fewer than the 3 classes; use limit >= 3"),
        ({"limit": 61}, "data.limit=61: only 60 training images are there; use limit <= 60"),
        ({"test_limit": 31}, "data.test_limit=31: only 30 test images are there; use test_limit <= 30"),
        ({"validation": 60}, "data.validation=60: leaves nothing to train on, there are 60 images"),
    ],
)
def test_limits_are_of_the_chosen_classes(files, asked, text):
    with pytest.raises(UserError) as error:
        load(DataSpec(**files[0], classes=("eel", "ant", "cat"), **asked))
    assert str(error.value) == text


@pytest.mark.parametrize("classes", [["ant"], [], ["ant", "ant"]])
def test_fewer_than_two_or_one_twice_are_refused(files, classes):
    with pytest.raises(ValueError, match="must be two or more names of classes, each once"):
        DataSpec(**files[0], classes=classes)
