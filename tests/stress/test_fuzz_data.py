"""Pictures and tables of them with something wrong: refused in one line that says which, or taken for what they are."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.stress.mutating import damaged, fuzzing, one_line, quickly
from tests.stress.recording import lengths

from torchreaper.lab import data
from torchreaper.lab.data import DataSpec
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

NUMBERS = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """What the `datasets` library keeps on the disk goes to a folder of the tests."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def picture(mode: str, size: tuple[int, int], form: str = "PNG", **how: Any) -> bytes:
    """A picture of random bytes as a file."""
    width, height = size
    if mode in ("I;16", "I", "F"):
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray(NUMBERS.integers(0, 60_000, (height, width)).astype(kinds[mode]))
    else:
        bands = Image.fromarray(NUMBERS.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image = bands.convert({"LA": "L", "PA": "P"}.get(mode, mode)).convert(mode)
    out = io.BytesIO()
    image.save(out, format=form, **how)
    return out.getvalue()


def turned() -> bytes:
    """A JPEG that a camera would want turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("RGB", (8, 6), "JPEG", exif=exif.tobytes())


def moving() -> bytes:
    """A GIF of three pictures."""
    out = io.BytesIO()
    frames = [Image.fromarray(NUMBERS.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def large_by_its_word(data: bytes) -> bytes:
    """A PNG whose header says that it is 60,000 pixels wide and high."""
    import zlib

    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def files() -> dict[str, bytes]:
    """All kinds of files that pictures come as."""
    plain = picture("RGB", (6, 6))
    return {
        **{f"png {mode}": picture(mode, (6, 6)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
        **{f"tiff {mode}": picture(mode, (6, 6), "TIFF") for mode in ("L", "RGB", "RGBA", "CMYK", "I;16", "I", "F")},
        **{f"jpeg {mode}": picture(mode, (6, 6), "JPEG") for mode in ("L", "RGB", "CMYK", "YCbCr")},
        **{"bmp": picture("RGB", (6, 6), "BMP"), "webp": picture("RGB", (6, 6), "WEBP", lossless=True)},
        **{"turned": turned(), "moving": moving(), "1x1": picture("RGB", (1, 1)), "line": picture("RGB", (5000, 1))},
        **{"empty": b"", "no picture": b"no picture", "zeros": bytes(100), "cut": plain[:60]},
        **{"wide by its word": large_by_its_word(plain)},
    }


FILES = files()
#: What is refused, whatever the recipe says.
NEVER = {"png I;16", "tiff I;16", "tiff I", "tiff F", "empty", "no picture", "zeros", "cut", "wide by its word"}


def loaded(spec: dict[str, Any], base: Path) -> data.Dataset | None:
    """The data set, read to its end; None where it is refused in one line."""
    try:
        return read(spec, base)
    except UserError as error:
        one_line(error)
        return None


def read(spec: dict[str, Any], base: Path) -> data.Dataset:
    """The data set, read to its end."""
    with quickly(20), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = data.load(parse(DataSpec, spec, at="data"), base)
        for split in (found.train, found.validation, found.test):
            if split is not None:
                check(found, split)
    return found


def check(found: data.Dataset, split: Any) -> None:
    """What every split has to be: images of one shape, and a class that exists for each."""
    assert len(split)
    assert int(split.labels.min()) >= 0
    assert int(split.labels.max()) < len(found.classes)
    for images, labels in split.read(torch.split(torch.arange(len(split)), 4)):
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), *split.shape)


# --- every kind of file, one after the other


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "streamed"])
@pytest.mark.parametrize("kind", FILES)
def test_each_kind_of_picture_is_taken_or_refused_by_name(kind, memory, tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "1.png").write_bytes(FILES["png RGB"])
    (tmp_path / "train" / "b" / "2.png").write_bytes(FILES[kind])
    spec = {"name": "folder", "train": "train", "test": "test", "size": 6, "memory": memory}
    if memory is False:
        spec["workers"] = 0
    if kind not in NEVER:
        found = loaded(spec, tmp_path)
        assert found is not None
        assert found.train.shape == (3, 6, 6)
        return
    with pytest.raises(UserError, match=r"^data\.train: b/2\.png: image ") as caught:
        read(spec, tmp_path)
    one_line(caught.value)


# --- tables

LABELS: list[Callable[[int], Any]] = [
    lambda n: pa.array([k % 2 for k in range(n)], pa.int64()),
    lambda n: pa.array([k % 2 for k in range(n)], pa.int64()),
    lambda n: pa.array([k % 2 for k in range(n)], pa.int8()),
    lambda n: pa.array(["cat", "dog"] * n, pa.string())[:n],
    lambda n: pa.array([k % 2 if k else None for k in range(n)], pa.int64()),
    lambda n: pa.array([float(k % 2) for k in range(n)], pa.float32()),
    lambda n: pa.array([float("nan")] * n, pa.float64()),
    lambda n: pa.array([k % 2 - 1 for k in range(n)], pa.int64()),
    lambda n: pa.array([2**40 + k for k in range(n)], pa.int64()),
    lambda n: pa.array([2**63 + k for k in range(n)], pa.uint64()),
    lambda n: pa.array([0] * n, pa.int64()),
    lambda n: pa.array([bool(k % 2) for k in range(n)], pa.bool_()),
    lambda n: pa.array([None] * n, pa.null()),
    lambda n: pa.array([[k] for k in range(n)], pa.list_(pa.int64())),
    lambda n: pa.array([{"a": k} for k in range(n)]),
    lambda n: pa.array([b"a"] * n, pa.binary()),
    lambda n: pa.array(range(n), pa.date32()),
    lambda n: pa.array(["", "\x00", "\n"] * n, pa.string())[:n],
]


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A parquet file of pictures and labels, as on huggingface.co, with something wrong."""
    rows = draw(st.sampled_from([0, 1, 2, 6, 6, 6, 6]))
    plain = draw(st.booleans())
    kinds = list(FILES) if draw(st.booleans()) else ["png RGB"]
    contents = [FILES["png RGB" if draw(st.integers(0, 2)) else draw(st.sampled_from(kinds))] for _ in range(rows)]
    images: list[Any] = [{"bytes": one, "path": None} for one in contents]
    if rows and draw(st.integers(0, 4)) == 0:
        odd = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"", "path": ""}]
        images[draw(st.integers(0, rows - 1))] = draw(st.sampled_from(odd))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(images, kind), "label": draw(st.sampled_from(LABELS[:4] if plain else LABELS))(rows)}
    match draw(st.sampled_from(["", "", "", "rename", "twice", "drop", "text", "binary", "metadata"])):
        case "rename":
            columns[draw(st.sampled_from(["img", "", "Label", "\n"]))] = columns.pop(
                draw(st.sampled_from(["image", "label"]))
            )
        case "twice":
            columns["labels"] = columns["label"]
        case "drop":
            del columns[draw(st.sampled_from(["image", "label"]))]
        case "text":
            columns["image"] = pa.array(["a"] * rows, pa.string())
        case "binary":
            columns["image"] = pa.array(contents, pa.binary())
        case _:
            pass
    table = pa.table(columns)
    if draw(st.integers(0, 3)) == 0:
        features = draw(
            st.sampled_from([{"label": {"names": ["a"], "_type": "ClassLabel"}}, {"label": 3}, {}, [], "x"])
        )
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    out = io.BytesIO()
    pq.write_table(table, out)
    content = out.getvalue()
    return draw(damaged(content, most=2)) if draw(st.integers(0, 4)) == 0 else content


def settings() -> st.SearchStrategy[dict[str, Any]]:
    """What else a recipe may say of data."""
    some = {
        "size": st.sampled_from([1, 6, 7]),
        "limit": st.sampled_from([1, 2, 4, 10]),
        "test_limit": st.sampled_from([1, 2, 10]),
        "validation": st.sampled_from([0, 1, 3, 6]),
        "memory": st.booleans(),
    }
    return st.fixed_dictionaries({}, optional=some).map(
        lambda one: {**one, **({"workers": 0} if one.get("memory") is False else {})}
    )


@lengths(20, 600)
def test_a_table_with_something_wrong_is_refused_in_one_line_or_read(times, trials, tmp_path):
    count = trials(
        "bad input",
        "parquet files with columns, labels and pictures missing, of wrong types, out of range, damaged; no rows, one "
        "class: refused in one line, or images and classes that belong together",
        "tables",
    )
    good = 0
    whole = {"image": pa.array([{"bytes": FILES["png RGB"], "path": None}] * 6), "label": LABELS[0](6)}

    @fuzzing(times)
    @given(tables(), st.sampled_from(["train", "test", "both"]), settings())
    def holds(table, which, more):
        nonlocal good
        for part in ("train", "test"):
            pq.write_table(pa.table(whole), tmp_path / f"{part}.parquet")
            if which in (part, "both"):
                (tmp_path / f"{part}.parquet").write_bytes(table)
        with count.one():
            spec = {"name": "parquet", "train": "train.parquet", "test": "test.parquet", **more}
            good += loaded(spec, tmp_path) is not None

    holds()
    count.note = f"{good} were read"
    assert good < times


@lengths(20, 600)
def test_a_folder_with_wrong_pictures_is_refused_in_one_line_or_read(times, trials, tmp_path):
    count = trials(
        "bad input",
        "folders of grey, palette, 16-bit, CMYK, turned, moving, tiny, huge, cut, empty and damaged pictures, classes "
        "missing or on one side only: refused in one line, or images and classes that belong together",
        "folders",
    )
    good = 0

    @st.composite
    def trees(draw: st.DrawFn) -> dict[str, bytes]:
        tree = {f"{part}/{name}/1.png": FILES["png RGB"] for part in ("train", "test") for name in ("a", "b")}
        for _ in range(draw(st.integers(1, 3))):
            content = FILES[draw(st.sampled_from(list(FILES)))]
            if draw(st.booleans()):
                content = draw(damaged(content))
            part, name = (
                draw(st.sampled_from(["train", "train", "test"])),
                draw(st.sampled_from(["a", "b", "b", "c", "a/d"])),
            )
            tree[f"{part}/{name}/{draw(st.sampled_from(['1', '2', '3']))}.png"] = content
        if draw(st.integers(0, 4)) == 0:
            del tree[draw(st.sampled_from(sorted(tree)))]
        return tree

    @fuzzing(times)
    @given(trees(), settings())
    def holds(tree, more):
        nonlocal good
        made = tmp_path / str(count.tried)
        for name, content in tree.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(content)
        with count.one():
            good += loaded({"name": "folder", "train": "train", "test": "test", **more}, made) is not None

    holds()
    count.note = f"{good} were read"
    assert 0 < good < times
