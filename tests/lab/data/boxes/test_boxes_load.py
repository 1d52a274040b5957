import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchreaper.lab import data
from torchreaper.lab.data import BoxSplit
from torchreaper.lab.data.boxes.geometry import fit
from torchreaper.lab.data.opening import measure_picture, open_picture
from torchreaper.lab.data.split import Split
from torchreaper.lab.data.stream import Streamed
from torchreaper.lab.errors import UserError

BCCD = Path(__file__).parents[5] / "shared" / "data" / "bccd"
pytestmark = pytest.mark.usefixtures("one_thread")


def numbered(scenes, classes):
    """What a split should hold: the boxes of each picture in its own pixels."""
    return [
        torch.tensor([[x, y, x + w, y + h, classes.index(name)] for x, y, w, h, name in objects]).reshape(-1, 5).float()
        for _, _, objects in scenes
    ]


def assert_boxes(split, scenes, classes):
    assert len(split) == len(scenes)
    for got, wanted in zip(split.truths(), numbered(scenes, classes)):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    for scale, filled, (height, width, _) in zip(split.scale, split.filled.tolist(), scenes):
        assert (pytest.approx(scale.item()), *filled) == fit(height, width, split.shape[1:])


def assert_same(one, other):
    assert one.classes == other.classes
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.std, other.std)
    for name in ("train", "validation", "test"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None)
        if first is not None:
            for (images, targets), (others, those) in zip(everything(first), everything(second)):
                assert torch.equal(images, others)
                assert torch.equal(targets, those)
            assert torch.equal(first.crowd, second.crowd)


def everything(split, **how):
    return list(split.read(torch.split(torch.arange(len(split)), 4), **how))


def test_coco_boxes_are_those_of_the_file_and_lie_on_the_pictures(coco, load, scenes, caplog):
    dataset = load(coco(), size=[40, 50])
    assert dataset.classes == ("dog", "cat"), "by ascending number"
    assert dataset.train.shape == (3, 40, 50)
    assert isinstance(dataset.train, BoxSplit)
    assert dataset.validation is None
    assert caplog.records == []
    for split, those in ((dataset.train, scenes["train"]), (dataset.test, scenes["test"])):
        assert_boxes(split, those, dataset.classes)
        assert split.labels.shape == (len(those), 3, 5), "3: the most of any image"
        assert split.crowd.shape == (len(those), 0, 5)
        for images, targets in everything(split):
            for image, rows in zip(images.float(), targets):
                red, _, blue = image
                for x1, y1, x2, y2, kind in rows[rows[:, 4] >= 0].tolist():
                    inside = slice(round(y1) + 2, round(y2) - 2), slice(round(x1) + 2, round(x2) - 2)
                    strong, weak = (red, blue) if kind == 1 else (blue, red)
                    assert (strong[inside] > 150).all()
                    assert (weak[inside] < 100).all()
                # And no object lies elsewhere.
                elsewhere = torch.ones(40, 50, dtype=torch.bool)
                for x1, y1, x2, y2, _ in rows[rows[:, 4] >= 0].round().int().tolist():
                    elsewhere[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = False
                assert (red[elsewhere] < 120).all()
                assert (blue[elsewhere] < 120).all()


@pytest.mark.parametrize("box", ["xywh", "xyxy"])
def test_boxes_in_shares_of_the_picture_are_refused(coco, load, refused, box):
    """They would be read as boxes within the first pixel, and nothing would be learnt."""

    def shares(content):
        sizes = {one["id"]: (one["width"], one["height"]) * 2 for one in content["images"]}
        for one in content["annotations"]:
            left, top, third, fourth = one["bbox"]
            corners = [left, top, third, fourth] if box == "xywh" else [left, top, left + third, top + fourth]
            one["bbox"] = [value / side for value, side in zip(corners, sizes[one["image_id"]])]

    text = (
        "all boxes lie within 0 to 1, but are read in pixels of their picture; multiply shares by its width and height"
    )
    assert refused(coco(shares), box=box) == f"data.train: {text}"

    def one_in_pixels(content):
        shares(content)
        content["annotations"][0]["bbox"] = [2, 2, 9, 9]

    if box == "xywh":  # as those of the test images are
        assert any(map(len, load(coco(one_in_pixels), box=box).train.truths()))


def test_clipped_flat_and_crowded_boxes(coco, load, scenes, caplog):
    def change(content):
        content["annotations"] = [
            {"id": 5, "image_id": 100, "category_id": 7, "bbox": [-3, -4.5, 13, 14.5]},
            {"id": 6, "image_id": 100, "category_id": 7, "bbox": [-0.5, 0, 3, 3]},  # by rounding: nothing to tell
            {"id": 7, "image_id": 100, "category_id": 3, "bbox": [5, 5, 0, 9]},
            {"id": 8, "image_id": 101, "category_id": 3, "bbox": [500, 5, 10, 9]},
            {"id": 9, "image_id": 101, "category_id": 3, "bbox": [1, 2, 900, 900], "iscrowd": 1},
        ]

    dataset = load(coco(change), memory=False, workers=0)
    first, second, *others = dataset.train.truths()
    torch.testing.assert_close(first, torch.tensor([[0.0, 0, 10, 10, 1], [0, 0, 2.5, 3, 1]]), atol=1e-5, rtol=0)
    assert len(second) == 0
    assert not any(map(len, others))
    height, width = (dataset.train.inner.source.sizes[1][place] for place in (0, 1))
    assert dataset.train.crowd.shape == (10, 1, 5)
    crowds = dataset.train.crowds()
    torch.testing.assert_close(crowds[1], torch.tensor([[1.0, 2, width, height, 0]]), atol=1e-4, rtol=0)
    assert not any(map(len, [crowds[0], *crowds[2:]]))
    assert dataset.train.labels.shape[1] == max(2, *(len(objects) for *_, objects in scenes["test"]))
    assert {record.name for record in caplog.records} == {"torchreaper"}
    first = "first in data.train: train.json: image '0.jpg', annotation"
    assert {record.getMessage() for record in caplog.records} == {
        f"boxes without area in their picture, left out: 2, {first} 7",
        "boxes that stick out of their picture by more than a pixel, clipped (if they are many, is data.box right?): "
        f"3, {first} 5",
    }


def test_corners_instead_of_sizes(coco, load):
    def change(content):
        for one in content["annotations"]:
            x, y, w, h = one["bbox"]
            one["bbox"] = [x, y, x + w, y + h]

    plain = load(coco())
    values = coco(change)
    corners = load(values, box="xyxy", test="train.json", test_images="train_pictures")
    assert torch.equal(corners.train.labels, plain.train.labels)
    assert torch.equal(corners.test.labels, plain.train.labels)


def test_several_files_of_annotations_and_folders_in_folders(coco, load, tmp_path, scenes):
    values = coco()
    content = json.loads((tmp_path / "train.json").read_text())
    whole = load(values)
    for name, images in (("a", content["images"][:6]), ("b", content["images"][6:])):
        ids = {image["id"] for image in images}
        part = {**content, "images": [dict(image) for image in images]}
        part["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
        if name == "b":  # numbers of their own, pictures in a folder of their own
            (tmp_path / "train_pictures" / "deep").mkdir()
            for image in part["images"]:
                old = tmp_path / "train_pictures" / image["file_name"]
                image["file_name"] = f"deep/{image['file_name']}"
                old.rename(tmp_path / "train_pictures" / image["file_name"])
                image["id"] -= 6
            part["annotations"] = [{**one, "image_id": one["image_id"] - 6} for one in part["annotations"]]
        (tmp_path / f"part-{name}.json").write_text(json.dumps(part))
    assert_same(load(values, train="part-*.json"), whole)


@pytest.mark.parametrize(
    "options", [{}, {"of_lists": False}, {"objects": "things", "bbox": "where"}, {"names": str}], ids=str
)
def test_tables_in_every_form_give_the_same(table, load, scenes, options):
    dataset = load(table(**options))
    assert dataset.classes == ("cat", "dog")
    for split, those in ((dataset.train, scenes["train"]), (dataset.test, scenes["test"])):
        assert_boxes(split, those, dataset.classes)


def test_numbers_without_names(table, load, refused, scenes):
    values = table(names=None)
    dataset = load(values)
    assert dataset.classes == ("0", "1")
    assert_boxes(dataset.train, scenes["train"], ("cat", "dog"))
    named = load(values, classes=["cat", "dog"])
    assert named.classes == ("cat", "dog")
    assert torch.equal(named.train.labels, dataset.train.labels)
    assert refused(values, classes=["cat"]).endswith(": category 1 is not one of '0'; mend it or leave the box out")


def test_without_the_metadata_of_hugging_face(table, load, tmp_path):
    import pyarrow.parquet as pq

    values = table()
    named = load(values)
    for name in ("train", "test"):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    plain = load(values)
    assert plain.classes == ("0", "1")
    assert torch.equal(plain.train.labels, named.train.labels)


def test_some_classes_in_another_order(table, coco, load, refused, scenes):
    for values in (table(), coco()):
        dataset = load(values, classes=["dog"])
        assert dataset.classes == ("dog",)
        dogs = [(h, w, [one for one in objects if one[4] == "dog"]) for h, w, objects in scenes["train"]]
        assert_boxes(dataset.train, dogs, ["dog"])
        assert load(values, classes=["dog", "cat"]).classes == ("dog", "cat")
        assert refused(values, classes=["cow"]).startswith("data.classes: 'cow' is no category of data.train; ")


def test_crowds_of_a_table(table, load):
    import datasets

    def change(rows):
        for row in rows:
            for place, mark in enumerate(row["objects"]):
                mark["iscrowd"] = place == 1

    values = table(
        change=change,
        more={"iscrowd": datasets.Value("bool")}.items(),
        scenes={"train": BOTH, "test": BOTH},
    )
    dataset = load(values)
    assert [len(boxes) for boxes in dataset.train.truths()] == [1, 0]
    torch.testing.assert_close(dataset.train.crowds()[0], torch.tensor([[20.0, 20, 30, 30, 1]]))
    assert [len(boxes) for boxes in dataset.test.truths()] == [2, 0]


BOTH = [(40, 40, [[2, 2, 10, 10, "cat"], [20, 20, 10, 10, "dog"]]), (40, 60, [])]


def test_a_data_set_by_name(table, load, refused, tmp_path):
    values = table()
    local = load(values)
    folder = tmp_path / "pets"
    folder.mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").rename(folder / f"{split}.parquet")
    hub = {"name": "hub", "hub": str(folder), "size": 32}
    assert_same(load(hub), local)
    text = refused(hub, test="validation")
    assert text.startswith(f"data.hub={str(folder)!r}: data.test='validation' cannot be loaded (")


def test_without_a_network_one_clear_line(refused, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = refused({"name": "hub", "hub": "torchreaper/none", "size": 32})
    assert text.startswith("data.hub='torchreaper/none': cannot be reached (")


@pytest.mark.parametrize("kind", ["coco", "parquet"])
def test_neither_memory_nor_workers_change_a_number(kind, coco, table, load, monkeypatch):
    monkeypatch.setattr(data.gather, "_BATCH", 2)  # several batches to gather
    values = {**(coco() if kind == "coco" else table()), "size": [24, 40], "validation": 3, "limit": 5, "split_seed": 1}
    held = load(values)
    assert isinstance(held.train.inner, Split)
    for workers in (0, 2):
        read = load(values, memory=False, workers=workers)
        assert isinstance(read.train.inner, Streamed)
        assert_same(read, held)
        for how in ({"augmentation": "flip", "seed": 3, "epoch": 2},):
            for (images, targets), (others, those) in zip(everything(read.train, **how), everything(held.train, **how)):
                assert torch.equal(images, others)
                assert torch.equal(targets, those)


@pytest.mark.parametrize("of", [2, 3])
@pytest.mark.parametrize("memory", [True, False])
def test_shares_join_to_the_whole(coco, load, of, memory):
    train = load(coco(), memory=memory, **({} if memory else {"workers": 0})).train
    order = torch.split(torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7]), 7)
    how = {"augmentation": "flip", "seed": 3, "epoch": 2}
    whole = list(train.read(order, **how))
    parts = [list(train.read(order, **how, share=data.Share(rank, of))) for rank in range(of)]
    for (images, targets), *several in zip(whole, *parts):
        assert torch.equal(torch.cat([part[0] for part in several]), images)
        assert torch.equal(torch.cat([part[1] for part in several]), targets)


def test_a_flip_is_of_seed_and_epoch_and_mirrors_about_half(coco, load):
    train = load(coco()).train
    order = [torch.arange(10).repeat(20)]

    def flipped(**how):
        ((images, targets),) = train.read(order, augmentation="flip", **how)
        ((plain, boxes),) = train.read(order)
        assert torch.equal(targets[..., 4], boxes[..., 4])
        assert torch.equal(targets[..., [1, 3]], boxes[..., [1, 3]])
        return (images != plain).flatten(1).any(1)[(boxes[:, 0, 4] >= 0)]  # others look the same

    first = flipped(seed=3, epoch=1)
    assert 0.35 < first.double().mean() < 0.65
    assert torch.equal(first, flipped(seed=3, epoch=1))
    assert not torch.equal(first, flipped(seed=4, epoch=1))
    assert not torch.equal(first, flipped(seed=3, epoch=2))
    for kind in ("crop-flip", "resized-crop"):
        with pytest.raises(
            UserError,
            match=rf"^augment='{kind}': would cut the images but not their boxes; with boxes use flip or none$",
        ):
            train.read(order, augmentation=kind)


def test_some_images_are_kept_at_random_and_validation_goes_first(coco, load, refused):
    values = coco()
    whole = load(values)

    def which(split):
        return [
            next(i for i, (image, _) in enumerate(pairs(whole.train)) if torch.equal(image, one))
            for one, _ in pairs(split)
        ]

    some = load(values, limit=4, validation=3, test_limit=2, split_seed=5)
    train, held_out = which(some.train), which(some.validation)
    assert (len(train), len(held_out), len(some.test)) == (4, 3, 2)
    assert train == sorted(train)
    assert not set(train) & set(held_out)
    more = load(values, limit=6, validation=3, split_seed=5)
    assert which(more.validation) == held_out
    assert which(load(values, limit=4, validation=3, split_seed=6).train) != train
    for one, row in zip(some.train.truths(), train):
        torch.testing.assert_close(one, whole.train.truths()[row])
    assert refused(values, limit=11) == "data.limit=11: only 10 training images are there; use limit <= 10"
    assert refused(values, validation=10) == "data.validation=10: leaves nothing to train on, there are 10 images"


def pairs(split):
    return [pair for images, targets in everything(split) for pair in zip(images, targets)]


def test_mean_and_deviation_are_of_the_photographs_alone(coco, load):
    dataset = load(coco(), size=[30, 60], validation=2)
    train = dataset.train
    assert (train.filled.prod(1) < 30 * 60).any()
    images = torch.cat([images for images, _ in everything(train)]).double() / 255
    pixels = torch.cat([image[:, :h, :w].flatten(1) for image, (h, w) in zip(images, train.filled.tolist())], dim=1)
    torch.testing.assert_close(dataset.mean.double(), pixels.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(dataset.std.double(), pixels.std(1, correction=0), atol=1e-6, rtol=0)


def test_reading_once_a_process_until_a_file_changes(coco, load, tmp_path):
    values = coco()
    first = load(values)
    assert load(values) is first
    assert load(values, limit=4) is not first
    for file in ("train.json", "test_pictures/0.jpg"):
        before = load(values)
        os.utime(tmp_path / file, ns=(1, 1))
        assert load(values) is not before


def test_batches_of_an_epoch_and_what_criteria_read(coco, load):
    dataset = load(coco())
    three = dataset.train, dataset.mean, dataset.std
    found = list(data.training(*three, batch=4, augment="flip", seed=1, epoch=1))
    assert [images.shape for images, _ in found] == [(4, 3, 32, 32)] * 2
    assert found[0][0].dtype == torch.float32
    assert sum(len(images) for images, _ in data.judging(*three, batch=4)) == 10
    assert data.first(dataset.train, 2, dataset.mean, dataset.std).shape == (2, 3, 32, 32)
    fixed = data.FixedBatches.held_out(dataset.train, None, mean=dataset.mean, std=dataset.std).take(6, seed=1)
    ((images, targets),) = fixed
    assert (images.shape, targets.shape) == ((6, 3, 32, 32), (6, 3, 5))
    assert not torch.equal(next(iter(fixed.take(6, seed=2)))[1], targets)


def test_splits_are_the_same_where_they_hold_the_same(coco, load):
    values = coco()
    one, other = load(values), load(values, limit=9)
    assert one.train.same(one.train.to("cpu"))
    assert not one.train.same(other.train)
    assert not one.train.same(one.test)
    assert not one.train.same(load(values, memory=False).train)
    assert not one.train.prepared


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
@pytest.mark.parametrize("turn", [None, 1, 3, 6, 8, 99])
def test_a_picture_is_measured_as_it_is_read(kind, turn, tmp_path):
    image, exif = Image.fromarray(np.zeros((5, 9, 3), np.uint8)), Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    image.save(tmp_path / "picture", format=kind, exif=exif)
    stored = {"bytes": (tmp_path / "picture").read_bytes(), "path": None}
    read = open_picture(stored, "here")
    assert measure_picture(stored, "here") == (read.height, read.width)


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"needs the blood cells as parquet in {BCCD}")
def test_blood_cells(load, caplog):
    parts = {name: f"{BCCD}/{name}.parquet" for name in ("train", "val", "test")}
    values = {"name": "parquet", "train": parts["train"], "size": [96, 128]}
    dataset = load(values, test=parts["val"])
    assert dataset.classes == ("RBC", "WBC", "Platelets")
    assert [record.getMessage() for record in caplog.records] == [
        "boxes without area in their picture, left out: 2, first in data.train: row 170, box 3"
    ]
    other = load({**values, "memory": False, "workers": 0}, test=parts["test"])
    splits = dataset.train, dataset.test, other.test
    assert [len(split) for split in splits] == [205, 87, 72]
    assert sum(sum(map(len, split.truths())) for split in splits) == 4888 - 2
    for split in splits:
        assert (split.scale == 0.2).all()
        boxes = torch.cat(split.truths())
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= 640.001).all()
        assert (boxes[:, 3] <= 480.001).all()
