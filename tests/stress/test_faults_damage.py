"""Files of a run that were cut short, changed, swapped or lost: never believed, and mended where they can be."""

from __future__ import annotations

import random
import shutil
import sys

import pytest
from tests.stress.commands import recipe_file, served
from tests.stress.disks import left, litter
from tests.stress.recording import lengths

from torchreaper.lab import snapshots
from torchreaper.lab.errors import UserError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")
RUN = "tiny/repr/seed-0"
MARKS = ("result.json", "result.json.sha256", "metrics.jsonl.sha256", "events.jsonl.sha256")
WAYS = ("cut", "cut", "flip", "flip", "byte", "empty", "longer", "gone", "zeros", "no text")


@pytest.fixture
def reaper():
    return served()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a recipe, and of a finished run and another one of another seed."""
    folder = tmp_path_factory.mktemp("made")
    recipe = recipe_file(folder)
    for seed in (0, 1):
        served()("train", recipe, "--seed", seed, "--out", folder / "whole", cwd=folder).well()
    return folder


@pytest.fixture
def whole(made, tmp_path):
    """A copy of these runs."""
    shutil.copy(made / "tiny.yaml", tmp_path)
    return shutil.copytree(made / "whole", tmp_path / "whole")


def unfinished(run):
    """As a run is that was killed right before its result."""
    for name in MARKS:
        (run / name).unlink()


def damage(path, way, draw):
    """Change a file; what was done, in words."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    match way:
        case "cut":
            path.write_bytes(data[:at])
        case "flip":
            data[at] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
        case "byte":
            data[at] = (data[at] + draw.randrange(1, 256)) % 256
            path.write_bytes(data)
        case "empty":
            path.write_bytes(b"")
        case "longer":
            path.write_bytes(data + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9))))
        case "gone":
            path.unlink()
        case "zeros":  # as some file systems leave it after a power cut
            path.write_bytes(bytes(len(data)))
        case "no text":
            path.write_bytes(b"\xff\xfe" + data)
    return f"{path.name} {way} at {at}"


@lengths(3, 200)
def test_checkpoints_that_are_damaged(times, reaper, whole, tmp_path, trials):
    count = trials(
        "faults",
        "`last.pt`, its checksum, `previous.pt` or several of them cut at any byte, with flipped bits, empty, longer, "
        "gone, or another run's: the one before is used, or the run begins anew; both is said, and it ends with the "
        "bits of an undisturbed run",
        "damaged checkpoints",
    )
    draw, recipe, out = random.Random(0), tmp_path / "tiny.yaml", tmp_path / "out"
    want, seen = left(whole), {"before": 0, "anew": 0}
    for _ in range(times):
        shutil.copytree(whole, out)
        unfinished(out / RUN)
        names = draw.choice([["last.pt"]] * 4 + [["last.pt.sha256"], ["last.pt", "previous.pt"], ["previous.pt"]])
        with count.one():
            done = []
            for name in names:
                if draw.random() < 0.1:
                    shutil.copy(out / "tiny/repr/seed-1" / name, out / RUN / name)
                    done.append(f"{name} swapped")
                else:
                    done.append(damage(out / RUN / name, draw.choice(WAYS), draw))
            ended = reaper("train", recipe, "--out", out, cwd=tmp_path).well()
            assert left(out) == want, done
            assert litter(out) == []
            used, anew = "using the one before" in ended.err, "starting at epoch 1" in ended.err
            seen["before"] += used
            seen["anew"] += anew
            kept = [path.name for path in (out / RUN).glob("*.damaged")]
            if "gone" in done[0]:
                assert used or anew or ended.err == "" or names == ["last.pt.sha256"], (done, ended)
            elif names[0].startswith("last.pt") and not _still_agrees(done, ended):
                assert used or anew, (done, ended)
                assert "last.pt.damaged" in kept, (done, kept)
        shutil.rmtree(out)
    count.note = f"{seen['before']} times the one before was used, {seen['anew']} times there was none"


def _still_agrees(done, ended):
    """What changes no word of the checksum: white space, or the file's name behind it."""
    return done[0].startswith("last.pt.sha256") and ended.err == ""


@lengths(2, 24)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_the_other_files_of_a_run(finished, times, reaper, whole, tmp_path, trials):
    state = "a finished run" if finished else "an unfinished run"
    count = trials(
        "faults",
        f"another file of {state} cut, changed, emptied, gone: `reaper report` goes on or names it, `reaper train` "
        "mends it from the checkpoint, or says which lines of a log are lost; the result keeps its bits",
        "damaged files",
    )
    draw, recipe, out = random.Random(1), tmp_path / "tiny.yaml", tmp_path / "out"
    want = left(whole)
    names = ["recipe.yaml", "environment.json", "metrics.jsonl", "events.jsonl", *(MARKS if finished else ())]
    for number in range(times):
        name = names[number % len(names)]
        shutil.copytree(whole, out)
        if not finished:
            unfinished(out / RUN)
        with count.one():
            done = damage(out / RUN / name, draw.choice(WAYS), draw)
            shown = reaper("report", out / "tiny", "--out", tmp_path / "page.html", cwd=tmp_path)
            assert shown.code == 0 or name.removesuffix(".sha256") in shown.refused(2), done
            ended = reaper("train", recipe, "--out", out, cwd=tmp_path).well()
            assert left(out)[RUN]["result"] == want[RUN]["result"], done
            reaper("report", out / "tiny", "--out", tmp_path / "page.html", cwd=tmp_path).well()
            if ended.err == "":
                assert left(out) == want, done  # nothing was lost
            again = reaper("train", recipe, "--out", out, cwd=tmp_path).well()
            assert again.err == "", done  # it is mended
        shutil.rmtree(out)


@lengths(3, 300)
def test_snapshots_that_are_damaged(times, reaper, whole, tmp_path, trials):
    count = trials(
        "faults",
        "a snapshot cut, changed or emptied: `reaper analyze` leaves it out and says so, whatever byte it was",
        "damaged files",
    )
    draw, run = random.Random(2), whole / RUN
    # A later last epoch, so that the snapshot of the fourth counts; it is of a full phase.
    good = {name: (run / "snapshots" / name).read_bytes() for name in ("epoch-0004.pt", "epoch-0004.pt.sha256")}
    path = run / "snapshots" / "epoch-0004.pt"
    assert snapshots.read(path)["epoch"] == 4
    for _ in range(times):
        with count.one():
            done = damage(path, draw.choice([way for way in WAYS if way != "gone"]), draw)
            with pytest.raises(UserError, match=r"epoch-0004\.pt: damaged, it does not agree with its checksum"):
                snapshots.read(path)
            assert done
        for name, data in good.items():
            (run / "snapshots" / name).write_bytes(data)


def test_a_result_is_never_believed_when_one_digit_of_it_is_another(reaper, whole, tmp_path):
    path = whole / RUN / "result.json"
    text, want = path.read_text(), left(whole)
    digits = [number for number, character in enumerate(text) if character in "12345678"]
    number = digits[len(digits) // 2]
    path.write_text(text[:number] + str(int(text[number]) + 1) + text[number + 1 :])
    line = reaper("report", whole / "tiny", cwd=tmp_path).refused(2)
    assert line.endswith("result.json: is damaged (it does not agree with its checksum); give the command that wrote "
                         "it again, which mends it")  # fmt: skip
    ended = reaper("train", tmp_path / "tiny.yaml", "--out", whole, cwd=tmp_path).well()
    assert ended.err.startswith("note: ")
    assert "result.json: is damaged; the run is gone on with from its checkpoint" in ended.err
    assert left(whole) == want
    assert path.read_text() == text
