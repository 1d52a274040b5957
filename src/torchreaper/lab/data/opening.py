"""From the bytes of a picture to its pixels in memory, no more of them than the machine is meant to hold."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from torchreaper.lab.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

LIMIT = "REAPER_MAX_PIXELS"
"""The variable of the environment that sets another bound. No key of a recipe: those come from others too."""
MOST_PIXELS = 89_478_485
"""Width times height of a picture: Pillow's own bound, a quarter of a gigabyte at 24 bits a pixel."""
# How EXIF says that a picture is to be turned, by the names of Pillow's transpositions.
_TURNS = {
    **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM"},
    **{5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
}
# What Pillow raises at EXIF that is none, behind which there may be a good picture.
_ODD = (AttributeError, EOFError, LookupError, SyntaxError, TypeError, ValueError, struct.error)
# What data sets are made of. Not all that Pillow reads: EPS would start a program, others are seldom looked after.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")


def most_pixels() -> int:
    """The bound; `UserError` where the environment sets one that is no number."""
    given = os.environ.get(LIMIT, "").replace("_", "") or str(MOST_PIXELS)
    if not given.isdecimal() or not given.isascii() or not 0 < len(given) < 19 or not int(given):
        raise UserError(f"{LIMIT}={os.environ[LIMIT]!r}: must be a number of pixels, such as {MOST_PIXELS}")
    return int(given)


def open_picture(stored: Any, where: str, *, mode: str | None = None) -> Image:
    """Decode one picture, turned as its EXIF data say; of several in a file the first.

    Args:
        stored: ``{"bytes": ..., "path": ...}`` as ``datasets`` stores it; the path counts where there are no bytes.
        where: which picture it is, for error texts.
        mode: to convert it to.

    Raises:
        UserError: it has more pixels than `most_pixels`, found before any of them is decoded.
        Exception: whatever its bytes make the decoder raise.
    """
    import PIL.Image  # needed here only

    with _opened(stored, where) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        # Not by Pillow's exif_transpose, which writes all other EXIF anew, and fails where one of it is odd.
        found = image if turn is None else image.transpose(PIL.Image.Transpose[turn])
        return found.convert(mode) if mode and mode != found.mode else found


def measure_picture(stored: Any, where: str) -> tuple[int, int]:
    """Height and width of the picture that `open_picture` gives, from its head as far as that tells; same errors."""
    with _opened(stored, where) as image:
        width, height = image.size
        on_its_side = _orientation(image) in (5, 6, 7, 8) and image.format != "TIFF"  # whose size tells it already
        return (width, height) if on_its_side else (height, width)


def _orientation(image: Image) -> int:
    """1 to 8; 1, which is upright, where the picture says nothing that can be read."""
    import PIL.ExifTags

    try:
        found = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    except _ODD:
        return 1
    return found if isinstance(found, int) else 1


@contextmanager
def _opened(stored: Any, where: str) -> Iterator[Image]:
    """The picture, not decoded yet, once it is known that it may be."""
    import PIL.Image

    PIL.Image.init()
    known = [name for name in FORMATS if name in PIL.Image.OPEN]
    most, data = most_pixels(), stored["bytes"]
    if data is None and not os.path.isfile(stored["path"]):
        raise FileNotFoundError(f"{stored['path']}: is no file")  # opening a pipe would wait for ever
    with _ours(), PIL.Image.open(stored["path"] if data is None else BytesIO(data), formats=known) as image:
        width, height = image.size
        if width * height > most:
            raise UserError(
                f"{where}: image of {width}x{height} pixels, at most {most:,} are decoded; remove it, or set {LIMIT} "
                "if it is meant to be that large"
            )
        yield image


@contextmanager
def _ours() -> Iterator[None]:
    """Pillow's own bound is off, ours is asked; what it says of odd metadata is nothing to tell."""
    import PIL.Image

    theirs = PIL.Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = theirs
