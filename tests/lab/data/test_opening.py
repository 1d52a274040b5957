"""From the bytes of a picture to its pixels: which way up, whatever stands beside them."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from torchreaper.lab.data.opening import measure_picture, open_picture

KINDS = ["JPEG", "PNG", "TIFF", "WEBP"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8))


def stored(kind: str, exif: bytes | Image.Exif) -> dict:
    file = BytesIO()
    PICTURE.save(file, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return {"bytes": file.getvalue(), "path": None}


def tags(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of these: number, type, count, and four bytes of value."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


TURNED = (0x112, 3, 1, struct.pack("<HH", 6, 0))  # by a quarter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", range(10))
def test_a_picture_is_turned_as_pillow_turns_it(kind, turn):
    exif = Image.Exif()
    exif[0x112] = turn
    picture = stored(kind, exif)
    found = open_picture(picture, "here", mode="RGB")
    wanted = ImageOps.exif_transpose(Image.open(BytesIO(picture["bytes"]))).convert("RGB")
    assert np.array_equal(found, wanted)
    assert measure_picture(picture, "here") == (found.height, found.width)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "turned"),
    {
        "no EXIF": (b"Exif\0\0garbagegarbage", False),
        "nothing": (b"Exif\0\0", False),
        "cut off": (tags(TURNED)[:14], False),
        "beyond its end": (b"Exif\0\0II*\0" + struct.pack("<I", 9999), False),
        "a resolution in words": (tags(TURNED, (0x11A, 2, 3, b"72\0\0")), True),
        "a unit that is a fraction": (tags(TURNED, (0x128, 11, 1, struct.pack("<f", 1.5))), True),
        "a negative width": (tags(TURNED, (0x100, 9, 1, struct.pack("<i", -5))), True),
        "bytes for a number": (tags(TURNED, (0x103, 1, 4, b"\1\2\3\4")), True),
        "a table at no place": (tags(TURNED, (0x8769, 4, 1, struct.pack("<I", 99999))), True),
        "a turn in words": (tags((0x112, 2, 2, b"6\0\0\0")), False),
        "two turns": (tags((0x112, 3, 2, struct.pack("<HH", 6, 6))), True),
    }.values(),
)  # fmt: skip
def test_odd_exif_spoils_no_picture(kind, exif, turned):
    picture = stored(kind, exif)
    plain = Image.open(BytesIO(picture["bytes"])).convert("RGB")
    wanted = plain.transpose(Image.Transpose.ROTATE_270) if turned else plain
    assert np.array_equal(open_picture(picture, "here", mode="RGB"), wanted)
    assert measure_picture(picture, "here") == (wanted.height, wanted.width)
