"""Locks between real processes."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.lab.tiny import recipe

from torchreaper.lab import locking
from torchreaper.lab.compare import compare
from torchreaper.lab.errors import UserError
from torchreaper.lab.locking import LOCK, locked
from torchreaper.lab.run import train

pytest.importorskip("fcntl", reason="this system has no such locks")

HOLD = """
import sys, time
from pathlib import Path
from torchreaper.lab.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys
from contextlib import ExitStack
from pathlib import Path
from torchreaper.lab.errors import UserError
from torchreaper.lab.locking import locked
folder, count = Path(sys.argv[1]), Path(sys.argv[1], "count")
done = 0
while done < 200:
    try:
        with locked(folder):
            before = int(count.read_text())
            count.write_text(str(before + 1))
            done += 1
    except UserError:
        pass
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the tiny run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "tiny" / "repr" / "seed-0")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_one_process_at_a_time_trains_in_a_folder(holder, tmp_path, one_thread):
    folder = tmp_path / "tiny" / "repr" / "seed-0"
    message = re.escape(f"out={folder}: is being trained by process {holder.pid} on ") + ".*; wait until that is done"
    for resume in (True, False):
        with pytest.raises(UserError, match=message):
            train(recipe(), scheme="repr", seed=0, out=tmp_path, resume=resume)
    assert os.listdir(folder) == [LOCK]
    holder.send_signal(signal.SIGKILL)  # its lock goes with it, the file stays
    holder.wait()
    train(recipe(), scheme="repr", seed=0, out=tmp_path)
    assert (folder / "result.json").exists()
    assert not (folder / LOCK).exists()


def test_a_lock_is_given_back_after_an_error_too(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path), pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on "):
        with locked(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()


def test_a_lock_of_a_process_that_is_ending_is_waited_for(holder, tmp_path):
    timer = threading.Timer(0.3, holder.kill)
    timer.start()
    with locked(tmp_path / "tiny" / "repr" / "seed-0"):
        pass
    timer.join()


def test_a_finished_run_has_no_lock_left_over(tmp_path, one_thread):
    train(recipe(), scheme="repr", seed=0, out=tmp_path)
    left = tmp_path / "tiny" / "repr" / "seed-0" / LOCK
    for again in (
        lambda: train(recipe(), scheme="repr", seed=0, out=tmp_path),
        lambda: compare(recipe(), ["repr"], 1, tmp_path),
    ):
        left.write_text("process 1 on some machine\n")  # as one leaves it that is killed after it wrote the result
        again()
        assert not left.exists()


def test_no_two_processes_are_ever_inside(tmp_path):
    # Each takes the lock again and again, so that one often finds a file that another is about to remove.
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "600"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/run: .*; choose a folder that can be written"),
        locked(tmp_path / "file" / "run"),
    ):
        pass


def test_a_lock_whose_folder_was_deleted_holds_no_more_and_takes_nobody_elses_with_it(tmp_path):
    folder = tmp_path / "run"
    with ExitStack() as first, ExitStack() as second:
        mine = first.enter_context(locked(folder))
        assert mine.holds()
        folder.rename(tmp_path / "gone")
        assert not mine.holds()
        theirs = second.enter_context(locked(folder))  # as another process would
        first.close()
        assert theirs.holds()
        with pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on "), locked(folder):
            pass


def test_where_the_holder_cannot_be_written_down_the_lock_is_free_again(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(locking.os, "write", full)
        with pytest.raises(UserError, match=r"^out=.*: No space left on device; make room there$"), locked(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path) as lock:
        assert lock.holds()


def test_a_lock_on_a_disk_that_is_read_only_by_now_is_given_back(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch, locked(tmp_path):
        patch.setattr(Path, "unlink", refused)
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path) as lock:
        assert lock.holds()
