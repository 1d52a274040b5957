import json
import logging
import os
import re

import pytest
import torch
from PIL import Image
from tests.lab.data.questions.conftest import asked, pixels, told

from torchreaper.lab.data import memory
from torchreaper.lab.data.questions import KINDS, QuestionsSpec, accuracy, load, load_questions
from torchreaper.lab.errors import UserError


def refused(spec, base):
    with pytest.raises(UserError) as caught:
        load_questions(QuestionsSpec(**spec), base)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(base), "BASE")


def test_questions_pictures_and_answers_are_those_of_the_files(easy, tmp_path):
    rows = [["What is red?", "Circle", 2], ["is it  red?", "yes", 0], ["how many?", "3", 2], ["what is it?", "yes", 1]]
    data = load_questions(QuestionsSpec(**easy(rows, [["is a red what?", "no", 3], ["is it?", "yes", 1]])), tmp_path)
    assert data.classes == ("yes", "3", "circle")
    assert data.train.labels.tolist() == [[2], [0], [1], [0]]
    assert data.test.labels.tolist() == [[-1], [0]]
    assert [KINDS[kind] for kind in data.train.kinds] == ["other", "yes/no", "number", "yes/no"]
    assert [KINDS[kind] for kind in data.test.kinds] == ["yes/no", "yes/no"]
    assert data.vocabulary == ("<pad>", "<unknown>", "is", "it", "red", "what", "how", "many")
    assert (data.words, data.left_out, data.validation) == (3, 0, None)
    assert data.train.questions.tolist() == [[5, 2, 4], [2, 3, 4], [6, 7, 0], [5, 2, 3]]
    assert data.test.questions.tolist() == [[2, 1, 4], [2, 3, 0]]  # cut to the longest of training
    assert len(data.train.pictures) == 3
    (images, _), _ = next(data.train.read([torch.arange(4)]))
    wanted = torch.stack([torch.from_numpy(pixels(n)).permute(2, 0, 1) for n in (2, 0, 2, 1)])
    assert torch.equal(images, wanted)
    seen = wanted[[0, 1, 3]].double() / 255  # each picture once, whatever is asked about it
    torch.testing.assert_close(data.mean.double(), seen.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.std.double()[0], seen.std((0, 2, 3), correction=0)[0], atol=1e-6, rtol=0)


def test_training_leaves_out_what_cannot_be_answered_and_the_test_does_not(easy, tmp_path, caplog):
    rows = [["one", "a", 0], ["two", "a", 1], ["three", "b", 2], ["four", "b", 0], ["five", "c", 1]]
    spec = QuestionsSpec(**easy(rows), answers=2)
    with caplog.at_level(logging.INFO, logger="torchreaper.lab"):
        data = load_questions(spec, tmp_path)
    assert data.classes == ("a", "b")
    assert (len(data.train), len(data.test), data.left_out) == (4, 5, 1)
    assert "five" not in data.vocabulary
    assert caplog.messages == ["1 of 5 training questions are left out: their answer is none of the 2 kept"]
    assert data.test.labels.flatten().tolist() == [0, 0, 1, 1, -1]
    right = accuracy(torch.zeros(5, dtype=torch.int64), data.test.labels)
    assert right.tolist() == [1, 1, 0, 0, 0]


def test_vqa_is_read_as_published(vqa, tmp_path):
    data = load_questions(QuestionsSpec(**vqa, answers=2, validation=1), tmp_path)
    assert data.classes == ("2", "no")
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 3)
    assert data.train.labels.tolist() == [[0] * 9 + [-1], [1] * 5 + [-1] * 5]
    everything = load_questions(QuestionsSpec(**vqa), tmp_path)
    assert set(everything.classes) == {"cat", "2", "no"}
    cat = everything.classes.index("cat")
    first = everything.train.labels[0].tolist()
    assert first == [cat] * 3 + [-1, cat] + [-1] * 5
    assert everything.test.kinds.tolist() == [2, 1, 0]
    (images, questions), _ = next(everything.train.read([torch.arange(3)]))
    near = torch.stack([torch.from_numpy(pixels(n, 16)).permute(2, 0, 1) for n in (123, 9, 9)])
    assert (images.int() - near.int()).abs().max() <= 4  # what a JPEG loses
    assert [everything.vocabulary[n] for n in questions[0]] == ["what's", "on", "the", "table"]
    right = accuracy(torch.full((3,), cat), everything.test.labels)
    assert right.tolist() == pytest.approx([1.0, 0, 0])


def test_words_that_are_rare_are_unknown_and_long_questions_are_cut(vqa, tmp_path):
    data = load_questions(QuestionsSpec(**vqa, vocabulary=2, words=2), tmp_path)
    assert data.vocabulary == ("<pad>", "<unknown>")
    assert data.train.questions.tolist() == [[1, 1], [1, 1], [1, 1]]


def test_choices_depend_on_the_seed_and_keep_pictures_apart(easy, tmp_path):
    rows = [[f"w{k} of", ["red", "yes"][k % 2], k // 3] for k in range(60)]
    spec = easy(rows, rows, pictures=20)

    def read(**options):
        return load_questions(QuestionsSpec(**spec, **options), tmp_path)

    def words(split, data):
        return [data.vocabulary[row[0]] for row in split.questions]

    data, other = read(limit=20, validation=12, test_limit=7), read(limit=20, validation=12, test_limit=7, split_seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 12, 7)
    assert data.train.questions.tolist() != other.train.questions.tolist()
    assert not data.test.same(other.test)
    sides = [{image.numpy().tobytes() for image in one.pictures.images} for one in (data.train, data.validation)]
    assert not sides[0] & sides[1]
    assert len(data.validation.pictures) == 4
    assert "<unknown>" in words(data.validation, data)  # its words are not those of training
    assert torch.equal(data.validation.picture, read(validation=12).validation.picture)  # `limit` changes nothing there


def test_reading_once_a_process_until_a_file_changes(easy, tmp_path):
    spec, calls = easy(), []

    def read(**options):
        return load_questions(QuestionsSpec(**spec, **options), tmp_path, progress=lambda *a: calls.append(a))

    first = read()
    assert calls == [("train", 4, 4), ("test", 4, 4)]
    assert read() is first
    assert read(words=2) is not first
    Image.fromarray(pixels(6)).save(tmp_path / "easy" / "train" / "images" / "0.png")
    os.utime(tmp_path / "easy" / "train" / "images" / "0.png", ns=(1, 1))
    assert not torch.equal(read().train.pictures.images, first.train.pictures.images)


def test_the_package_easy_vqa(installed):
    data = load_questions(QuestionsSpec(name="easy-vqa", validation=2000))
    assert len(data.train) + len(data.validation) == 38_575
    assert 1990 <= len(data.validation) <= 2000
    assert len(data.test) == 9_673
    assert len(data.train.pictures) + len(data.validation.pictures) == 4000
    assert len(data.test.pictures) == 1000
    assert data.train.shape == (3, 64, 64)
    assert len(data.classes) == 13
    assert data.classes[:2] == ("yes", "no")
    assert data.left_out == 0
    assert torch.bincount(data.test.kinds, minlength=3).tolist() == [7136, 0, 2537]
    assert (data.test.labels >= 0).all()
    assert (data.test.questions != 1).all()  # every word of the test occurs in training
    assert data.words == 9


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "PACKAGE", "no_such_package")
    assert refused({"name": "easy-vqa"}, tmp_path) == (
        "data.name='easy-vqa': the package that carries its pictures is not installed; pip install easy-vqa, or set "
        "data.path"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["q", "a"]], "[0]=['q', 'a']: must be a list [question, answer, number of the picture]; mend the file"),
        ([["q", "a", 0], ["q", 3, 0]], "[1]=['q', 3, 0]: must be a list"),
        ([["q", "a", "../0"]], "[0]=['q', 'a', '../0']: must be a list"),
        ([["q", "a", True]], "[0]=['q', 'a', True]: must be a list"),
        ([["q", "a", -1]], "[0]=['q', 'a', -1]: must be a list"),
        ({"a": 1}, " has no questions, but {'a': 1}; must be a list of them"),
    ],
)
def test_bad_rows_of_easy_vqa(easy, tmp_path, rows, message):
    told = refused(easy(rows), tmp_path)
    assert told.startswith("data.train: BASE/easy/train/questions.json")
    assert message in told


def test_a_missing_picture(easy, vqa, tmp_path):
    assert refused(easy([["q", "a", 0], ["why?", "a", 7]]), tmp_path) == (
        "data.train: picture 7 of question 'why?' is missing in BASE/easy/train/images; put it there, or leave its "
        "questions out"
    )
    (tmp_path / "test2014" / "COCO_test2014_000000000009.jpg").unlink()
    assert refused(vqa, tmp_path).startswith(
        "data.test: picture 9 of question 'How many dogs?' is missing in BASE/test2014;"
    )


def test_pictures_that_are_none(easy, vqa, tmp_path):
    spec, folder = easy(), tmp_path / "easy" / "train" / "images"
    (folder / "0.png").write_bytes(b"no picture")
    assert refused(spec, tmp_path).startswith("data.train: 0.png: image cannot be decoded (")
    os.unlink(folder / "0.png")
    os.mkfifo(folder / "0.png")  # opening it would wait for ever
    assert "is no file); mend or remove it" in refused(spec, tmp_path)
    (folder / "00.jpg").touch()
    assert (
        refused(spec, tmp_path) == "data.train: BASE/easy/train/images has two pictures 0, 0.png and 00.jpg; remove one"
    )
    (tmp_path / "empty").mkdir()
    assert refused({**vqa, "train_images": "empty"}, tmp_path).startswith(
        "data.train_images: BASE/empty has no pictures with a number at the end of their names (.avif, .bmp,"
    )


def test_pictures_of_several_sizes(easy, tmp_path):
    spec = easy()
    Image.fromarray(pixels(1, 10)).save(tmp_path / "easy" / "train" / "images" / "1.png")
    assert refused(spec, tmp_path) == (
        "data.train: 1.png: image of 10x10 pixels, others have 8x8; set data.size to bring all to one size"
    )
    assert load_questions(QuestionsSpec(**spec, size=6), tmp_path).train.shape == (3, 6, 6)


def changed(tmp_path, file, change):
    path = tmp_path / f"{file}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train_questions", lambda c: [c], "has no list 'questions'; must be a file of VQA v1 or v2, as published"),
        ("train_annotations", lambda c: c | {"annotations": {}}, "has no annotations, but {}; must be a list of them"),
        ("train_questions", lambda c: c | {"questions": [3]}, "questions[0]=3: must be an object with question_id and"),
        (
            "train_questions",
            lambda c: c | {"questions": [*c["questions"], asked(5, "and?", 9)]},
            "questions[3].question_id=5: must be that of an annotation in BASE/train_annotations.json; mend the file",
        ),
        (
            "train_questions",
            lambda c: c | {"questions": [asked(90, "q", 123)]},
            "questions[0].image_id=123: must be 9, as in BASE/train_annotations.json; mend the file",
        ),
        ("test_questions", lambda c: c | {"questions": c["questions"] * 2}, "questions[3].question_id=1230: must be"),
        ("test_questions", lambda c: c | {"questions": [asked(90, 3, 9)]}, "questions[0].question=3: must be a text"),
        (
            "test_questions",
            lambda c: c | {"questions": [asked(90, "q", "../../9")]},
            "questions[0].image_id='../../9': must be a whole number from 0; mend the file",
        ),
        (
            "test_annotations",
            lambda c: c | {"annotations": [told(90, 9, ["a"]), told(91, 9, ["a", "b"])]},
            "annotations[1].answers=2: must be 1 answers, as the first has; mend the file",
        ),
        (
            "test_annotations",
            lambda c: c | {"annotations": [told(90, 9, [["a"]])]},
            "annotations[0].answers=[{'answer': ['a'], 'answer_confidence': 'yes', 'answer_id': 1}]: must be a list",
        ),
        (
            "test_annotations",
            lambda c: c | {"annotations": [told(90, 9, ["a"], "colour")]},
            "answer_type='colour': must",
        ),
        ("test_annotations", lambda c: c | {"annotations": [told(90, 9, ["a"])] * 2}, "annotations[1].question_id=90:"),
    ],
)
def test_bad_files_of_vqa(vqa, tmp_path, file, change, message):
    changed(tmp_path, file, change)
    told = refused(vqa, tmp_path)
    assert told.startswith(f"data.{file}: BASE/{file}.json")
    assert message in told


@pytest.mark.parametrize(
    "content", [b"[[1, 2", b"\xff\xfe\x00", b"[" * 100_000, b'{"questions": [' + b"9" * 5000 + b"]}"]
)
def test_a_file_that_is_no_json(vqa, tmp_path, content):
    (tmp_path / "train_questions.json").write_bytes(content)
    told = refused(vqa, tmp_path)
    assert told.startswith("data.train_questions: BASE/train_questions.json is not valid JSON (")
    assert told.endswith("); is it whole?")


def test_a_file_that_memory_does_not_hold(vqa, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemAvailable: 1 kB\n")
    told = refused(vqa, tmp_path)
    assert re.match(
        r"data\.train_\w+: BASE/train_\w+\.json: its records take 0\.0 GB, 0\.0 GB are free; use fewer", told
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_questions": "no.json"}, "data.train_questions='no.json': no such file in BASE or "),
        ({"train_questions": "train2014"}, "data.train_questions='train2014': BASE/train2014 is no file; name one"),
        ({"test_images": "none"}, "data.test_images='none': no such folder in BASE or "),
        ({"limit": 4}, "data.limit=4: only 3 training questions are there; use limit <= 3"),
        ({"test_limit": 4}, "data.test_limit=4: only 3 test questions are there; use test_limit <= 3"),
        ({"validation": 3}, "data.validation=3: leaves nothing to train on, there are 3 training questions"),
    ],
)
def test_what_is_not_there(vqa, tmp_path, change, message):
    assert refused({**vqa, **change}, tmp_path).startswith(message)


def test_a_folder_of_another_form(easy, tmp_path):
    spec = easy()
    assert refused({**spec, "path": "easy/train"}, tmp_path) == (
        "data.train='BASE/easy/train/train/questions.json': no such file"
    )
    assert refused({**spec, "path": "none"}, tmp_path).startswith("data.path='none': no such folder in BASE or ")
