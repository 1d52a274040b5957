"""Files that stay whole."""

import json
import math
import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab import files
from torchreaper.lab.errors import UserError

numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-5, 5) | st.text(max_size=5) | st.none()
values = st.recursive(
    numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def without_nan(value):
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(value=st.dictionaries(st.text(max_size=3), values, max_size=4))
def test_json_comes_back_with_null_for_what_is_no_number(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == without_nan(value)
    json.loads(path.read_text(), parse_constant=pytest.fail)


def test_whole_files_are_replaced_and_nothing_is_left_behind(tmp_path):
    path = tmp_path / "a"
    files.write_whole(path, b"old")
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_whole(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_every_cut_of_a_log_gives_its_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [{"epoch": n, "text": "zwölf\n" * n} for n in range(4)]
    for line in lines:
        files.append_line(path, line)
    whole = path.read_bytes()
    assert whole.count(b"\n") == len(lines)
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        expected = lines[: whole[:end].count(b"\n")]
        assert files.read_lines(path) == expected
        assert files.good_lines(path)[: len(expected)] == expected
        files.rewrite_lines(path, expected)
        assert path.read_bytes() == whole[: len(path.read_bytes())]
        assert files.read_lines(path) == expected


def test_a_damaged_line_is_an_error_to_a_reader_and_skipped_in_mending(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 1}\n{"epo\x00h": 2}\nnull\n{"epoch": 3}\n')
    with pytest.raises(UserError, match=r"log\.jsonl: line 2 is damaged; give the command that wrote it again"):
        files.read_lines(path)
    assert files.good_lines(path) == [{"epoch": 1}, {"epoch": 3}]


def test_a_line_is_parsed_once(tmp_path, monkeypatch):
    path, real, parsed = tmp_path / "log.jsonl", json.loads, []
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n')

    def loads(text, **options):
        parsed.append(text)
        return real(text, **options)

    monkeypatch.setattr(files.json, "loads", loads)
    assert files.read_lines(path) == [{"epoch": 1}, {"epoch": 2}]
    assert parsed == [b'{"epoch": 1}', b'{"epoch": 2}']


def test_damage_keeps_its_words_on_the_way_to_another_process():
    error = pickle.loads(pickle.dumps(files.Damaged("a: is damaged", "throw it away")))
    assert (str(error), error.what) == ("a: is damaged; throw it away", "a: is damaged")
    assert str(files.Damaged("a: is damaged")) == f"a: is damaged; {files.MEND}"


def test_files_that_are_not_there(tmp_path):
    missing = tmp_path / "missing"
    assert files.read_json(missing) is None
    assert files.read_yaml(missing) is None
    assert files.read_lines(missing) == files.good_lines(missing) == []
    files.rewrite_lines(missing, [])
    assert not missing.exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_damaged_files_name_themselves(tmp_path, text):
    path = tmp_path / "value"
    path.write_text(text)
    for read in (files.read_json, files.read_yaml):
        with pytest.raises(UserError, match="value: is damaged"):
            read(path)


def test_lines_are_left_alone_where_they_are_right(tmp_path):
    path = tmp_path / "log.jsonl"
    files.append_line(path, {"epoch": 1})
    before = path.stat()
    files.rewrite_lines(path, [{"epoch": 1}])
    assert path.stat().st_ino == before.st_ino
    assert json.loads(path.read_text()) == {"epoch": 1}


def test_an_error_names_the_file_and_nothing_temporary(tmp_path):
    path = tmp_path / "a"
    path.mkdir()
    with pytest.raises(OSError, match="directory") as error:
        files.write_whole(path, b"new")
    assert error.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_is_full_at_fsync_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (
        lambda: files.append_line(tmp_path / "a", {"epoch": 1}),
        lambda: files.write_bytes(tmp_path / "a", b""),
    ):
        with pytest.raises(OSError, match="No space") as error:
            write()
        assert error.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize(("number", "raised"), [(22, False), (95, False), (5, True), (28, True)])
def test_drives_that_sync_no_folders_are_no_error(tmp_path, monkeypatch, number, raised):
    def refused(_):
        raise OSError(number, "odd")

    monkeypatch.setattr(files.os, "fsync", refused)
    if raised:
        with pytest.raises(OSError, match="odd"):
            files.sync(tmp_path)
    else:
        files.sync(tmp_path)


def test_a_new_file_is_whole_or_not_there(tmp_path):
    files.write_new(tmp_path / "a", b"mine")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "a", b"yours")
    assert (tmp_path / "a").read_bytes() == b"mine"
    with pytest.raises(TypeError):
        files.write_new(tmp_path / "b", "no bytes")


def test_processes_that_replace_one_file_at_once_leave_it_whole(tmp_path):
    code = """
import sys
from pathlib import Path
from torchreaper.lab.files import write_whole
for _ in range(150):
    write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 40_000)
"""
    path = tmp_path / "a"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "xyz"]
    while any(process.poll() is None for process in processes):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 40_000
            assert len(set(content)) == 1
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


DYING = """
import os, signal, sys
from pathlib import Path
from torchreaper.lab import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_process_was_writing_goes_with_the_next_whole_file(tmp_path):
    path, others = tmp_path / "[a]*.json", tmp_path / "[a]b.json"
    for one in (path, others):
        subprocess.run([sys.executable, "-c", DYING, str(one)], check=False, timeout=60)
    mine, theirs = sorted(tmp_path.iterdir())
    alive = path.with_name(mine.name.replace(mine.name.rpartition("-")[2], f"{os.getppid()}.tmp"))
    elsewhere = path.with_name(f"{path.name}.00000000-1.tmp")
    for one in (alive, elsewhere):
        one.write_bytes(b"being written")
    files.write_whole(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, alive, elsewhere, theirs])
    assert path.read_bytes() == b"whole"
