"""Fuzzing by coverage, where atheris is installed (`pip install atheris`; it is not everywhere)."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from PIL import Image
from tests.stress.recording import ROOT, lengths

atheris = pytest.importorskip("atheris", reason="atheris is not installed")

WHAT = {
    "recipe": "recipe files", "setting": "`--set`", "logs": "lines of metrics, events and results",
    "picture": "the bytes of pictures",
}  # fmt: skip


def seed_corpus(target: str, folder: Path) -> None:
    """Inputs to begin with: what is right."""
    if target == "recipe":
        for path in sorted((ROOT / "recipes").rglob("*.yaml")):
            (folder / path.name).write_bytes(path.read_bytes())
    elif target == "setting":
        for number, text in enumerate(("optim.lr=0.1", "scheme={name: repr, full: 3}", "augment=[flip]", "epochs=1e3")):
            (folder / str(number)).write_text(text)
    elif target == "logs":
        path = ROOT / "benchmarks" / "results" / "c3-32-cifar10-quick"
        for number, log in enumerate(sorted(path.rglob("*.jsonl"))[:4]):
            (folder / str(number)).write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    else:
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
            data = io.BytesIO()
            Image.new("RGB", (5, 4), (1, 2, 3)).save(data, kind)
            (folder / kind).write_bytes(data.getvalue())


@pytest.mark.parametrize("target", WHAT)
@lengths(200, 20_000)
def test_what_coverage_leads_to_is_refused_in_one_line(target, times, trials, tmp_path):
    count = trials(
        "bad input",
        f"{WHAT[target]}, changed by which code they reach (atheris): read, or refused in one line; none takes 20 s or "
        "more than 2 GB",
        "inputs",
    )
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seed_corpus(target, corpus)
    command = [
        *(sys.executable, "-m", "tests.stress.fuzz_atheris", target),
        *(f"-runs={times}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=3000", "-seed=1"),
        *(f"-artifact_prefix={tmp_path}/", str(corpus)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=3600)
    said = done.stderr.decode(errors="replace")
    held = done.returncode == 0
    ran = int(re.findall(r"^Done (\d+) runs|^#(\d+)", said, re.MULTILINE)[-1][0] or 1)
    count.tried, count.held = max(ran, 1), max(ran, 1) if held else max(ran, 1) - 1
    reached = re.findall(r"cov: (\d+)", said)
    count.note = f"{reached[0]} places in the code reached at first, {reached[-1]} at last" if reached else ""
    assert held, said[-3000:]
