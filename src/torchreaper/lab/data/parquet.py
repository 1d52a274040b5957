"""Local parquet files, in the schema of Hugging Face image-classification data sets."""

from __future__ import annotations

import errno
import glob
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torchreaper.lab.data.memory import available_memory
from torchreaper.lab.errors import UserError

_BATCH = 100  # rows that are copied at once
_PIECE = 16  # rows that are counted at once
_LARGE, _RATIO = 2**26, 100  # bytes of a column, and how many from one: coded pictures hardly shrink


def find_files(pattern: str, base: Path, key: str) -> list[Path]:
    """The files that ``pattern`` (a path or a glob) names, sorted: below ``base``, else the current folder.

    Raises ``UserError``, which names ``key``, where there is none.
    """
    name = os.path.expanduser(pattern)
    tried = list(dict.fromkeys((base.absolute(), Path.cwd())))
    for folder in tried:
        # A file may well have a bracket in its name: the plain path goes before the glob.
        names = [name] if (folder / name).exists() else glob.glob(name, root_dir=folder, recursive=True)
        files = [folder / found for found in sorted(names)]
        if folders := [file for file in files if file.is_dir()]:
            raise UserError(f"{key}={pattern!r}: {folders[0]} is a folder; name its files, as in *.parquet")
        if files:
            return files
    places = "" if os.path.isabs(name) else f" in {' or '.join(map(str, tried))}"
    raise UserError(f"{key}={pattern!r}: no such file{places}; give a path or a glob such as *.parquet")


def read_parquet(files: list[Path], key: str, *, memory: bool = True) -> Any:
    """Read ``files`` into one ``datasets.Dataset``; no network.

    With ``memory`` the files are held in memory, as they are, and nothing is left on the disk. Without it the
    ``datasets`` library keeps a copy in its cache, made once, from which rows are read when they are needed.

    Raises ``UserError``, which names ``key`` and the file, where one cannot be read.
    """
    from datasets import load_dataset  # slow imports, needed here only
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    filled, held = [], 0
    for file in files:
        try:
            rows = parquet.read_metadata(file).num_rows
            held = _check_unpacked(file, held, memory=memory)
        except (ArrowException, OSError) as error:
            text = f"cannot be read as parquet ({first_line(error)}); is it whole?"
            raise UserError(f"{key}={str(file)!r}: {text}") from None
        except _TooMuch as error:
            raise UserError(f"{key}={str(file)!r}: {error}") from None
        if rows:  # datasets cannot read a file without rows
            filled.append(file)
    if not filled:
        raise UserError(f"{key}={str(files[0])!r}: has no rows")
    with quiet(), _for_now() if memory else nullcontext() as cache:
        try:
            return load_dataset(
                "parquet",
                data_files={"train": [glob.escape(str(file)) for file in filled]},
                split="train",
                cache_dir=cache,
                keep_in_memory=memory,
                batch_size=_BATCH,
            )
        except Exception as error:  # datasets has many kinds, and wraps pyarrow's
            if _is_of_room(error):
                import datasets

                where = cache or datasets.config.HF_DATASETS_CACHE
                raise UserError(
                    f"{key}: no room for the copy of the images in {where} (No space left on device); make room there, "
                    "or let HF_DATASETS_CACHE (TMPDIR with data.memory) name a folder on another disk"
                ) from None
            cause = first_line(error.__cause__ or error)
            names = ", ".join(map(str, filled))
            raise UserError(f"{key}: cannot read {names} ({cause}); are the files whole and of one schema?") from None


class _TooMuch(Exception):  # noqa: N818  (it is)
    """A file unpacks to more than pictures do."""


def _check_unpacked(file: Path, held: int, *, memory: bool) -> int:
    """Raise `_TooMuch` for a file of a few bytes that unpacks to many, before it does.

    What its index says is believed first; then, where all is to be held, it is unpacked piece by piece and counted.

    Args:
        file: One of a data set's files.
        held: The bytes that those before it unpack to.
        memory: Whether all of them are to be held.

    Returns:
        `held`, with this file's.
    """
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    for number in range(opened.metadata.num_row_groups):
        group = opened.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
            if unpacked > _LARGE and unpacked > _RATIO * packed:
                raise _TooMuch(
                    f"column {column.path_in_schema} unpacks from {packed:,} to {unpacked:,} bytes, which pictures do "
                    "not; write it anew, uncompressed"
                )
    free = available_memory()
    for batch in opened.iter_batches(batch_size=_PIECE) if memory and free is not None else ():
        held += batch.nbytes
        if free is not None and held > free:
            raise _TooMuch(f"unpacks to more than the {free / 1e9:,.1f} GB that are free; set data.memory: false")
    return held


def _is_of_room(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and (
            error.errno == errno.ENOSPC or "not enough disk space" in str(error).lower()
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _for_now() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="torchreaper-", ignore_cleanup_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of ``datasets``, which would run through ours, and its log beside our errors."""
    import datasets

    bars, level = not datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
