"""Images that are read when they are needed give what images in memory give."""

import multiprocessing
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.lab.tiny import recipe

from torchreaper.lab import data
from torchreaper.lab.data import DataSpec, FixedBatches, load
from torchreaper.lab.data.memory import available_memory, check_memory
from torchreaper.lab.data.stream import Streamed
from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


def batches(dataset, augment="crop-flip", seed=3, epoch=2, batch=3):
    how = {"batch": batch, "augment": augment, "seed": seed, "epoch": epoch}
    return list(data.training(dataset.train, dataset.mean, dataset.std, **how))


def alike(one, other):
    return len(one) == len(other) and all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [None, 5])
@pytest.mark.parametrize("grey", [False, True])
def test_training_judging_and_criteria_read_the_same_bits(make, tmp_path, workers, size, grey):
    pictures = [make.pictures(20, grey=grey), make.pictures(6, grey=grey, seed=1)]
    values = {**make(pictures[0], test_images=pictures[1]), "size": size, "validation": 4, "limit": 12}
    held = load(DataSpec(**values), tmp_path)
    read = load(DataSpec(**values, memory=False, workers=workers), tmp_path)
    assert isinstance(read.train, Streamed)
    assert read.train.shape == held.train.shape == (1 if grey else 3, size or 6, size or 6)
    assert torch.equal(read.mean, held.mean)
    assert torch.equal(read.std, held.std)
    for augment in ("none", "crop-flip"):
        assert alike(batches(read, augment), batches(held, augment))
    judged = [list(data.judging(one.test, one.mean, one.std, batch=4)) for one in (read, held)]
    assert alike(*judged)
    fixed = [
        FixedBatches.held_out(one.train, one.validation, mean=one.mean, std=one.std).take(4, seed=1)
        for one in (read, held)
    ]
    assert alike(*map(list, fixed))
    assert torch.equal(data.first(read.train, 2, read.mean, read.std), data.first(held.train, 2, held.mean, held.std))


def test_a_run_ends_with_the_same_weights(make, tmp_path):
    values = {**recipe(augment="crop-flip", epochs=2, scheme={"name": "standard"}).canonical(), "name": "held"}
    values["data"] = {**make(make.pictures(60)), "validation": 8}
    ends = []
    for name, more in (("held", {}), ("read", {"memory": False})):
        one = Recipe.model_validate({**values, "name": name, "data": {**values["data"], **more}}).at(tmp_path)
        ends.append(train(one, scheme="standard", seed=0, out=tmp_path / "runs"))
    assert ends[0]["fingerprint"] == ends[1]["fingerprint"]
    for key in ("test_accuracy", "train_accuracy", "validation_accuracy"):
        assert ends[0][key] == ends[1][key]


def test_resized_crops_are_those_of_seed_and_epoch_whatever_reads_them(make, tmp_path):
    values = {**make(make.pictures(20, side=16)), "size": 8, "memory": False}
    one, other = (load(DataSpec(**values, workers=workers), tmp_path) for workers in (0, 2))
    before = torch.get_rng_state()
    first = batches(one, "resized-crop")
    assert torch.equal(torch.get_rng_state(), before)
    assert alike(first, batches(other, "resized-crop"))
    assert alike(first, batches(one, "resized-crop")), "whatever was read before"
    for changed in ({"epoch": 3}, {"seed": 4}, {"augment": "none"}):
        assert not alike(first, batches(one, **{"augment": "resized-crop", **changed}))
    assert first[0][0].shape == (3, 3, 8, 8)
    again = list(data.judging(one.train, one.mean, one.std, batch=7))
    assert alike(again, list(data.judging(other.train, one.mean, one.std, batch=7))), "judging crops nothing"


@given(count=st.integers(1, 9), batch=st.integers(1, 4), workers=st.integers(0, 1))
def test_any_number_of_batches_comes_in_order(count, batch, workers):
    class Numbers:
        random = False

        def where(self, row):
            return str(row)

        def read(self, rows):
            return [torch.full((1, 1, 1), row, dtype=torch.uint8) for row in rows]

    rows = torch.arange(count).flip(0)
    form = data.stream.Form(1, 1, 1, torch.uint8, None)
    split = Streamed(Numbers(), rows, rows % 3, form, workers)
    found = list(split.read(torch.split(torch.arange(count), batch)))
    assert torch.cat([images for images, _ in found]).flatten().tolist() == rows.tolist()
    assert torch.cat([labels for _, labels in found]).tolist() == (rows % 3).tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are spawned")
def test_a_process_that_was_spawned_does_not_spawn_its_readers(make, tmp_path, monkeypatch):
    class Unpicklable(list):
        def __reduce__(self):
            raise AssertionError("was sent to a spawned process")

    dataset = load(DataSpec(**make(make.pictures(20)), memory=False), tmp_path)
    object.__setattr__(dataset.train.source, "files", Unpicklable(map(str, range(20))))
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert len(batches(dataset)) == 6
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_mean_and_deviation_of_many_images_are_those_of_a_sample(make, tmp_path, monkeypatch):
    monkeypatch.setattr(data.gather, "SAMPLE", 50)
    values = make(make.pictures(200))
    read = load(DataSpec(**values, memory=False), tmp_path)
    held = load(DataSpec(**values), tmp_path)
    assert not torch.equal(read.mean, held.mean)
    torch.testing.assert_close(read.mean, held.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(read.std, held.std, atol=0.02, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_an_image_is_told_by_its_row(make, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(data.gather, "SAMPLE", 2)  # so that it is met in training
    good = [make.png(i) for i in make.pictures(30)]
    dataset = load(DataSpec(**make(good), memory=False), tmp_path)
    seen = data.split.choose(dataset.train.labels, 2, seed=0, balanced=False).tolist()
    unseen = next(row for row in range(1, 30) if row not in seen)
    wrong = {
        "image cannot be decoded (": b"broken",
        "image of 6x7 pixels, others have 6x6; set data.size to": make.png(np.zeros((6, 7, 3), np.uint8)),
        "image mode I;16 is not 8 bits a channel": make.png(np.zeros((6, 6), np.uint16)),
    }
    for message, stored in wrong.items():
        images = [stored if row == unseen else image for row, image in enumerate(good)]
        dataset = load(DataSpec(**make(images), memory=False, workers=workers), tmp_path)
        with pytest.raises(UserError) as caught:
            batches(dataset)
        assert str(caught.value).startswith(f"data.train: row {unseen}: {message}"), caught.value
        assert "\n" not in str(caught.value)


def test_a_coloured_picture_among_grey_ones_is_told(make, tmp_path, monkeypatch):
    monkeypatch.setattr(data.gather, "SAMPLE", 2)
    grey, colour = make.pictures(20, grey=True), make.pictures(1)[0]
    dataset = load(DataSpec(**make(grey, test_images=grey[:4]), memory=False), tmp_path)
    seen = data.split.choose(dataset.train.labels, 2, seed=0, balanced=False).tolist()
    row = next(row for row in range(1, 20) if row not in seen)
    images = [make.png(colour if number == row else image) for number, image in enumerate(grey)]
    dataset = load(DataSpec(**make(images, test_images=grey[:4]), memory=False), tmp_path)
    assert dataset.train.shape == (1, 6, 6)
    with pytest.raises(
        UserError, match=rf"^data\.train: row {row}: image of 3 channels, others have 1; .*data\.memory"
    ):
        batches(dataset)


def test_images_that_do_not_fit_are_refused_before_they_are_decoded(make, tmp_path):
    with pytest.raises(UserError) as caught:
        load(DataSpec(**make([b"broken"] * 8), size=10**5), tmp_path)
    assert str(caught.value).startswith("data.memory=True: 12 images of 3x100000x100000 take 360.0 GB, ")
    assert str(caught.value).endswith(
        " GB are free; set data.memory: false to read them as they are needed, or a smaller data.size or data.limit"
    )
    assert 2**20 < available_memory() < 2**50
    check_memory(1, (3, 8, 8))


def test_splits_are_the_same_where_they_read_the_same(make, tmp_path):
    values = {**make(make.pictures(20)), "memory": False}
    one, limited = load(DataSpec(**values), tmp_path), load(DataSpec(**values, limit=10), tmp_path)
    assert one.train.same(one.train.to("cpu"))
    assert not one.train.same(limited.train)
    assert not one.train.same(one.test)
    held = load(DataSpec(**{**values, "memory": True}), tmp_path)
    assert held.train.same(held.train.to("cpu"))
    assert not held.train.same(one.train)
    assert not one.train.same(held.train)


def test_resized_crops_need_a_size_and_images_as_they_are_stored():
    values = {**recipe().canonical(), "augment": "resized-crop"}
    folder = {"name": "folder", "train": "a", "test": "b"}
    for wrong in (folder, {**folder, "size": 8}, {**folder, "memory": False}):
        with pytest.raises(
            UserError, match=r"^augment='resized-crop': cuts images as stored; set data\.size and data\."
        ):
            data_of(values, wrong)
    assert data_of(values, {**folder, "size": 8, "memory": False}).augment == "resized-crop"


def data_of(values, section):
    from torchreaper.lab.settings import parse

    return parse(Recipe, {**values, "data": section})


def test_a_picture_of_a_tensor_is_resized_as_the_picture_is():
    array = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    form = data.stream.Form.of(Image.fromarray(array), 5, "here")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    assert torch.equal(form.fit(tensor, "here", None), form.fit(Image.fromarray(array), "here", None))
    assert torch.equal(form.fit(tensor[:1], "here", None), form.fit(Image.fromarray(array[..., 0]), "here", None))


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop"])
@pytest.mark.parametrize("of", [2, 3])
def test_the_shares_of_several_processes_are_the_batches_of_one(make, tmp_path, memory, augment, of):
    if memory and augment == "resized-crop":
        pytest.skip("made while images are read")
    spec = {**make(make.pictures(20), test_images=make.pictures(7, seed=1)), "memory": memory}
    dataset = load(DataSpec(**spec), tmp_path)
    how = {"batch": 6, "augment": augment, "seed": 3, "epoch": 2}
    three = (dataset.train, dataset.mean, dataset.std)
    parts = [list(data.training(*three, **how, share=data.Share(rank, of))) for rank in range(of)]
    joined = [tuple(map(torch.cat, zip(*batch))) for batch in zip(*parts)]
    assert alike(joined, list(data.training(*three, **how)))

    judged = (dataset.test, dataset.mean, dataset.std)
    parts = [list(data.judging(*judged, batch=7, share=data.Share(rank, of))) for rank in range(of)]
    assert alike([tuple(map(torch.cat, zip(*(part[0] for part in parts))))], list(data.judging(*judged, batch=7)))
    # A last batch of one image has nothing for most of them.
    counts = [
        sum(len(labels) for _, labels in data.judging(*judged, batch=6, share=data.Share(r, of))) for r in range(of)
    ]
    assert sum(counts) == 7
