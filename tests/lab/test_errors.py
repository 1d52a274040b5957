"""Errors of the system in a user's words."""

import errno
from pathlib import Path

import pytest

from torchreaper.lab.errors import remedy, trouble


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EROFS, "see to it that this user may read and write there"),
        (errno.EFBIG, "allow larger files (ulimit -f)"),
        (errno.EEXIST, "put that right"),
        (None, "put that right"),
    ],
)
def test_what_to_do(number, words):
    error = OSError("odd") if number is None else OSError(number, "text")
    assert remedy(error) == words
    assert remedy(error, "choose another") == ("choose another" if words == "put that right" else words)


@pytest.mark.parametrize(
    ("error", "folder", "text"),
    [
        (OSError(28, "No space left on device", "/a/b/c"), None, "/a/b/c: No space left on device"),
        (OSError(28, "No space left on device", "/a/b/c"), Path("/a"), "b/c: No space left on device"),
        (OSError(28, "No space left on device", b"/a/b"), Path("/x"), "/a/b: No space left on device"),
        (OSError(28, "No space left on device", 3), Path("/x"), "No space left on device"),
        (OSError(28, "No space left on device"), None, "No space left on device"),
        (OSError("odd"), None, "odd"),
    ],
)
def test_which_file(error, folder, text):
    assert trouble(error, folder) == text
