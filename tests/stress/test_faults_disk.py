"""Disks that fill up: at every size, by every command; and what the same command makes of it once there is room."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys

import pytest
from tests.stress.commands import ROOT, cases, recipe_file, served
from tests.stress.disks import fill, left, litter, mounted, remount, unsynced
from tests.stress.recording import lengths

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs tmpfs and fork")
KD = {"schemes": {"kd": {"teacher": {"model": {"name": "cnet", "options": {"depth": 1, "width": 4}}, "epochs": 2}}}}


@pytest.fixture
def reaper():
    return served()


@pytest.fixture
def recipe(tmp_path):
    return recipe_file(tmp_path, **KD)


def spread(times, most):
    """So many numbers from 0 to `most`, the ends among them."""
    return sorted({round(most * number / max(1, times - 1)) for number in range(times)})


@cases("scheme", "kd", "repr", short=3, long=35)
def test_a_run_on_a_full_disk_goes_on_where_it_stopped(scheme, times, reaper, recipe, tmp_path, trials):
    count = trials(
        "faults",
        f"`reaper train` ({scheme}) on a disk with room for 0 to 400 kB only: one line that names the file and the "
        "remedy, nothing half-written; with room again the same command ends with the bits of an undisturbed run",
        "full disks",
    )
    train = ("train", recipe, "--scheme", scheme, "--out")
    reaper(*train, tmp_path / "whole", cwd=tmp_path).well()
    whole, files = left(tmp_path / "whole"), set()
    with mounted(tmp_path / "disk", "size=2m") as disk:
        for pages in spread(times, 100):
            fill(disk, pages)
            with count.one():
                stopped = reaper(*train, disk / "out", cwd=tmp_path)
                if stopped.code:
                    line = stopped.refused()
                    assert "No space left on device" in line
                    assert "make room" in line
                    files.add(line.partition("(")[2].partition(":")[0])
                assert litter(disk) == []
                shown = reaper("report", disk / "out" / "tiny", "--out", tmp_path / "page.html", cwd=tmp_path)
                assert shown.code == 0 or shown.refused()
                (disk / "ballast").unlink()
                reaper(*train, disk / "out", cwd=tmp_path).well()
                assert left(disk / "out") == whole
                assert litter(disk) == []
            shutil.rmtree(disk / "out")
    count.note = f"full while these were written: {', '.join(sorted(files - {''}))}"


@lengths(None, 12)
def test_a_disk_that_takes_no_more_files(times, reaper, recipe, tmp_path, trials):
    count = trials(
        "faults",
        "`reaper compare` on a disk that takes so many files and no more: likewise, at each file in turn",
        "full disks",
    )
    compare = ("compare", recipe, "--quiet", "--out")
    reaper(*compare, tmp_path / "whole", cwd=tmp_path).well()
    whole = left(tmp_path / "whole")
    with mounted(tmp_path / "disk", "size=8m") as disk:
        for number in [19] if times == 1 else range(4, 4 + 3 * times, 3):
            assert remount(disk, f"nr_inodes={number}")
            with count.one():
                reaper(*compare, disk / "out", cwd=tmp_path).refused()
                assert litter(disk) == []
                assert remount(disk, "nr_inodes=1000")
                reaper(*compare, disk / "out", cwd=tmp_path).well()
                assert left(disk / "out") == whole
            shutil.rmtree(disk / "out")


@lengths(1, 8)
def test_a_disk_that_is_full_when_written_data_are_synced(times, reaper, recipe, tmp_path, trials):
    count = trials(
        "faults",
        "a disk that takes every write and fails at fsync (an image without the blocks that it promises): one line; "
        "with room again the same command ends with the bits of an undisturbed run",
        "full disks",
    )
    reaper("train", recipe, "--out", tmp_path / "whole", cwd=tmp_path).well()
    whole = left(tmp_path / "whole")
    for number in range(times):
        with count.one(), unsynced(tmp_path, room=(8 + 24 * number) << 10) as (disk, below):
            stopped = reaper("train", recipe, "--out", disk / "out", cwd=tmp_path)
            said = stopped.refused()  # some kernels tell of it as an error of the device
            assert "make room there" in said or "Input/output error); check that disk" in said
            assert remount(below, "size=64m")
            reaper("train", recipe, "--out", disk / "out", cwd=tmp_path).well()
            assert left(disk / "out") == whole


@lengths(1, 25)
def test_files_that_may_not_be_so_long(times, reaper, recipe, tmp_path, trials):
    count = trials(
        "faults",
        "`reaper train` with a limit on the length of files (ulimit -f) that ends inside one: one line; without the "
        "limit the same command ends with the bits of an undisturbed run",
        "limits",
    )
    reaper("train", recipe, "--out", tmp_path / "whole", cwd=tmp_path).well()
    whole = left(tmp_path / "whole")
    for number, most in enumerate([600 + more for more in spread(times, 64_000)]):
        out = tmp_path / str(number)
        with count.one():
            stopped = reaper("train", recipe, "--out", out, cwd=tmp_path, limits={"RLIMIT_FSIZE": most})
            assert "ulimit -f" in stopped.refused()
            assert litter(out) == []
            reaper("train", recipe, "--out", out, cwd=tmp_path).well()
            assert left(out) == whole
        shutil.rmtree(out)


@cases("command", "report", "compare", "analyze", short=1, long=6)
def test_what_is_made_of_finished_runs(command, times, reaper, recipe, tmp_path, trials):
    room = {"compare": 54, "report": 1190, "analyze": 100}[command]
    count = trials(
        "faults",
        f"`reaper {command}` of finished runs on a disk with too little room for what it writes: one line, no file "
        "half-written; with room again the same files as on an empty disk",
        "full disks",
    )
    source = tmp_path / "whole" / "tiny"
    reaper("compare", recipe, "--quiet", "--out", tmp_path / "whole", cwd=tmp_path).well()
    for path in [*source.glob("*.png"), *source.glob("comparison*")]:
        path.unlink()
    with mounted(tmp_path / "disk", "size=10m") as disk:
        out = disk / "out" / "tiny"
        made = {
            "compare": ("compare", recipe, "--quiet", "--out", disk / "out"),
            "report": ("report", out),
            "analyze": ("analyze", out, "--images", 50, "--quiet", "--last-only", "--criteria", "magnitude"),
        }[command]

        def files():
            found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
            return {name: (out / name).stat().st_size for name in found if "seed-" not in name}

        for pages in spread(times, room - 10) if times > 1 else [room // 2]:
            shutil.copytree(source, out)
            fill(disk, pages)
            with count.one():
                line = reaper(*made, cwd=tmp_path).refused(1)
                assert "No space left on device; make room there and give the same command again" in line
                assert litter(disk) == []
                some = files()
                (disk / "ballast").unlink()
                reaper(*made, cwd=tmp_path).well()
                every = files()
                assert some.items() <= {**every, "analysis.json": None}.items() or command == "analyze"
                assert len(every) >= {"compare": 7, "report": 1, "analyze": 10}[command]
            shutil.rmtree(disk / "out")


def test_new_files_are_whole_or_not_there(reaper, tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        for name, arguments in {"mine.yaml": ("new", "mine.yaml"), "demo.yaml": ("recipes", "--copy", "demo")}.items():
            fill(disk, 0)
            assert "make room there" in reaper(*arguments, cwd=disk).refused(2)
            assert os.listdir(disk) == ["ballast"]
            (disk / "ballast").unlink()
            reaper(*arguments, cwd=disk).well()
            assert (disk / name).read_text()
            (disk / name).unlink()


def test_an_output_that_is_full_fails_no_run(reaper, recipe, tmp_path):
    line = "error: stdout: No space left on device; make room there and give the same command again"
    for command in ("train", "train", "compare", "report"):
        target = (recipe, "--out", tmp_path / "out") if command != "report" else (tmp_path / "out" / "tiny",)
        assert reaper(command, *target, cwd=tmp_path, out="/dev/full").refused(2) == line
        assert (tmp_path / "out" / "tiny" / "repr" / "seed-0" / "result.json").exists()
    assert not list(tmp_path.rglob("error.txt"))


@lengths(None, 4)
def test_a_cache_of_streamed_images_that_fills_up(times, reaper, tmp_path, trials):
    count = trials(
        "faults",
        "images read when they are needed, with too little room for the cache of the `datasets` library: one line; "
        "with room again the same command trains",
        "full disks",
    )
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    image = pytest.importorskip("PIL.Image")
    rows = []
    for number in range(120):
        data = io.BytesIO()
        image.frombytes("L", (16, 16), os.urandom(256)).save(data, "PNG")
        rows.append({"image": {"bytes": data.getvalue(), "path": None}, "label": number % 4})
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "images.parquet")
    data = {"name": "parquet", "train": "images.parquet", "test": "images.parquet", "memory": False}
    recipe = recipe_file(tmp_path, data=data, snapshots=None)
    for number in range(times):
        with count.one(), mounted(tmp_path / "disk", "size=4m") as disk:
            fill(disk, number)
            env = {"HF_HOME": str(disk), "HF_DATASETS_CACHE": str(disk / "cache"), "HF_HUB_OFFLINE": "1"}
            stopped = reaper("train", recipe, "--out", tmp_path / "out", cwd=tmp_path, env=env)
            line = stopped.refused()
            assert "No space left on device" in line
            assert "make room" in line
            (disk / "ballast").unlink()
            reaper("train", recipe, "--out", tmp_path / "out", cwd=tmp_path, env=env).well()
        shutil.rmtree(tmp_path / "out")


def test_the_harness_sees_what_a_run_leaves(reaper, recipe, tmp_path):
    reaper("train", recipe, "--out", tmp_path / "whole", cwd=tmp_path).well()
    whole = left(tmp_path / "whole")
    assert whole["tiny/repr/seed-0"]["snapshots"] == ["epoch-0002.pt", "epoch-0004.pt"]
    result = tmp_path / "whole" / "tiny" / "repr" / "seed-0" / "result.json"
    values = json.loads(result.read_text())
    result.write_text(json.dumps({**values, "seconds": 9}))
    assert left(tmp_path / "whole") == whole
    result.write_text(json.dumps({**values, "fingerprint": "0"}))
    assert left(tmp_path / "whole") != whole
    assert (ROOT / "pyproject.toml").exists()
