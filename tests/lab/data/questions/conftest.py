"""Small data sets of questions in the forms of easy-VQA and of VQA v2, with real pictures, made in tmp_path."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

SIDE = 8


def pixels(number, side=SIDE):
    """The picture of this number, of one colour, so that it is the same after any coding."""
    return np.full((side, side, 3), (number * 40 % 256, 200, number * 7 % 256), dtype=np.uint8)


@pytest.fixture
def installed():
    """Skips where the package that carries easy-VQA is not there."""
    if importlib.util.find_spec("easy_vqa") is None:
        pytest.skip("easy-vqa is not installed")


@pytest.fixture
def easy(tmp_path):
    """easy(train=rows, test=rows) -> the arguments of a QuestionsSpec; ``rows`` are [question, answer, picture]."""

    def easy(train=None, test=None, pictures=4):
        train = train or [[f"what is {k}?", ["red", "yes", "2"][k % 3], k % pictures] for k in range(12)]
        for part, rows in (("train", train), ("test", test or list(train)[:6])):
            folder = tmp_path / "easy" / part / "images"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(pictures):
                Image.fromarray(pixels(number)).save(folder / f"{number}.png")
            (folder.parent / "questions.json").write_text(json.dumps(rows))
        return {"name": "easy-vqa", "path": "easy"}

    easy.pixels = pixels
    return easy


def asked(number, text, picture):
    return {"image_id": picture, "question": text, "question_id": number}


def told(number, picture, answers, kind="other"):
    given = [{"answer": one, "answer_confidence": "yes", "answer_id": k} for k, one in enumerate(answers, 1)]
    return {
        "question_type": "what",
        "multiple_choice_answer": answers[0],
        "answers": given,
        "image_id": picture,
        "answer_type": kind,
        "question_id": number,
    }


@pytest.fixture
def vqa(tmp_path):
    """A VQA v2 folder of two pictures and three questions each way -> the arguments of a QuestionsSpec."""

    def write(part, year, questions, annotations):
        head = {"info": {}, "data_type": "mscoco", "data_subtype": f"{part}2014", "license": {}}
        (tmp_path / f"{part}_questions.json").write_text(json.dumps({**head, "questions": questions}))
        (tmp_path / f"{part}_annotations.json").write_text(json.dumps({**head, "annotations": annotations}))

    spec = {"name": "vqa"}
    for part in ("train", "test"):
        folder = tmp_path / f"{part}2014"
        folder.mkdir()
        for number in (9, 123):
            Image.fromarray(pixels(number, 16)).save(folder / f"COCO_{part}2014_{number:012d}.jpg", quality=95)
        questions = [asked(1230, "What's on the table?", 123), asked(90, "How many dogs?", 9), asked(91, "Is it?", 9)]
        annotations = [
            told(1230, 123, ["A cat", "cat", "the cat.", "dog", "cat", "dog", "cow", "cow", "cow", "bird"]),
            told(90, 9, ["Two"] * 6 + ["2"] * 3 + ["three"], "number"),
            told(91, 9, ["no"] * 5 + ["yes"] * 5, "yes/no"),
        ]
        write(part, 2014, questions, annotations)
        spec |= {f"{part}_{what}": f"{part}_{what}.json" for what in ("questions", "annotations")}
        spec[f"{part}_images"] = f"{part}2014"
    return spec
