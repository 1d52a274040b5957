"""Folders of images."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from torchreaper.lab.data import DataSpec, load
from torchreaper.lab.data.folder import read_folder
from torchreaper.lab.data.opening import FORMATS
from torchreaper.lab.errors import UserError


@pytest.fixture
def folders(tmp_path, make):
    """The pictures of `make` as files: train/cat/0.png, ..."""
    pictures = {"train": make.pictures(8), "test": make.pictures(4, seed=1)}
    for split, images in pictures.items():
        for number, image in enumerate(images):
            put(tmp_path / split / ("cat", "dog")[number % 2] / f"{number}.png", image)
    return tmp_path


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def spec(**options):
    return DataSpec(name="folder", train="train", test="test", **options)


def refused(base, **options):
    with pytest.raises(UserError) as caught:
        load(spec(**options), base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_holds_what_parquet_would(folders, make):
    found = load(spec(), folders)
    cats_first = [0, 2, 4, 6, 1, 3, 5, 7]
    assert found.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(found.train.images, torch.from_numpy(make.pictures(8)[cats_first]).permute(0, 3, 1, 2))
    assert found.test.labels.tolist() == [0, 0, 1, 1]
    some = load(spec(limit=4, validation=2, split_seed=1), folders)
    assert (len(some.train), len(some.validation)) == (4, 2)


def test_deeper_folders_count_and_hidden_and_other_files_do_not(folders):
    deep = np.full((6, 6, 3), 7, np.uint8)
    put(folders / "train" / "cat" / "more" / "x.JPG", deep)
    put(folders / "train" / "cat" / ".hidden" / "x.png", deep)
    put(folders / "train" / ".cache" / "x.png", deep)
    (folders / "train" / "cat" / "readme.txt").write_text("no image")
    (folders / "train" / "cat" / "._0.png").write_text("no image")
    found = read_folder("train", folders, "data.train")
    assert found.classes == ("cat", "dog")
    assert len(found.files) == 9
    assert sum(file.endswith("more/x.JPG") for file in found.files) == 1


def test_every_format_that_is_read_is_found_by_its_suffixes(folders):
    suffixes = {
        **{"AVIF": [".avif"], "BMP": [".bmp"], "GIF": [".gif"], "JPEG": [".jpe", ".jpg", ".jpeg", ".JFIF"]},
        **{"JPEG2000": [".jp2", ".j2k"], "MPO": [".mpo"], "PNG": [".png"], "PPM": [".ppm", ".pgm", ".pbm", ".pnm"]},
        **{"TIFF": [".tif", ".tiff"], "WEBP": [".webp"]},
    }
    assert set(suffixes) == set(FORMATS)
    Image.init()
    picture = Image.fromarray(np.full((6, 6, 3), 7, np.uint8))
    for kind in suffixes.keys() & Image.SAVE.keys():
        for suffix in suffixes[kind]:
            picture.save(folders / "train" / "cat" / f"x{kind}{suffix}", format=kind)
    many = sum(len(suffixes[kind]) for kind in suffixes.keys() & Image.SAVE.keys())
    assert many > 15
    assert len(load(spec(), folders).train) == 8 + many


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
@pytest.mark.parametrize("place", [b"cat/caf\xe9.png", b"caf\xe9/1.png"])
def test_a_name_that_is_no_text_is_told(folders, make, place):
    """What archives of old systems unpack to."""
    path = os.path.join(os.fsencode(folders / "train"), place)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write((folders / "train" / "cat" / "0.png").read_bytes())
    assert "caf\\udce9" in (told := refused(folders))
    assert told.startswith("data.train='train': ")
    assert told.endswith(": a name that is not UTF-8; rename the file")


def test_pictures_of_different_sizes_are_brought_to_one(folders):
    put(folders / "train" / "cat" / "wide.png", np.zeros((9, 20, 3), np.uint8))
    assert refused(folders) == (
        "data.train: cat/wide.png: image of 9x20 pixels, others have 6x6; set data.size to bring all to one size"
    )
    assert load(spec(size=5), folders).train.images.shape == (9, 3, 5, 5)
    assert load(spec(size=5), folders).test.images.shape == (4, 3, 5, 5)


def test_the_test_folder_may_lack_a_class_and_a_change_is_noticed(folders):
    for file in (folders / "test" / "cat").iterdir():
        file.unlink()
    (folders / "test" / "cat").rmdir()
    assert load(spec(), folders).test.labels.tolist() == [1, 1]
    put(folders / "test" / "dog" / "1.png", np.zeros((6, 6, 3), np.uint8))
    assert load(spec(), folders).test.images[0].sum() == 0


def test_what_is_no_folder_of_classes_is_told(folders):
    (folders / "train" / "cow").mkdir()
    assert f"data.train='train': {folders / 'train' / 'cow'} has no images (.avif, .bmp, " in refused(folders)
    (folders / "train" / "cow").rmdir()
    put(folders / "test" / "dof" / "1.png", np.zeros((6, 6, 3), np.uint8))
    assert refused(folders) == (
        "data.test='test': class 'dof' is not one of data.train; did you mean 'dog'? known: cat, dog"
    )
    with pytest.raises(UserError, match=r"^data\.train='nowhere': no such folder in /"):
        read_folder("nowhere", folders, "data.train")
    with pytest.raises(UserError, match=r"has no subfolders; put the images of each class into one, named after it$"):
        read_folder("train/cat", folders, "data.train")
    with pytest.raises(UserError, match=r"is a file; name a folder with a subfolder of images for each class$"):
        read_folder("train/cat/0.png", folders, "data.train")


def test_a_broken_file_is_told_by_its_name(folders):
    (folders / "train" / "dog" / "3.png").write_bytes(b"broken")
    for memory in (True, False):
        assert refused(folders, memory=memory).startswith("data.train: dog/3.png: image cannot be decoded (")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.timeout(60)
def test_a_pipe_among_the_pictures_is_refused_and_not_waited_for(folders):
    os.mkfifo(folders / "train" / "cat" / "7.png")
    message = refused(folders)
    assert "7.png" in message
    assert "is no file" in message
