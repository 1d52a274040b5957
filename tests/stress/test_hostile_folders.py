"""Run folders of others, with links and pipes where files belong."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import yaml
from tests.lab.conftest import folder
from tests.lab.tiny import TINY, recipe
from tests.stress.recording import lengths
from typer.testing import CliRunner

from torchreaper.lab import cli, files, locking, runs
from torchreaper.lab.comparison import summarise, write
from torchreaper.lab.errors import UserError
from torchreaper.lab.report.page import write_page
from torchreaper.lab.run import train

SECRET = b'{"password": "hunter2"}\n'
# All that commands write into a run's folder and beside it, and what they write it under first.
NAMES = [
    *(".lock", "metrics.jsonl", "events.jsonl", "result.json", "recipe.yaml", "environment.json", "error.txt"),
    *("last.pt", "last.pt.sha256", "previous.pt", "previous.pt.sha256"),
    *(f"{name}.tmp" for name in ("last.pt", "last.pt.sha256", "previous.pt.sha256", "result.json", "recipe.yaml")),
    *("metrics.jsonl.tmp", "events.jsonl.tmp", "environment.json.tmp", "error.txt.tmp", "last.pt.damaged"),
    *("snapshots/epoch-0002.pt", "snapshots/epoch-0002.pt.tmp", "snapshots/epoch-0004.pt"),
    *(
        f"../../{name}"
        for name in ("comparison.json", "comparison.json.tmp", "comparison.md.tmp", "comparison.csv.tmp")
    ),
    *(f"../../{name}" for name in ("accuracy.png", "accuracy.png.tmp", "report.html", "report.html.tmp")),
    *(f"../../analysis/{name}" for name in ("analysis.md.tmp", "analysis.json", "oracle.png.tmp", "x.png")),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a recipe and a run that was stopped after two of five epochs."""
    out = tmp_path_factory.mktemp("begun")
    (out / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "snapshots": 2, "seeds": 1}))

    class Stopped(Exception):  # noqa: N818  (nothing went wrong)
        pass

    class Stopping:
        def __getattr__(self, name):
            return lambda *args, **how: None

        def beside(self, name):
            return self

        def epoch(self, line):
            if line["epoch"] == 2:
                raise Stopped

    with pytest.raises(Stopped):
        train(recipe(snapshots=2), scheme="repr", seed=0, out=out / "runs", progress=Stopping())
    return out


@lengths(6, 80)
def test_nothing_is_written_through_a_link(times, trials, begun, tmp_path, monkeypatch):
    count = trials(
        "hostile files",
        "run folders with links to a user's own file in the place of files and their .tmp, then reaper train, compare, "
        "report, analyze: that file is as it was",
        "commands",
    )
    draw, through = random.Random(times), 0
    for number in range(times):
        here, secret = tmp_path / str(number), tmp_path / f"secret-{number}"
        shutil.copytree(begun, here, symlinks=True)
        secret.write_bytes(SECRET)
        run = here / "runs" / "tiny" / "repr" / "seed-0"
        names = draw.sample(NAMES, draw.randint(1, 3))
        for name in names:
            place = Path(os.path.normpath(run / name))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            hard = draw.random() < 0.3 and not place.name.endswith(("jsonl", "lock"))
            os.link(secret, place) if hard else place.symlink_to(draw.choice((secret, tmp_path / f"new-{number}")))
        monkeypatch.chdir(here)
        command = draw.choice(
            [
                ["train", "tiny.yaml", "--quiet"],
                ["compare", "tiny.yaml", "--schemes", "repr", "--quiet"],
                ["report", "runs/tiny"],
                ["analyze", "runs/tiny", "--images", "20", "--criteria", "magnitude", "--last-only", "--quiet"],
            ]
        )
        with count.one():
            ended = CliRunner().invoke(cli.app, command)
            assert type(ended.exception) in (type(None), SystemExit), (command, names, ended.exception)
            assert secret.read_bytes() == SECRET, (command, names)
            assert not (tmp_path / f"new-{number}").exists(), (command, names)
            assert ended.stderr.count("\n") <= 3, (command, names, ended.stderr)
            through += ended.exit_code == 0
        shutil.rmtree(here)
    count.note = f"{through} commands went through, the others were refused in a line"


def test_a_page_holds_no_file_from_elsewhere(tmp_path):
    """It is made to be sent."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    for place, inside in {
        "environment.json": SECRET,
        "../../analysis/analysis.md": SECRET,
        "../../analysis/cca.png": SECRET,
        "../../comparison.md": SECRET,
        "../../comparison.json": SECRET,
    }.items():
        out = tmp_path / place.replace("/", "-")
        run = folder(out, "standard", 0)
        results = {"standard": {0: json.loads((run / "result.json").read_text())}}
        write(summarise(results, recipe="made-up"), results, out / "made-up")
        target = Path(os.path.normpath(run / place))
        target.parent.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(secret)
        with pytest.raises(UserError, match=rf"is a link to {secret}; put the file itself there, or delete the link$"):
            write_page(out / "made-up")
        target.unlink()
        (target.parent / "cca.png").write_bytes(inside)
        assert "hunter2" not in write_page(out / "made-up")[0].read_text()


def test_folders_may_be_links(tmp_path):
    """Runs on another disk are a user's own choice."""
    train(recipe(epochs=3, scheme__sub=1), scheme="repr", seed=0, out=tmp_path / "disk")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    again = train(recipe(epochs=3, scheme__sub=1), scheme="repr", seed=0, out=tmp_path / "runs")
    assert again == runs.read_result(tmp_path / "disk" / "tiny" / "repr" / "seed-0")
    assert write_page(tmp_path / "runs" / "tiny")[0].is_file()


@pytest.mark.parametrize("reading", [files.read_json, files.read_yaml, files.read_lines, files.good_lines])
def test_a_pipe_is_not_waited_for(tmp_path, reading):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: is no file; delete it$"):
        reading(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"device: is no file; delete it$"):
        reading(tmp_path / "device")


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / runs.LAST)
    assert runs.load_checkpoint(tmp_path, pytest.fail) is None


def test_a_lock_empties_no_file_of_anothers(tmp_path):
    (tmp_path / "mine").write_bytes(SECRET)
    (tmp_path / locking.LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"^out=.*; choose another place$"):
        with locking.locked(tmp_path):
            pytest.fail("was taken")
    assert (tmp_path / "mine").read_bytes() == SECRET


def test_whole_files_replace_links_and_logs_refuse_them(tmp_path):
    (tmp_path / "mine").write_bytes(SECRET)
    for name in ("whole", "whole.tmp", "log"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    files.write_whole(tmp_path / "whole", b"new")
    assert (tmp_path / "whole").read_bytes() == b"new"
    with pytest.raises(OSError, match="symbolic links"):
        files.append_line(tmp_path / "log", {"epoch": 1})
    files.rewrite_lines(tmp_path / "log", [{"epoch": 1}])
    assert not (tmp_path / "log").is_symlink()
    assert (tmp_path / "mine").read_bytes() == SECRET
