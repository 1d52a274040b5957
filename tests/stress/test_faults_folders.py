"""Folders that cannot be written, are others', are no folders, have odd names, or vanish: one line, and what to do."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from tests.stress.commands import LONG, recipe_file, served
from tests.stress.disks import left, mounted, remount
from tests.stress.recording import lengths

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")
NOBODY = 65534
RUN = "tiny/repr/seed-0"


@pytest.fixture
def reaper():
    return served()


@pytest.fixture
def place(tmp_path):
    """A folder that another user can reach, and write in."""
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o711)
    tmp_path.chmod(0o777)
    recipe_file(tmp_path).chmod(0o644)
    return tmp_path


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def short(first, *others):
    """The first case always, the others in the long form only."""
    return [first, *(pytest.param(other, marks=LONG) for other in others)]


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@needs_root
@pytest.mark.parametrize("command", short("train", "compare"))
def test_a_folder_of_another_user(command, reaper, place):
    (place / "theirs").mkdir(mode=0o755)
    stopped = reaper(command, place / "tiny.yaml", "--out", place / "theirs" / "out", cwd=place, uid=NOBODY)
    assert "theirs cannot be written; choose another folder" in stopped.refused(2)
    assert os.listdir(place / "theirs") == []


@needs_root
@pytest.mark.parametrize("name", short("result.json", "recipe.yaml", "metrics.jsonl", "last.pt", ""))
def test_a_run_of_another_user(name, reaper, place):
    reaper("train", place / "tiny.yaml", "--out", place / "out", cwd=place).well()
    before = left(place / "out")
    for folder in (place / "out", place / "out/tiny", place / "out/tiny/repr"):
        folder.chmod(0o777)
    if name:  # theirs in our folder, not to be read
        (place / "out" / RUN).chmod(0o777)
        (place / "out" / RUN / name).chmod(0)
    else:  # to be read, not to be written
        (place / "out" / RUN / "result.json").unlink()
    stopped = reaper("train", place / "tiny.yaml", "--out", place / "out", cwd=place, uid=NOBODY)
    if name != "last.pt":  # which a finished run does not need
        line = stopped.refused()
        assert "Permission denied; see to it that this user may read and write there" in line
    (place / "out" / RUN / (name or "recipe.yaml")).chmod(0o644)
    reaper("train", place / "tiny.yaml", "--out", place / "out", cwd=place).well()
    assert left(place / "out") == before


@lengths(1, 8)
def test_a_disk_that_becomes_read_only(times, reaper, place, trials):
    count = trials(
        "faults",
        "a disk that becomes read-only in the middle of `reaper train`: one line that names the file; writable again, "
        "the same command ends with the bits of an undisturbed run",
        "disks",
    )
    recipe = recipe_file(place, epochs=30)
    reaper("train", recipe, "--out", place / "whole", cwd=place).well()
    whole, epochs = left(place / "whole"), set()
    with mounted(place / "disk", "size=8m") as disk:
        for number in range(times):
            with count.one():
                running = reaper.start("train", recipe, "--out", disk / "out", cwd=place)
                log = disk / "out" / RUN / "metrics.jsonl"
                until(lambda log=log, running=running: log.exists() or running.over())
                time.sleep(0.005 * (number % 20))
                # While a file is open for writing the system refuses: try again, as an administrator would.
                until(lambda: remount(disk, "ro"))
                ended = running.end()
                if ended.code:
                    line = ended.refused()
                    assert "Read-only file system" in line
                    assert "see to it that this user may read and write there" in line
                    epochs.add(line.partition("epoch ")[2].partition(":")[0])
                assert remount(disk, "rw")
                reaper("train", recipe, "--out", disk / "out", cwd=place).well()
                assert left(disk / "out") == whole
            shutil.rmtree(disk / "out")
    count.note = f"it came in {len(epochs - {''})} different epochs of 30"


@lengths(1, 8)
def test_a_folder_that_is_deleted_while_a_run_goes_on(times, reaper, place, trials):
    count = trials(
        "faults",
        "`rm -rf` of the folder in the middle of `reaper train`, or of its lock alone, while another process begins "
        "the run anew there: the first says so in one line and writes nothing more; the second ends undisturbed",
        "deletions",
    )
    recipe = recipe_file(place, epochs=30)
    reaper("train", recipe, "--out", place / "whole", cwd=place).well()
    whole, stopped = left(place / "whole"), 0
    for number in range(times):
        out = place / str(number)
        with count.one():
            first = reaper.start("train", recipe, "--out", out, cwd=place)
            until(lambda out=out, first=first: (out / RUN / "metrics.jsonl").exists() or first.over())
            time.sleep(0.004 * (number % 20))
            gone = place / f"gone-{number}"
            os.rename(out, gone)  # as a deletion, but at one moment
            second = reaper.start("train", recipe, "--out", out, cwd=place)
            ended = first.end()
            if ended.code:
                line = ended.refused(1)
                assert "was deleted" in line or "No such file" in line, line
                assert "give the same command again" in line
                stopped += 1
            second.end().well()
            assert left(out) == whole
        shutil.rmtree(out)
        shutil.rmtree(gone)
    count.note = f"{stopped} times the first had not ended yet"


ODD = {
    "spaces": b" a  b ",
    "newline": b"a\nb",
    "longest": b"x" * 255,
    "unicode": "zw\u00f6lf \u5341\u4e8c \U0001f600".encode(),
    "direction": "\u202eabc".encode(),
    "no UTF-8": b"\xff\xfe\x80",
    "markup": b"%s{0}[red]<b>",
    "escape": b"\x1b[31m",
    "star": b"*?[a]",
    "home": b"~",
    "deep": b"/".join([b"y" * 200] * 17),
}


@pytest.mark.parametrize(
    "names", [pytest.param(["no UTF-8"], id="short"), pytest.param(list(ODD), id="long", marks=LONG)]
)
def test_odd_names(names, reaper, place, trials):
    count = trials(
        "faults",
        "an out folder with an odd name: train, compare, report, analyze and new work in it as elsewhere",
        "commands",
        note=", ".join(names),
    )
    recipe = place / "tiny.yaml"
    for name in names:
        out = Path(os.fsdecode(ODD[name]))
        for arguments in (
            ("train", recipe, "--out", out),
            ("compare", recipe, "--quiet", "--out", out),
            ("report", out / "tiny"),
            ("analyze", out / "tiny" / "repr" / "seed-0", "--images", 40, "--last-only", "--criteria", "magnitude"),
            ("new", out / "mine.yaml"),
        ):
            if len(names) == 1 and arguments[0] in ("compare", "analyze"):
                continue
            with count.one():
                reaper(*arguments, cwd=place).well()
        assert (place / out / RUN / "result.json").exists()
        assert (place / out / "tiny" / "report.html").stat().st_size > 1_000_000
        assert (place / out / "mine.yaml").exists()


NO_FOLDERS = {
    "a file": ("file", "is a file; choose a folder"),
    "below a file": ("file/out", "is a file; choose a folder"),
    "a link to nothing": ("nothing", "is a link that leads nowhere; choose another folder"),
    "below a link to nothing": ("nothing/out", "is a link that leads nowhere; choose another folder"),
    "a link to itself": ("itself", "is a link that leads nowhere; choose another folder"),
    "a device": ("/dev/null/out", "is a file; choose a folder"),
    "too long a name": ("x" * 256, "File name too long; use shorter names"),
    "too long a path": ("/".join(["y" * 200] * 25), "File name too long; use shorter names"),
}


@pytest.mark.parametrize("case", short(*NO_FOLDERS))
def test_what_can_be_no_folder(case, reaper, place):
    (place / "file").touch()
    (place / "nothing").symlink_to(place / "missing")
    (place / "itself").symlink_to(place / "itself")
    name, what = NO_FOLDERS[case]
    for command in ("train", "compare"):
        line = reaper(command, place / "tiny.yaml", "--out", place / name, cwd=place).refused()
        assert what in line
    assert sorted(os.listdir(place)) == ["file", "itself", "nothing", "tiny.yaml"]


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_a_folder_where_a_file_should_be(reaper, place):
    reaper("train", place / "tiny.yaml", "--out", place / "out", cwd=place).well()
    run = place / "out" / RUN
    for name in ("metrics.jsonl", "recipe.yaml", "result.json", "environment.json"):
        (run / name).rename(run / "kept")
        (run / name).mkdir()
        line = reaper("train", place / "tiny.yaml", "--out", place / "out", cwd=place).refused()
        assert f"{name}: is no file; delete it" in line or f"{name}: Is a directory" in line
        (run / name).rmdir()
        (run / "kept").rename(run / name)
    assert reaper("train", place / "tiny.yaml", "--out", place / "out", cwd=place).well().err == ""
