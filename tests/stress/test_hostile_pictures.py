"""Pictures and tables of pictures that would take all memory, lead elsewhere, or start a program."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tests.stress.recording import lengths

from torchreaper.lab.data import DataSpec, load
from torchreaper.lab.data.opening import LIMIT, MOST_PIXELS, most_pixels, open_picture
from torchreaper.lab.errors import UserError

ROOT = Path(__file__).parents[2]
MORE = 150
"""Megabytes that a refused picture may take: Python's own parts, and a megabyte or two of the file."""


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *more, data=b""):
    """A PNG that says it is that large; its lines are not all there."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(size):
    packer, found = zlib.compressobj(9), []
    for _ in range(0, size, 2**20):
        found.append(packer.compress(bytes(2**20)))
    return b"".join([*found, packer.flush()])


def saved(image, form, **how):
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return buffer.getvalue()


def jpeg(width, height):
    data = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif(width, height, frames=1):
    whole = saved(
        Image.new("P", (8, 8)), "GIF", save_all=True, append_images=[Image.new("P", (8, 8), 1)] * (frames - 1)
    )
    return whole[:6] + struct.pack("<HH", width, height) + whole[10:]


def bmp(width, height):
    data = bytearray(saved(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def tiff(**tags):
    """One with these tags, by number, in place of its own."""
    known = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    known |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(known.items()))
    return b"II*\x00" + struct.pack("<I", 72) + bytes(64) + struct.pack("<H", len(known)) + entries + bytes(4)


def bombs():
    """Name -> the bytes of a picture that no one should decode."""
    grey = zeros(2**29)  # half a gigabyte in half a megabyte
    return {
        "png 50,000 x 50,000": png(50_000, 50_000, data=grey),
        "png 30,000 x 3,000": png(30_000, 3_000, data=grey),
        "png as high as can be": png(1, 2**31 - 1, data=grey),
        "png of half a gigabyte of text": png(8, 8, chunk(b"zTXt", b"x\0\0" + grey)),
        "png of half a gigabyte of colours": png(8, 8, chunk(b"iCCP", b"x\0\0" + grey)),
        "png of half a gigabyte of unicode": png(8, 8, chunk(b"iTXt", b"x\0\x01\0\0\0" + grey)),
        "jpeg 65,500 x 65,500": jpeg(65_500, 65_500),
        "gif 65,535 x 65,535": gif(65_535, 65_535),
        "gif 65,535 x 65,535 of many frames": gif(65_535, 65_535, frames=300),
        "bmp 2 billion high": bmp(1, 2**31 - 1),
        "bmp 60,000 x 60,000": bmp(60_000, 60_000),
        "tiff 4 billion wide": tiff(t256=2**32 - 1, t257=2**32 - 1),
        "tiff of 60,000 x 60,000": tiff(t256=60_000, t257=60_000),
        "tiff of 4 billion samples": tiff(t277=2**32 - 1),
        "tiff of strips beyond its end": tiff(t273=2**32 - 1, t279=2**32 - 1),
        "tiff of 65,535 bits": tiff(t258=65_535),
        "ppm 100,000 x 100,000": b"P6 100000 100000 255\n",
        "ppm of a billion digits": b"P6 " + b"9" * 10**7 + b" 1 255\n",
        "webp of 16,383 x 16,383": saved(Image.new("RGB", (16_383, 1)), "WEBP").replace(
            struct.pack("<HH", 16_383, 1), struct.pack("<HH", 16_383, 16_383)
        ),
        "eps, which starts a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n",
        "icns": b"icns" + struct.pack(">I", 16) + b"ic10" + struct.pack(">I", 8),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    }


CHILD = """
import json, sys
import datasets
from tests.stress.memory import Peak
from torchreaper.lab.data import DataSpec, load
from torchreaper.lab.errors import UserError
datasets.disable_progress_bars()
load(DataSpec(name="folder", train="plain", test="plain", size=8), ".")  # what is imported when it is needed
for line in sys.stdin:
    peak = Peak()
    try:
        load(DataSpec(**json.loads(line)), ".")
        told = "read"
    except UserError as error:
        told = str(error)
    print(json.dumps([told, peak.taken()]), flush=True)
"""


@pytest.fixture(scope="module")
def loading(tmp_path_factory):
    """In a process of its own: what loading some data says, and how many MB it took at most."""
    folder = tmp_path_factory.mktemp("loading")
    plain(folder)
    here = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def told(spec, base):
            paths = {key: str(base / spec[key]) for key in ("train", "test")}
            child.stdin.write(json.dumps(spec | paths) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        yield told
        child.stdin.close()


def plain(folder):
    for kind in "ab":
        (folder / "plain" / kind).mkdir(parents=True)
        Image.new("L", (8, 8), 100).save(folder / "plain" / kind / "0.png")


def rows(folder, name, images, path=None):
    stored = [{"bytes": data, "path": path} for data in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(stored, kind), "label": [number % 2 for number in range(len(stored))]})
    parquet.write_table(table, folder / f"{name}.parquet")


@lengths(1, 3)
def test_no_picture_takes_the_memory_that_it_claims(times, trials, tmp_path, loading):
    kinds = bombs()
    count = trials(
        "hostile files",
        "pictures of a few kB that claim gigabytes (PNG, JPEG, GIF, BMP, TIFF, PPM, WebP), or are programs (EPS), in "
        f"folders and parquet, held and read when needed: refused by name, less than {MORE} MB taken",
        "pictures",
    )
    names, specs = [], []
    for number in range(times):
        for place, (name, data) in enumerate(kinds.items()):
            way = (number + place) % 3
            if way == 0:
                rows(tmp_path, f"{number}-{place}", [data, data])
                where = {"name": "parquet", **dict.fromkeys(("train", "test"), f"{number}-{place}.parquet")}
            else:
                folder = tmp_path / f"{number}-{place}"
                for kind in "ab":
                    (folder / kind).mkdir(parents=True)
                    # The suffix is believed by nobody.
                    (folder / kind / f"bomb.{'png' if way == 1 else 'jpg'}").write_bytes(data)
                where = {"name": "folder", "train": folder.name, "test": folder.name}
            specs.append({**where, "size": 8, **({"memory": False, "workers": 0} if way == 2 else {})})
            names.append(name)
    for name, spec in zip(names, specs):
        with count.one():
            said, grown = loading(spec, tmp_path)
            assert said.startswith("data.train: "), (name, spec, said)
            assert "image of " in said or "image cannot be decoded (" in said, (name, spec, said)
            assert "\n" not in said
            assert grown < MORE, (name, spec, said, grown)


@lengths(1, 2)
def test_no_table_unpacks_to_more_than_there_is(times, trials, tmp_path, loading):
    count = trials(
        "hostile files",
        "parquet files of some kB whose columns unpack to 200 MB to 1 GB, or whose images lie elsewhere (a path, an "
        f"address, a device): refused by name, less than {MORE} MB taken",
        "files",
    )
    picture = saved(Image.new("L", (8, 8)), "PNG")
    specs, wanted = [], []
    for number in range(times):
        for codec in ("gzip", "zstd", "snappy") if times > 1 else ("zstd",):
            size = (200 + 250 * number) * 2**20
            stored = pa.array([{"bytes": bytes(size // 4), "path": None}] * 4)
            table = pa.table({"image": stored, "label": [0, 1, 0, 1]})
            parquet.write_table(table, tmp_path / f"{codec}-{number}.parquet", compression=codec, use_dictionary=False)
            specs.append(f"{codec}-{number}")
            wanted.append("unpacks from " if codec != "snappy" else "")
            del stored, table
        for place, path in enumerate(
            ("/etc/passwd", "/dev/zero", "https://example.org/a.png", "zip://a::x.zip", "b.png")
        ):
            rows(tmp_path, f"path-{number}-{place}", [None, picture], path)
            specs.append(f"path-{number}-{place}")
            wanted.append(f": row 0: image is elsewhere ({path}) and not read from there; put it in")
    ways = [{"name": "parquet", "train": f"{one}.parquet", "test": f"{one}.parquet", "size": 8} for one in specs]
    for name, want, way in zip(specs, wanted, ways):
        with count.one():
            said, grown = loading(way, tmp_path)
            assert said.startswith("data.train"), (name, said)
            assert want in said, (name, said)
            assert grown < MORE or name.startswith("snappy"), (name, said, grown)


def test_a_column_of_few_bytes_and_many_rows_is_counted_before_it_is_held(tmp_path, monkeypatch):
    """A dictionary says a picture once for all its rows, so that the file's own index does not show how many."""
    rng = np.random.default_rng(0)
    data = saved(Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)), "PNG")
    rows(tmp_path, "same", [data] * 1000)
    assert (tmp_path / "same.parquet").stat().st_size < 2 * len(data)
    monkeypatch.setattr("torchreaper.lab.data.parquet.available_memory", lambda: 10**7)
    spec = DataSpec(name="parquet", train="same.parquet", test="same.parquet", size=8)
    with pytest.raises(
        UserError, match=r"^data\.train='.*same\.parquet': unpacks to more than the 0\.0 GB that are free"
    ):
        load(spec, tmp_path)


def test_the_files_of_a_data_set_are_counted_together(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        pictures = rng.integers(0, 256, (4, 200, 200, 3), dtype=np.uint8)
        rows(tmp_path, name, [saved(Image.fromarray(one), "PNG") for one in pictures])
    monkeypatch.setattr("torchreaper.lab.data.parquet.available_memory", lambda: 700_000)
    load(DataSpec(name="parquet", train="a.parquet", test="a.parquet", size=8), tmp_path)
    spec = DataSpec(name="parquet", train="?.parquet", test="a.parquet", size=8)
    with pytest.raises(UserError, match=r"^data\.train='.*b\.parquet': unpacks to more than the 0\.0 GB that are free"):
        load(spec, tmp_path)


def test_the_bound_is_the_machines_and_can_be_set(monkeypatch):
    picture = {"bytes": saved(Image.new("L", (100, 50)), "PNG"), "path": None}
    assert most_pixels() == MOST_PIXELS
    monkeypatch.setenv(LIMIT, "5000")
    assert open_picture(picture, "here").size == (100, 50)
    monkeypatch.setenv(LIMIT, "4_999")
    with pytest.raises(
        UserError,
        match=rf"^here: image of 100x50 pixels, at most 4,999 are decoded; remove it, or set {LIMIT} if it is meant to "
        "be that large$",
    ):
        open_picture(picture, "here")
    for wrong in ("many", "-1", "1.5", "0", "²", "9" * 30):
        monkeypatch.setenv(LIMIT, wrong)
        with pytest.raises(UserError, match=rf"^{LIMIT}=.*: must be a number of pixels, such as {MOST_PIXELS}$"):
            most_pixels()
    assert LIMIT.lower() not in DataSpec.model_fields
    assert Image.MAX_IMAGE_PIXELS == MOST_PIXELS, "Pillow's own bound is left as it was"


def test_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    """500 pictures at the bound together would take a hundred gigabytes."""
    from torchreaper.lab.data import table

    alive, most = set(), [0]
    decode = table.open_picture

    class Watched:
        def __init__(self, image):
            self.image = image
            alive.add(id(self))
            most[0] = max(most[0], len(alive))

        def __del__(self):
            alive.discard(id(self))

        def __getattr__(self, name):
            return getattr(self.image, name)

    monkeypatch.setattr(table, "open_picture", lambda *args, **how: Watched(decode(*args, **how)))
    rows(tmp_path, "many", [saved(Image.new("L", (8, 8), k), "PNG") for k in range(50)])
    load(DataSpec(name="parquet", train="many.parquet", test="many.parquet"), tmp_path)
    assert 1 <= most[0] <= 3


@pytest.mark.stress
def test_modules_that_lie_about_are_not_imported(tmp_path):
    """Reading streamed pictures imports decoders late; the folder a user stands in may hold a file of that name."""
    plain(tmp_path)
    canary = tmp_path / "canary"
    for name in ("olefile", "defusedxml", "PngImagePlugin", "pickletools", "cffi", "zlib_ng"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()")
    code = f"""
import sys
sys.path[:] = [path for path in sys.path if path not in ("", {str(tmp_path)!r})]
from torchreaper.lab.data import DataSpec, load
dataset = load(DataSpec(name="folder", train="plain", test="plain", size=8, memory=False, workers=0), ".")
import torchreaper.lab.data.stream as stream
class Looking:
    def __len__(self): return 2
    def __getitem__(self, number):
        return [path for path in sys.path if path in ("", {str(tmp_path)!r})]
print(list(stream.fetch(Looking(), workers=0)))
"""
    here = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}", "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert ended.stdout == "[[], []]\n", ended.stderr
    assert not canary.exists()
