"""Data sets from huggingface.co by name; downloaded once, then kept in that library's own cache."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

from torchreaper.lab.data.parquet import first_line, quiet
from torchreaper.lab.errors import UserError


def read_hub(name: str, split: str, key: str) -> Any:
    """The ``datasets.Dataset`` of one split. Downloading shows that library's progress bar on a terminal.

    Raises ``UserError`` where the data set or its split is not there, or cannot be reached.
    """
    from datasets import load_dataset  # a slow import, needed here only

    with nullcontext() if sys.stderr.isatty() else quiet():
        try:
            return load_dataset(name, split=split)
        except ConnectionError as error:
            raise UserError(
                f"data.hub={name!r}: cannot be reached ({first_line(error)}); "
                "check the network and the name, or use local files: data.name=parquet"
            ) from None
        except Exception as error:  # datasets and huggingface_hub have many kinds
            raise UserError(f"data.hub={name!r}: {key}={split!r} cannot be loaded ({first_line(error)})") from None
