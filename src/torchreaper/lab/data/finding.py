"""Files and folders that a recipe names."""

from __future__ import annotations

import os
from pathlib import Path

from torchreaper.lab.errors import UserError


def find_file(name: str, base: Path, key: str) -> Path:
    """The file ``name``, below ``base`` or else the current folder; ``UserError``, which names ``key``, without one."""
    path = _find(name, base, key, "file")
    if not path.is_file():
        raise UserError(f"{key}={name!r}: {path} is no file; name one")
    return path


def find_folder(name: str, base: Path, key: str, what: str) -> Path:
    """The folder ``name``, below ``base`` or else the current one; ``what`` it is to be, for error texts.

    Raises ``UserError``, which names ``key``, where there is none.
    """
    path = _find(name, base, key, "folder")
    if not path.is_dir():
        raise UserError(f"{key}={name!r}: {path} is a file; name {what}")
    return path


def is_text(name: str) -> bool:
    """Whether a name has no halves of characters, as which bytes that are no UTF-8 are read: of old archives, say."""
    return not any("\ud800" <= one <= "\udfff" for one in name)


def _find(name: str, base: Path, key: str, kind: str) -> Path:
    where = os.path.expanduser(name)
    tried = list(dict.fromkeys((base.absolute(), Path.cwd())))
    path = next((place / where for place in tried if (place / where).exists()), None)
    if path is None:
        places = "" if os.path.isabs(where) else f" in {' or '.join(map(str, tried))}"
        raise UserError(f"{key}={name!r}: no such {kind}{places}")
    return path
