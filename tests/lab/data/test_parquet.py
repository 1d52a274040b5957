from pathlib import Path

import pytest

from torchreaper.lab.data.parquet import find_files, quiet, read_parquet
from torchreaper.lab.errors import UserError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_paths_start_at_the_recipe_and_else_at_the_current_folder(tmp_path, monkeypatch):
    base, here = tmp_path / "base", tmp_path / "here"
    touch(base / "a.parquet", here / "a.parquet", here / "b.parquet")
    monkeypatch.chdir(here)
    assert find_files("a.parquet", base, "data.train") == [base / "a.parquet"]
    assert find_files("b.parquet", base, "data.train") == [here / "b.parquet"]
    assert find_files(str(here / "a.parquet"), base, "data.train") == [here / "a.parquet"]
    assert find_files("../here/*.parquet", base, "k") == [base / "../here/a.parquet", base / "../here/b.parquet"]


def test_brackets_in_names_and_folders(tmp_path):
    folder = tmp_path / "odd [1] *"
    touch(folder / "x[0].parquet", folder / "x1.parquet")
    assert find_files("x[0].parquet", folder, "k") == [folder / "x[0].parquet"]
    assert find_files("x[0-9].parquet", folder, "k") == [folder / "x1.parquet"]
    assert len(find_files("**/*.parquet", tmp_path, "k")) == 2


@pytest.mark.parametrize("pattern", ["nope.parquet", "nope-*.parquet", "a\0b", ""])
def test_nothing_there_is_refused(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_files(pattern, tmp_path / "recipes", "data.train")
    text = str(caught.value)
    assert text.startswith(f"data.train={pattern!r}: ")
    assert "no such file" in text or "is a folder" in text
    assert "\n" not in text


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^data\.test='\.': .* is a folder; name its files, as in \*\.parquet$"):
        find_files(".", tmp_path, "data.test")


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"not a parquet file, certainly")
    with pytest.raises(UserError) as caught:
        read_parquet([path], "data.train")
    assert str(caught.value).startswith(f"data.train={str(path)!r}: cannot be read as parquet (Parquet magic bytes")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_parquet_is_refused_and_named(tmp_path, make, damage, capfd):
    make()
    path = tmp_path / "train.parquet"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:  # the footer is whole, the pages are not
        content[8 : len(content) // 2] = bytes(len(content) // 2 - 8)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_parquet([path], "data.train")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_reading_is_quiet_and_leaves_nothing_behind(tmp_path, make, monkeypatch, capfd):
    import datasets

    make()
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(home))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    rows = read_parquet([tmp_path / "train.parquet", tmp_path / "test.parquet"], "data.train")
    assert len(rows) == 12
    assert list(home.iterdir()) == []
    assert rows[11]["image"].size == (6, 6), "readable without the cache"
    assert capfd.readouterr() == ("", "")


def test_reading_needs_no_network(make, tmp_path, monkeypatch):
    make()

    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert len(read_parquet([Path(tmp_path / "train.parquet")], "data.train")) == 8


def test_quiet_puts_the_progress_bars_back():
    import datasets

    for switch in (datasets.enable_progress_bars, datasets.disable_progress_bars):
        switch()
        before = datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
        with quiet():
            assert datasets.utils.are_progress_bars_disabled()
        assert (datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()) == before
    datasets.enable_progress_bars()
