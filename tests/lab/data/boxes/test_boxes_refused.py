"""Annotations with something wrong: refused in one line with file, image and remedy, or taken for what they are."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from torchreaper.lab import data
from torchreaper.lab.data import BoxesSpec, load_boxes
from torchreaper.lab.data.boxes.coco import read_coco
from torchreaper.lab.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
HUGE = int("9" * 4000)


def change(path, value):
    """A change of COCO's content: ``value`` at a path such as ("images", 0, "width"); "gone" takes it out."""

    def changed(content):
        place = content
        for key in path[:-1]:
            place = place[key]
        if value == "gone":
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return changed


BOX = "train.json: image '0.jpg', annotation 1: "


@pytest.fixture
def two():
    return {"train": [(40, 60, [[2, 3, 10, 20, "cat"]]), (50, 50, [])], "test": [(40, 40, [[2, 3, 10, 20, "cat"]])]}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images",), "gone", "IS is not COCO's JSON, a mapping with lists of images, annotations, cat"),
        (("annotations",), {}, "IS is not COCO's JSON, a mapping with lists"),
        (("categories",), [], "IS has no categories"),
        (("images",), [], "IS annotations[0]: image_id=100: is no image of this file; leave the annotation out"),
        (("images", 0), 3, "IS images[0]: has no file_name; is it COCO's JSON?"),
        (("images", 0, "id"), True, "IS images[0]: id=True: must be a whole number"),
        (("images", 0, "id"), 100.5, "IS images[0]: id=100.5: must be a whole number"),
        (("images", 0, "id"), float("inf"), "IS images[0]: id=inf: must be a whole number"),
        (("images", 1, "id"), 100, "IS images[1]: id 100 is listed twice; list each image once"),
        (("images", 1, "file_name"), "0.jpg", "IS images[1]: file_name '0.jpg' is listed twice; list each image once"),
        (("images", 1, "file_name"), "./0.jpg", "IS images[1]: file_name '0.jpg' is listed twice; list"),
        (("images", 0, "file_name"), "gone", "IS images[0]: has no file_name; is it COCO's JSON?"),
        (("images", 0, "file_name"), 7, "IS images[0]: file_name=7: must be the path of a picture in the folder"),
        (("images", 0, "file_name"), "a\nb", "IS images[0]: file_name='a\\nb': must be the path of a picture"),
        (("images", 0, "file_name"), "\ud800", "IS images[0]: file_name='\\ud800': must be the path of a picture"),
        *(
            (("images", 0, "file_name"), name, f"IS images[0]: file_name={name!r}: leads out of the folder")
            for name in ("../../etc/x", "a/../../x", "/etc/passwd", "..\\x", "C:x", "\\x", "C:\\x", "//host/x", "..")
        ),
        (("images", 0, "file_name"), "none.jpg", "data.train: train.json: image 'none.jpg' is not in FOLDER; put it"),
        (("images", 0, "file_name"), "x" * 999, "data.train: train.json: image 'xxx"),
        (("images", 0, "file_name"), ".", "data.train: train.json: image '.' is not in FOLDER; put it there, or"),
        (("images", 0, "width"), 0, "IS images[0]: width=0: must be 1 or more pixels, as the picture has"),
        (("images", 0, "width"), HUGE, "IS images[0]: width=9999"),
        (("images", 0, "height"), "40", "IS images[0]: height='40': must be a whole number"),
        (("images", 0, "height"), 41, "data.train: 0.jpg: picture of 40x60 pixels (height x width, as its EXIF"),
        (("categories", 0, "id"), 3, "IS categories[1]: id 3 or name 'dog' is listed twice; list each category once"),
        (("categories", 0, "name"), "dog", "IS categories[1]: id 3 or name 'dog' is listed twice; list each category"),
        (("categories", 0, "name"), "a\nb", "IS categories[0]: name='a\\nb': must be a text of one line"),
        (("annotations", 0), None, "IS annotations[0]: has no image_id; is it COCO's JSON?"),
        (("annotations", 0, "image_id"), 7, "IS annotations[0]: image_id=7: is no image of this file; leave the ann"),
        (("annotations", 0, "category_id"), 9, "IS annotations[0]: category_id=9: is no category; the file has '3, 7'"),
        (("annotations", 0, "category_id"), True, "IS annotations[0]: category_id=True: must be a whole number"),
        (("annotations", 0, "iscrowd"), 2, "IS annotations[0]: iscrowd=2: must be 0 or 1"),
        (("annotations", 0, "iscrowd"), "1", "IS annotations[0]: iscrowd='1': must be 0 or 1"),
        (("annotations", 0, "bbox"), "gone", "IS annotations[0]: has no bbox; annotations of detection are needed"),
        (("annotations", 0, "bbox"), [1, 2, 3], f"data.train: {BOX}bbox=[1, 2, 3]: must be four numbers; mend it or"),
        (("annotations", 0, "bbox"), [1, 2, 3, "4"], f"data.train: {BOX}bbox=[1, 2, 3, '4']: must be four numbers"),
        (("annotations", 0, "bbox"), [1, 2, True, 4], f"data.train: {BOX}bbox=[1, 2, True, 4]: must be four numbers"),
        (("annotations", 0, "bbox"), [1, 2, 3, float("nan")], f"data.train: {BOX}bbox=[1, 2, 3, nan]: must be finite"),
        (("annotations", 0, "bbox"), [1, 2, float("inf"), 4], f"data.train: {BOX}bbox=[1, 2, inf, 4]: must be finite"),
        (("annotations", 0, "bbox"), [1, 2, HUGE, 4], f"data.train: {BOX}bbox=[1, 2, 999"),
        (
            ("annotations", 0, "bbox"),
            [1, 2, -3, 4],
            f"data.train: {BOX}bbox=[1, 2, -3, 4]: has a negative width or height; mend it, or set data.box: xyxy",
        ),
        (("annotations",), [], "data.train: no training image has a box of dog, cat; there is nothing to learn"),
    ],
)  # fmt: skip
def test_coco_files_with_something_wrong(coco, refused, two, tmp_path, path, value, message):
    text = refused(coco(change(path, value), scenes=two))
    file, folder = tmp_path / "train.json", tmp_path / "train_pictures"
    wanted = message.replace("IS ", f"data.train={str(file)!r}: ").replace("FOLDER", str(folder))
    assert text.startswith(wanted), text
    assert len(text) < 700


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "3", '"images"', "null", "[" * 10**5, "9" * 10**4, '{"images": [1e999, 9' + "9" * 5000 + "]}"],
)
def test_files_that_are_not_coco(coco, refused, two, tmp_path, text):
    told = refused(coco(lambda _: text or " ", scenes=two))
    file = tmp_path / "train.json"
    assert told.startswith((f"data.train={str(file)!r}: is not COCO's", f"data.train: {file} is not valid JSON ("))
    assert len(told) < 400


def test_files_that_cannot_be_read(coco, refused, two, tmp_path, monkeypatch):
    values = coco(scenes=two)
    (tmp_path / "train.json").write_bytes(b"\xff\xfe\xff")
    assert refused(values).startswith(f"data.train: {tmp_path / 'train.json'} is not valid JSON (")
    assert refused(values, train="none.json").startswith("data.train='none.json': no such file")
    assert refused(values, train_images="none").startswith("data.train_images='none': no such folder in ")
    assert refused(values, train_images="test.json").endswith("is a file; name the folder of the pictures")
    monkeypatch.setattr(data.memory, "available_memory", lambda: 1000)
    assert refused(coco(scenes=two)).startswith(f"data.train: {tmp_path / 'train.json'}: its records take ")


def test_tables_of_boxes_too_large_for_the_memory_are_refused_before_they_are_made(coco, refused, two, monkeypatch):
    values = coco(lambda content: content.update(annotations=content["annotations"] * 3000), scenes=two)
    free = iter((10**9, 10**9, 100_000))  # asked for each file, then for the table
    monkeypatch.setattr(data.memory, "available_memory", lambda: next(free))
    assert refused(values).startswith("data: boxes of 3 images, room for 3,000 an image, take 0.0 GB, 0.0 GB are free")


def test_pictures_too_large_for_the_memory_are_refused_before_they_are_decoded(
    coco, refused, two, tmp_path, monkeypatch
):
    values = coco(scenes=two)
    (tmp_path / "train_pictures" / "0.jpg").write_bytes(b"broken")
    assert refused(values).startswith("data.train: 0.jpg: image cannot be decoded (")
    monkeypatch.setattr(data.memory, "available_memory", lambda: 10**6)
    assert refused(values, size=1024).startswith("data.memory=True: 3 images of 3x1024x1024 take 0.0 GB, ")


def test_files_of_different_categories(coco, refused, two, tmp_path, load):
    values = coco(scenes=two)
    content = json.loads((tmp_path / "train.json").read_text())
    content["categories"].append({"id": 9, "name": "cow"})
    content["images"] = [{**image, "file_name": f"x{image['file_name']}"} for image in content["images"]]
    (tmp_path / "train-more.json").write_text(json.dumps(content))
    text = refused(values, train="train*.json")
    assert text.endswith("its categories are not those of train-more.json; give all files the same")
    test = json.loads((tmp_path / "test.json").read_text())
    test["categories"].append({"id": 9, "name": "cow"})
    (tmp_path / "test.json").write_text(json.dumps(test))
    assert refused(values) == (
        "data.test: has a category 'cow', which data.train has not; let data.classes choose some"
    )
    assert load(values, classes=["cat"]).classes == ("cat",)


@pytest.mark.parametrize("held_out", [None, 2])
def test_images_without_a_box_do_not_judge(coco, refused, load, two, held_out):
    """Such as a test set that nobody has marked: every network would have 0 there."""
    two["train"] = [(40, 60, [[2, 3, 10, 20, "cat"]])] + [(50, 50, [])] * 3
    if held_out is None:
        two["test"] = [(40, 40, [])]
        assert (
            refused(coco(scenes=two)) == "data.test: no test image has a box of dog, cat; there is nothing to judge by"
        )
        return
    told = set()
    for seed in range(12):
        try:
            load(coco(scenes=two), validation=held_out, split_seed=seed)
        except UserError as error:
            told.add(str(error))
    assert told == {
        "data.train: no validation image has a box of dog, cat; there is nothing to judge by",
        "data.train: no training image has a box of dog, cat; there is nothing to learn",
    }


def test_a_test_set_that_is_not_judged_may_be_without_boxes(coco, load, two):
    two["train"], two["test"] = [(40, 60, [[2, 3, 10, 20, "cat"]])] * 4, [(40, 40, [])]
    dataset = load(coco(scenes=two), validation=2, judge="validation")
    assert dataset.test is dataset.validation


def test_numbers_as_tables_of_floats_are_exported(coco, load, two, tmp_path):
    values = coco(scenes=two)
    plain, content = load(values), json.loads((tmp_path / "train.json").read_text())
    for one in content["images"]:
        one |= {name: float(one[name]) for name in ("id", "width", "height")}
    for one in content["annotations"]:
        one |= {"image_id": float(one["image_id"]), "category_id": float(one["category_id"]), "iscrowd": False}
        del one["id"]
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert torch.equal(load(values).train.labels, plain.train.labels)


def test_other_numbers_of_the_same_categories_in_the_test_file(coco, load, two, tmp_path):
    two["test"] = two["train"]
    values = coco(scenes=two)
    test = json.loads((tmp_path / "test.json").read_text())
    test["categories"] = [{"id": 50, "name": "cat"}]
    test["annotations"][0]["category_id"] = 50
    (tmp_path / "test.json").write_text(json.dumps(test))
    dataset = load(values)
    assert dataset.classes == ("dog", "cat")
    assert torch.equal(dataset.test.labels, dataset.train.labels)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_place_of_a_picture_is_not_waited_for(coco, refused, two, tmp_path):
    values = coco(scenes=two)
    (tmp_path / "train_pictures" / "0.jpg").unlink()
    os.mkfifo(tmp_path / "train_pictures" / "0.jpg")
    assert "image '0.jpg' is not in " in refused(values)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_with_something_wrong_that_are_read_later(coco, load, refused, two, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(data.boxes.load, "SAMPLE", 1)
    two["train"] = two["train"] * 3
    values = coco(scenes=two)
    dataset = load(values, memory=False, workers=workers)
    (tmp_path / "train_pictures" / "4.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^data\.train: 4\.jpg: image cannot be decoded \(.*\); mend or remove it$"):
        list(dataset.train.read(torch.split(torch.arange(6), 2)))
    Image.fromarray(np.zeros((40, 60), np.uint16)).save(tmp_path / "train_pictures" / "0.jpg", format="PNG")
    assert refused(values) == "data.train: 0.jpg: image mode I;16 is not 8 bits a channel; make it RGB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": "none"}, "data.objects='none': no such column in data.train; it has image, objects"),
        ({"objects": "image"}, "data.objects='image': is not a column of boxes and categories in data.train"),
        ({"image": "objects"}, "data.image='objects': is not a column of images in data.train, but "),
        ({"bbox": "none"}, "data.bbox='none': no such column in column 'objects' of data.train; it has bbox, category"),
        (
            {"bbox": "category"},
            "data.bbox='category': is not a field of four numbers in column 'objects' of data.train",
        ),
        (
            {"category": "x"},
            "data.category='x': no such column in column 'objects' of data.train; it has bbox, category",
        ),
    ],
)
def test_columns_that_are_not_there(table, refused, two, options, message):
    assert refused({**table(two), **options}).startswith(message)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, "data.train: row 0, box 1: bbox=[1.0, 2.0, nan, 4.0]: must be finite"),
        ({"bbox": [1, 2, 3, -4]}, "data.train: row 0, box 1: bbox=[1.0, 2.0, 3.0, -4.0]: has a negative width or"),
        ({"bbox": None}, "data.train: row 0, box 1: bbox=None: must be four numbers; mend it or leave the box out"),
        ({"category": None}, "data.train: row 0, box 1: category None"),
        ({"category": 7}, "data.train: row 0, box 1: category 7 is not one of '0, 1'"),
    ],
)
def test_tables_with_something_wrong(table, refused, two, mark, message):
    def changed(rows):
        rows[0]["objects"].append({**rows[0]["objects"][0], **mark})

    kind = None if "category" in mark else ("cat", "dog")
    more = {"classes": ["a", "b"]} if mark.get("category") else {}
    assert refused({**table(two, names=kind, change=changed), **more}).startswith(message)


def test_fields_of_different_lengths_and_rows_without_objects(tmp_path, refused, load, two, table):
    import datasets

    def changed(rows):
        rows[1]["objects"] = None

    values = table(two, change=changed)
    assert [len(boxes) for boxes in load(values).train.truths()] == [1, 0]
    rows = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    short = [{"bbox": [[1, 2, 3, 4]], "category": []}, None]
    rows = rows.remove_columns("objects").add_column("objects", short, feature=rows.features["objects"])
    rows.to_parquet(tmp_path / "train.parquet")
    assert refused(values) == (
        "data.train: row 0, column 'objects': has 1 of bbox, 0 of category; must be one each for every box"
    )


def test_a_local_table_that_names_files_is_not_believed(tmp_path, table, refused, two):
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = table(two)
    read = pq.read_table(tmp_path / "train.parquet")
    stored = pa.array([{"bytes": None, "path": "/etc/passwd"}] * 2, type=read.schema.field("image").type)
    pq.write_table(read.set_column(read.schema.get_field_index("image"), "image", stored), tmp_path / "train.parquet")
    assert refused(values) == "data.train: row 0: image is elsewhere (/etc/passwd) and not read from there; put it in"


STRANGE = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        3,
        7,
        100,
        10**400,
        1e300,
        float("nan"),
        float("-inf"),
        "",
        "x",
        "../x",
        "0.jpg",
        [],
        [[]],
        {},
    ]
)


def places(content, path=()):
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_stands_in_the_file_it_is_read_or_refused_in_one_line(tmp_path, coco, two, data):
    values = coco(scenes=two)
    content = json.loads((tmp_path / "train.json").read_text())
    spoilt = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([path for path in places(spoilt) if path]))
        change(path, copy.deepcopy(data.draw(STRANGE)))(spoilt)
    (tmp_path / "train.json").write_text(json.dumps(spoilt))
    text, boxes = "", torch.zeros(0, 5)
    try:
        labels = load_boxes(BoxesSpec(**values, memory=False, workers=0), tmp_path).train.labels
        boxes = labels[labels[..., 4] >= 0]
    except UserError as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 800
    assert bool(text) == (len(boxes) == 0), "without boxes there is nothing to learn"
    assert (boxes[:, :4] >= 0).all()
    assert (boxes[:, :4] <= 32).all()
    assert (boxes[:, 2:4] > boxes[:, :2]).all()


def pixels(dataset):
    return torch.cat([images for images, _ in dataset.train.read([torch.arange(len(dataset.train))])])


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_a_link_in_the_folder_of_pictures_is_followed_as_is_said(coco, load, two, tmp_path):
    """SECURITY.md: whole data sets are made of links."""
    values = coco(scenes=two)
    before = pixels(load(values))
    (tmp_path / "elsewhere").mkdir()
    for file in list((tmp_path / "train_pictures").iterdir()):
        file.symlink_to(file.rename(tmp_path / "elsewhere" / file.name))
    assert all(file.is_symlink() for file in (tmp_path / "train_pictures").iterdir())
    assert torch.equal(pixels(load(values)), before)


def test_reading_opens_no_picture(coco, two, tmp_path):
    coco(scenes=two)
    for file in (tmp_path / "train_pictures").iterdir():
        file.write_bytes(b"broken")
    found = read_coco([tmp_path / "train.json"], tmp_path / "train_pictures", "data.train")
    assert found.sizes([0, 1]) == [(40, 60), (50, 50)]
