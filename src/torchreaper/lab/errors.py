"""The one kind of error the lab shows to a user without a traceback, and what those of the system mean to one."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class UserError(ValueError):
    """Something the user gave is wrong: one line with the argument, its value and the remedy.

    The command line prints it and exits with code 2; library callers catch it as a ``ValueError``.
    """


_RIGHTS = "see to it that this user may read and write there"
_REMEDIES = {
    errno.ENOSPC: "make room there",
    getattr(errno, "EDQUOT", -1): "make room there",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.EIO: "check that disk",
    errno.ENAMETOOLONG: "use shorter names",
    errno.ELOOP: "choose another place",
}


#: What to do where memory ran out.
LESS_MEMORY = "a smaller batch, eval_batch or network needs less, and so do fewer jobs at once"


def remedy(error: OSError, otherwise: str = "put that right") -> str:
    """What a user can do about an error of the system, in a few words."""
    return _REMEDIES.get(error.errno or 0, otherwise)


def trouble(error: OSError, folder: Path | None = None) -> str:
    """The file an error of the system is about, seen from `folder`, and what is wrong with it."""
    what, name = error.strerror or str(error), error.filename
    if not isinstance(name, (str, bytes, os.PathLike)):
        return what
    path = Path(os.fsdecode(name))
    if folder is not None and folder in path.parents:
        path = path.relative_to(folder)
    return f"{path}: {what}"
