"""Run folders in which a file says something wrong: what reads them says so in one line, or does without."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.tiny import recipe
from tests.stress.mutating import damaged, fuzzing, garbled, mutated, one_line, quickly
from tests.stress.recording import lengths

from torchreaper.lab.analyze import Settings, analyze, find_subjects
from torchreaper.lab.analyze import write as write_analysis
from torchreaper.lab.compare import compare
from torchreaper.lab.errors import UserError
from torchreaper.lab.report import draw
from torchreaper.lab.report.page import write_page
from torchreaper.lab.report.page.rendering import plotly

RECIPE = recipe(name="made", scheme={"name": "repr", "full": 1, "sub": 2, "cycles": 1}, snapshots=2)
SCHEMES = ("standard", "repr")
RUN = Path("made") / "repr" / "seed-0"
LOGS = [RUN / name for name in ("metrics.jsonl", "events.jsonl")]
WHOLE = [RUN / name for name in ("result.json", "environment.json", "recipe.yaml")]
FILES = [*LOGS, *WHOLE, Path("made") / "comparison.json"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison of two schemes with two seeds; not to be written to."""
    out, before = tmp_path_factory.mktemp("compared"), torch.get_num_threads()
    torch.set_num_threads(1)
    compare(RECIPE, SCHEMES, 2, out)
    yield out
    torch.set_num_threads(before)


@st.composite
def wrong(draw: st.DrawFn, data: bytes, lines: bool) -> bytes:
    """The content of a file with something wrong: a value, the text, or the bytes."""
    text = data.decode()
    match draw(st.sampled_from(["value", "value", "value", "text", "bytes", "lines" if lines else "value"])):
        case "text":
            return draw(garbled(text)).encode("utf-8", "surrogatepass")
        case "bytes":
            return draw(damaged(data))
        case "lines":
            rows = draw(st.permutations(text.splitlines()).map(lambda rows: rows[: draw(st.integers(0, len(rows)))]))
            return "".join(f"{row}\n" for row in [*rows, *rows[: draw(st.integers(0, 2))]]).encode()
        case _ if lines:
            return _dumped(draw(mutated([json.loads(line) for line in text.splitlines()])), "\n")
        case _:
            return _dumped([draw(mutated(json.loads(text)))], "")


def _dumped(values: Any, end: str) -> bytes:
    values = values if isinstance(values, list) else [values]
    return "".join(f"{json.dumps(one, default=str)}{end}" for one in values).encode()


def contents(out: Path) -> dict[Path, bytes]:
    """The files that are made wrong; the recipe, which is YAML, as the JSON that it is too."""
    found = {path: (out / path).read_bytes() for path in FILES}
    found[RUN / "recipe.yaml"] = json.dumps(RECIPE.at(Path()).canonical()).encode()
    return found


def tried(times: int, count: Any, original: Path, files: list[Path], read: Callable[[Path], list[Path]]) -> int:
    """Put wrong contents into one of `files` and `read`; what it returns must be whole files. How often it was refused.

    What is wrong must not leave anything behind: no temporary file, and of the folder's other files not a byte changed.
    """
    good = contents(original)
    refused = 0

    @fuzzing(times)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        nonlocal refused
        path = data.draw(st.sampled_from(files))
        (original / path).write_bytes(data.draw(wrong(good[path], path.suffix == ".jsonl")))
        with count.one(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with quickly(20):
                    for made in read(original):
                        assert made.stat().st_size
            except UserError as error:
                refused += 1
                one_line(error)
            finally:
                (original / path).write_bytes(good[path])
            assert not [file for _, _, names in os.walk(original) for file in names if file.endswith(".tmp")]

    holds()
    return refused


def copied(compared: Path, tmp_path: Path) -> Path:
    shutil.copytree(compared, tmp_path / "runs")
    return tmp_path / "runs"


@lengths(30, 1_000)
def test_a_report_of_wrong_files_is_refused_in_one_line_or_made(times, trials, compared, tmp_path, monkeypatch):
    count = trials(
        "bad input",
        "`reaper report` on metrics, events, results, environments, recipes and comparisons with keys missing, values "
        "of wrong types and sizes, lines cut, doubled and in disorder: refused in one line, or a whole page",
        "files",
    )
    monkeypatch.setattr("torchreaper.lab.report.page.rendering.plotly", lambda: plotly()[:100])  # 4 of the page's 5 MB
    out = copied(compared, tmp_path)
    refused = tried(times, count, out, FILES, lambda out: [write_page(out / "made")[0]])
    count.note = f"{refused} refused"
    assert 0 < refused < times


@lengths(4, 60)
def test_a_comparison_over_wrong_files_is_refused_in_one_line_or_made(times, trials, compared, tmp_path):
    count = trials(
        "bad input",
        "`reaper compare` over finished runs whose files are as wrong: refused in one line, or a whole comparison",
        "files",
    )
    out = copied(compared, tmp_path)

    def read(out: Path) -> list[Path]:
        found = compare(RECIPE, SCHEMES, 2, out)
        drawn = draw(out, "made", {summary.scheme: summary.seeds for summary in found.schemes})
        return [out / "made" / "comparison.json", *drawn]

    refused = tried(times, count, out, [*LOGS[:1], *WHOLE], read)
    count.note = f"{refused} refused"
    assert refused or times < 20


@lengths(4, 60)
def test_an_analysis_of_wrong_files_is_refused_in_one_line_or_made(times, trials, compared, tmp_path):
    count = trials(
        "bad input",
        "`reaper analyze` on runs whose files are as wrong: refused in one line, or a whole analysis",
        "files",
    )
    out = copied(compared, tmp_path)
    settings = Settings(images=20, criteria=("magnitude",), over_time=False, device="cpu")

    def read(out: Path) -> list[Path]:
        notes: list[str] = []
        found = analyze(find_subjects([out / RUN]), settings, note=notes.append)
        return list(write_analysis(found, tmp_path / "analysis", settings, notes, []))

    refused = tried(times, count, out, [*LOGS, *WHOLE[1:]], read)
    count.note = f"{refused} refused"
    assert refused
