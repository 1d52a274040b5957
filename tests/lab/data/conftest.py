"""Small image data sets in the parquet schema of Hugging Face, made in tmp_path."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def png(array, mode=None):
    out = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(out, format="PNG")
    return out.getvalue()


def pictures(count, *, side=6, grey=False, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side) if grey else (count, side, side, 3), dtype=np.uint8)


def write(path, images, labels, *, names=("cat", "dog"), image="image", label="label", hf=True):
    """Write a parquet file. ``images``: arrays, encoded bytes or None; ``names`` None: plain labels."""
    import datasets

    stored = [None if i is None else {"bytes": i if isinstance(i, bytes) else png(i), "path": None} for i in images]
    if names is None:
        kind = datasets.Value("string" if isinstance(labels[0], str) else "int64")
    else:
        kind = datasets.ClassLabel(names=list(names))
    features = datasets.Features({image: datasets.Image(), label: kind})
    schema = features.arrow_schema
    table = pa.table({image: stored, label: list(labels)}, schema=schema if hf else schema.remove_metadata())
    pq.write_table(table, path)
    return path


@pytest.fixture
def make(tmp_path):
    """make(train=..., test=..., **options of write) -> the arguments of a DataSpec for the two files."""

    def make(images=None, labels=None, test_images=None, test_labels=None, **options):
        images = pictures(8) if images is None else images
        labels = [0, 1] * (len(images) // 2) if labels is None else labels
        test_images = pictures(4, seed=1) if test_images is None else test_images
        test_labels = labels[: len(test_images)] if test_labels is None else test_labels
        write(tmp_path / "train.parquet", images, labels, **options)
        write(tmp_path / "test.parquet", test_images, test_labels, **options)
        return {"name": "parquet", "train": "train.parquet", "test": "test.parquet"}

    make.pictures, make.png = pictures, png
    return make


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """What the library keeps on the disk goes to a folder of the tests."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
