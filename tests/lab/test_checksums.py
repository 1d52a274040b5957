"""Checksums beside files."""

import os
import subprocess
from pathlib import Path

import pytest

from torchreaper.lab import checksums


def test_a_file_and_its_checksum_agree_until_one_of_them_changes(tmp_path):
    path = tmp_path / "a"
    checksums.write_checked(path, b"content")
    assert checksums.agrees(path, b"content")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "a.sha256"]
    checked = subprocess.run(["sha256sum", "-c", "a.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.stdout == "a: OK\n"
    assert not checksums.agrees(path, b"Content")
    for text in (b"", b"\xff", b"0" * 64):
        checksums.sidecar(path).write_bytes(text)
        assert not checksums.agrees(path, b"content")
        assert (checksums.read_digest(path) is None) == (text == b"")
    checksums.sidecar(path).unlink()  # as an older version left it
    assert checksums.agrees(path, b"content")


def test_a_checksum_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a"
    checksums.write_checked(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        checksums.write_digest(path, checksums.digest_of(b"new"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "a.sha256"]
    assert checksums.agrees(path, b"old")


def test_a_checksum_that_goes_while_it_is_looked_at_is_none(tmp_path, monkeypatch):
    path = tmp_path / "a"
    checksums.write_checked(path, b"content")

    def is_file(self):
        self.unlink()  # by a process that takes the run up
        return True

    monkeypatch.setattr(Path, "is_file", is_file)
    assert checksums.agrees(path, b"content and more")


def test_between_the_two_writes_nothing_agrees_that_should_not(tmp_path, monkeypatch):
    path = tmp_path / "a"
    checksums.write_checked(path, b"old")

    real = checksums.write_whole

    def dies(there, data):
        if there == path:
            raise OSError(28, "No space left on device")
        real(there, data)

    monkeypatch.setattr(checksums, "write_whole", dies)
    with pytest.raises(OSError, match="No space"):
        checksums.write_checked(path, b"new")
    assert not checksums.agrees(path, path.read_bytes())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.timeout(60)
def test_a_checksum_that_is_a_pipe_or_has_no_end_is_none(tmp_path):
    path = tmp_path / "a"
    os.mkfifo(checksums.sidecar(path))
    assert checksums.read_digest(path) is None
    assert not checksums.agrees(path, b"content")
    checksums.sidecar(path).unlink()
    checksums.sidecar(path).symlink_to("/dev/zero")
    assert not checksums.agrees(path, b"content")
