"""The one kind of error the lab shows to a user without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave is wrong: one line with the argument, its value and the remedy.

    The command line prints it and exits with code 2; library callers catch it as a ``ValueError``.
    """
