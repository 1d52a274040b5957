"""Photographs of coloured rectangles with their boxes, in COCO's JSON or in parquet, made in tmp_path."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from torchreaper.lab.data import BoxesSpec, load_boxes
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

NAMES = {7: "cat", 3: "dog"}
COLOURS = {"cat": (250, 20, 20), "dog": (20, 20, 250)}


def photograph(height, width, objects=(), background=(60, 160, 60)):
    """``objects``: (x, y, w, h, class name)."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = background
    for x, y, w, h, name in objects:
        pixels[y : y + h, x : x + w] = COLOURS[name]
    return Image.fromarray(pixels)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def scene(seed):
    """A picture's height and width, and its objects, apart from each other."""
    draw = np.random.default_rng(seed)
    height, width = int(draw.integers(40, 70)), int(draw.integers(40, 70))
    objects = []
    for place in range(int(draw.integers(0, 4))):
        x, y = 20 * (place % 2) + int(draw.integers(0, 4)), 20 * (place // 2) + int(draw.integers(0, 4))
        objects.append([x, y, int(draw.integers(8, 15)), int(draw.integers(8, 15)), draw.choice(["cat", "dog"]).item()])
    return height, width, objects


SCENES = {"train": [scene(seed) for seed in range(10)], "test": [scene(seed) for seed in range(20, 24)]}


def content(scenes, prefix=""):
    """COCO's JSON of scenes, as Python."""
    number = {name: one for one, name in NAMES.items()}
    images, annotations = [], []
    for place, (height, width, objects) in enumerate(scenes):
        images.append({"id": 100 + place, "file_name": f"{prefix}{place}.jpg", "height": height, "width": width})
        for x, y, w, h, name in objects:
            about = {"id": len(annotations) + 1, "image_id": 100 + place, "category_id": number[name]}
            annotations.append({**about, "bbox": [x, y, w, h], "iscrowd": 0, "area": w * h})
    categories = [{"id": one, "name": name, "supercategory": "pet"} for one, name in NAMES.items()]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco(tmp_path):
    """coco(change) -> the values of a BoxesSpec; ``change`` gets the content of train.json before it is written."""

    def make(change=None, scenes=SCENES, **options):
        values = {"name": "coco", "size": 32, **options}
        for key, those in scenes.items():
            folder = tmp_path / f"{key}_pictures"
            folder.mkdir(exist_ok=True)
            for place, one in enumerate(those):
                (folder / f"{place}.jpg").write_bytes(encoded(photograph(*one), "JPEG", quality=95))
            made = content(those)
            if change and key == "train":
                made = change(made) or made
            (tmp_path / f"{key}.json").write_text(made if isinstance(made, str) else json.dumps(made))
            values |= {key: f"{key}.json", f"{key}_images": f"{key}_pictures"}
        return values

    return make


@pytest.fixture
def table(tmp_path):
    """table(**options) -> the values of a BoxesSpec for two parquet files that ``datasets`` wrote."""
    import datasets

    def make(
        scenes=SCENES, *, names=("cat", "dog"), of_lists=True, objects="objects", bbox="bbox", change=None, more=()
    ):
        number = datasets.Value("string") if names is str else datasets.Value("int64")
        kind = datasets.ClassLabel(names=list(names)) if isinstance(names, tuple) else number
        fields = {bbox: datasets.List(datasets.Value("float32"), length=4), "category": kind, **dict(more)}
        column = {name: datasets.List(f) for name, f in fields.items()} if of_lists else datasets.List(fields)
        features = datasets.Features({"image": datasets.Image(), objects: column})
        for key, those in scenes.items():
            rows = []
            for height, width, things in those:
                marks = [
                    {bbox: thing[:4], "category": thing[4] if names is str else ("cat", "dog").index(thing[4])}
                    for thing in things
                ]
                rows.append({"image": encoded(photograph(height, width, things)), objects: marks})
            if change and key == "train":
                change(rows)
            for row in rows:
                marks = row[objects]
                if of_lists and marks is not None:
                    row[objects] = {name: [mark.get(name) for mark in marks] for name in fields}
                row["image"] = {"bytes": row["image"], "path": None}
            datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{key}.parquet")
        return {"name": "parquet", "train": "train.parquet", "test": "test.parquet", "size": 32}

    return make


@pytest.fixture
def load(tmp_path):
    def load(values, **more):
        return load_boxes(parse(BoxesSpec, {**values, **more}, at="data"), tmp_path)

    return load


@pytest.fixture
def refused(load):
    def refused(values, **more):
        with pytest.raises(UserError) as caught:
            load(values, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused


@pytest.fixture
def scenes():
    return SCENES
