import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from torchreaper.lab.data import DataSpec, load
from torchreaper.lab.errors import UserError

CIFAR10 = Path(__file__).parents[4] / "shared" / "data" / "cifar10"


def refused(spec, base):
    with pytest.raises(UserError) as caught:
        load(DataSpec(**spec), base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_and_labels_are_those_of_the_file(make, tmp_path):
    images = make.pictures(8)
    dataset = load(DataSpec(**make(images, [0, 1, 1, 0, 1, 0, 0, 1])), tmp_path)
    assert torch.equal(dataset.train.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert dataset.train.images.is_contiguous()
    assert dataset.train.labels.tolist() == [0, 1, 1, 0, 1, 0, 0, 1]
    assert dataset.classes == ("cat", "dog")
    assert dataset.validation is None
    assert len(dataset.test) == 4
    pixels = images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), atol=1e-6)


def test_mean_and_deviation_are_of_the_images_trained_on(make, tmp_path):
    spec = make(make.pictures(40))
    dataset = load(DataSpec(**spec, limit=4, validation=8), tmp_path)
    pixels = dataset.train.images.double() / 255
    torch.testing.assert_close(dataset.mean.double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0)
    assert (len(dataset.train), len(dataset.validation)) == (4, 8)
    everything = load(DataSpec(**spec), tmp_path)
    assert not torch.allclose(everything.mean, dataset.mean, atol=1e-4)
    taken = {i.numpy().tobytes() for i in dataset.train.images}
    assert not taken & {i.numpy().tobytes() for i in dataset.validation.images}


def test_grey_only_where_all_images_are_grey(make, tmp_path):
    grey = make.pictures(8, grey=True)
    dataset = load(DataSpec(**make(grey, test_images=make.pictures(4, grey=True))), tmp_path)
    assert torch.equal(dataset.train.images, torch.from_numpy(grey).unsqueeze(1))
    assert dataset.mean.shape == (1,)
    mixed = load(DataSpec(**make(grey, test_images=make.pictures(4))), tmp_path)
    assert mixed.train.images.shape == (8, 3, 6, 6)
    assert torch.equal(mixed.train.images[:, 0], torch.from_numpy(grey))
    assert torch.equal(mixed.train.images[:, 0], mixed.train.images[:, 2])


def test_palette_and_transparent_images_become_rgb(make, tmp_path):
    stored = [make.png(i, mode) for i, mode in zip(make.pictures(4), ["P", "RGBA", "RGB", "L"])]
    assert load(DataSpec(**make(stored)), tmp_path).train.images.shape == (4, 3, 6, 6)


def test_reading_once_a_process_until_a_file_changes(make, tmp_path):
    spec, calls = make(), []

    def read(**options):
        return load(DataSpec(**spec, **options), tmp_path, progress=lambda *a: calls.append(a))

    first = read()
    assert calls == [("train", 8, 8), ("test", 4, 4)]
    assert read() is first
    assert len(calls) == 2
    assert read(limit=4) is not first
    make(make.pictures(8, seed=9))
    os.utime(tmp_path / "train.parquet", ns=(1, 1))
    assert not torch.equal(read().train.images, first.train.images)


@pytest.mark.parametrize("memory", [True, False])
def test_noise_is_of_the_training_images_alone(make, tmp_path, memory):
    spec = {**make(make.pictures(40)), "validation": 8, "workers": 0 if not memory else 2, "memory": memory}
    clean, noisy = (load(DataSpec(**spec, label_noise=share), tmp_path) for share in (0.0, 0.25))
    assert int((clean.train.labels != noisy.train.labels).sum()) == 8
    assert torch.equal(clean.validation.labels, noisy.validation.labels)
    assert torch.equal(clean.test.labels, noisy.test.labels)
    every = [torch.arange(32)]
    ((there, _),), ((here, labels),) = clean.train.read(every), noisy.train.read(every)
    assert torch.equal(there, here)
    assert torch.equal(labels, noisy.train.labels)


@pytest.mark.parametrize("memory", [True, False])
def test_where_validation_judges_it_stands_in_the_place_of_the_test_images(make, tmp_path, memory):
    spec = {**make(make.pictures(40)), "validation": 8, "memory": memory}
    plain, found = (load(DataSpec(**spec, judge=judge), tmp_path) for judge in ("test", "validation"))
    assert found.test is found.validation
    assert torch.equal(found.validation.labels, plain.validation.labels)
    assert torch.equal(found.train.labels, plain.train.labels)
    assert (len(found.test), len(plain.test)) == (8, 4)


def test_only_images_that_are_used_are_decoded(make, tmp_path):
    images = [make.png(i) for i in make.pictures(8)]
    whole = load(DataSpec(**make(images), limit=4), tmp_path)
    used = {i.numpy().tobytes() for i in whole.train.images}
    kept = [i for i, p in enumerate(make.pictures(8)) if p.transpose(2, 0, 1).tobytes() in used]
    broken = [image if i in kept else b"broken" for i, image in enumerate(images)]
    spec = make(broken)
    assert torch.equal(load(DataSpec(**spec, limit=4), tmp_path).train.images, whole.train.images)
    assert "image cannot be decoded" in refused(spec, tmp_path)


def test_a_limited_test_set_decodes_no_other_images(make, tmp_path):
    pictures = make.pictures(6, seed=1)
    labels = [0, 1] * 3
    spec = make(test_images=pictures, test_labels=labels)
    some = load(DataSpec(**spec, test_limit=4), tmp_path)
    assert some.test.labels.bincount().tolist() == [2, 2]
    used = {image.numpy().tobytes() for image in some.test.images}
    stored = [make.png(p) if p.transpose(2, 0, 1).tobytes() in used else b"broken" for p in pictures]
    spec = make(test_images=stored, test_labels=labels)
    again = load(DataSpec(**spec, test_limit=4), tmp_path)
    assert torch.equal(again.test.images, some.test.images)
    assert torch.equal(again.test.labels, some.test.labels)
    assert refused({**spec, "test_limit": 7}, tmp_path) == (
        "data.test_limit=7: only 6 test images are there; use test_limit <= 6"
    )


def test_columns_are_found_by_type_and_by_name(make, tmp_path):
    expected = load(DataSpec(**make()), tmp_path)
    found = load(DataSpec(**make(image="img", label="fine_label")), tmp_path)
    assert torch.equal(found.train.images, expected.train.images)
    # Without the Hugging Face metadata images are structs, labels integers.
    plain = load(DataSpec(**make(image="img", label="labels", hf=False)), tmp_path)
    assert torch.equal(plain.train.images, expected.train.images)
    assert plain.classes == ("0", "1")
    spec = make(image="img", label="target", hf=False)
    assert refused(spec, tmp_path) == ("data.label: found no label column in data.train; name one of img, target")
    named = load(DataSpec(**spec, label="target"), tmp_path)
    assert torch.equal(named.train.labels, expected.train.labels)
    assert refused({**spec, "label": "x"}, tmp_path) == (
        "data.label='x': no such column in data.train; it has img, target"
    )
    assert refused({**spec, "label": "target", "image": "target"}, tmp_path).startswith(
        "data.image='target': is not a column of images in data.train, but "
    )


def test_strings_and_integers_as_labels(make, tmp_path):
    words = ["dog", "cat"] * 4
    dataset = load(DataSpec(**make(labels=words, names=None)), tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [1, 0] * 4
    numbers = load(DataSpec(**make(labels=[0, 1, 2, 2, 1, 0, 1, 2], names=None)), tmp_path)
    assert numbers.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": [0, 1, 0, 7, 0, 1, 0, 1]},
            "data.train: row 3, column 'label': label 7 is out of range: must be 0 to 1 (2 classes)",
        ),
        (
            {"labels": [0, 1, 0, 1, 0, 1, -1, 1]},
            "data.train: row 6, column 'label': label -1 is out of range: must be 0 to 1 (2 classes)",
        ),
        (
            {"labels": [0, 1, 0, 1, 0, 1, -1, 1], "names": None},
            "data.train: row 6, column 'label': label -1 is out of range: must be integers from 0",
        ),
        (
            {"labels": [0, 1, 0, 1, 0, 1, None, 1]},
            "data.train: row 6 has no label (column 'label')",
        ),
        (
            {"test_labels": [0, 1, 2, 0], "names": None},
            "data.test: row 2, column 'label': label 2 is out of range: must be 0 to 1 (2 classes)",
        ),
        (
            {"labels": ["cat", "dog"] * 4, "test_labels": ["cat", "dog", "dog", "cow"], "names": None},
            "data.test: row 3, column 'label': label 'cow' is out of range: must be 0 to 1 (2 classes)",
        ),
        (
            {"labels": [1, 2, 1, 2, 1, 2, 1, 2], "names": None},
            "data.label='label': labels out of range in data.train: class 0 has no images, class 2 has; "
            "labels must be 0, 1, 2, ... without gaps",
        ),
    ],
)
def test_wrong_labels_are_refused_with_their_row(make, tmp_path, options, message):
    assert refused(make(**options), tmp_path) == message


def test_wrong_images_are_refused_with_their_row(make, tmp_path):
    good = [make.png(i) for i in make.pictures(8)]
    spec = make([*good[:5], b"broken", *good[6:]])
    text = refused(spec, tmp_path)
    assert text.startswith("data.train: row 5: image cannot be decoded (cannot identify image file")
    assert text.endswith("; mend or remove it")
    spec = make([*good[:5], good[5][:-40], *good[6:]])
    assert refused(spec, tmp_path).startswith("data.train: row 5: image cannot be decoded (")
    spec = make([*good[:5], None, *good[6:]])
    assert refused(spec, tmp_path) == "data.train: row 5 has no image (column 'image')"
    spec = make([*good[:5], make.png(np.zeros((6, 6), np.uint16)), *good[6:]])
    assert refused(spec, tmp_path) == ("data.train: row 5: image mode I;16 is not 8 bits a channel; make it RGB")
    spec = make([*good[:5], make.png(np.zeros((6, 7), np.uint8)), *good[6:]])
    assert refused(spec, tmp_path) == (
        "data.train: row 5: image of 6x7 pixels, others have 6x6; set data.size to bring all to one size"
    )
    spec = make(good, test_images=make.pictures(4, side=5))
    assert refused(spec, tmp_path) == (
        "data.test: images of 5x5 pixels, those of data.train have 6x6; set data.size to bring all to one size"
    )


def test_no_rows_and_no_image_column_are_refused(make, tmp_path):
    spec = make(images=[], labels=[], test_images=[])
    assert refused(spec, tmp_path) == f"data.train={str(tmp_path / 'train.parquet')!r}: has no rows"
    os.replace(tmp_path / "train.parquet", tmp_path / "empty.parquet")
    # One shard among others may be empty.
    assert len(load(DataSpec(**{**make(), "train": "[et]*[yn].parquet"}), tmp_path).train) == 8
    make()
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1], "label": [0]}), tmp_path / "train.parquet")
    spec = {"name": "parquet", "train": "train.parquet", "test": "test.parquet"}
    assert refused(spec, tmp_path) == ("data.image: found no image column in data.train; name one of x, label")


def test_test_classes_must_be_those_of_training(make, tmp_path):
    make(names=("cat", "cow"))
    os.replace(tmp_path / "test.parquet", tmp_path / "other.parquet")
    spec = {**make(), "test": "other.parquet"}
    assert refused(spec, tmp_path) == "data.test: its classes are 'cat, cow', not 'cat, dog'"


@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"needs CIFAR-10 as parquet in {CIFAR10}")
def test_cifar10():
    spec = DataSpec(name="parquet", train="train-*.parquet", test="test-*.parquet", validation=5000, limit=2000)
    dataset = load(spec, CIFAR10)
    assert dataset.train.images.shape == (2000, 3, 32, 32)
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert dataset.train.labels.bincount().tolist() == [200] * 10
    assert dataset.classes[0] == "airplane"
    # The known means of CIFAR-10, as far as 2,000 images tell.
    torch.testing.assert_close(dataset.mean, torch.tensor([0.491, 0.482, 0.447]), atol=0.02, rtol=0)


@pytest.mark.parametrize("labels", [[0.5, 1.0, 0.0, 1.0], [True, False, True, False], [[0], [1], [0], [1]]], ids=str)
def test_test_labels_that_only_look_like_classes_are_refused(make, tmp_path, labels):
    spec = DataSpec(**make(names=None))
    table = pq.read_table(tmp_path / "test.parquet")
    table = table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels))
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"^data\.test: row 0, column 'label': label .* is out of range"):
        load(spec, tmp_path)


def test_labels_beyond_the_names_in_the_file_are_refused(make, tmp_path):
    spec = DataSpec(**make(names=None))
    images = pa.array([{"bytes": make.png(image), "path": None} for image in make.pictures(4)])
    said = {"info": {"features": {"label": {"names": ["cat"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": images, "label": [0, 1, 0, 1]}, metadata={"huggingface": json.dumps(said)})
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"^data\.test: its columns are not what the file says of them \(Class label 1"):
        load(spec, tmp_path)
