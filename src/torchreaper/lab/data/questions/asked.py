"""Questions as they are stored: read from the files of easy-VQA and of VQA, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from torchreaper.lab.data.json_file import read_json
from torchreaper.lab.data.questions.answers import KINDS, kind_of, most_frequent_first, normalise
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import show


@dataclass(frozen=True, eq=False)
class Asked:
    """The questions of a training or a test set, in step.

    Attributes:
        key: where they are from in a recipe: "data.train".
        texts: the questions. answers: to each one those of all people asked, the most frequent first.
        kinds: of each answer, as an index into ``KINDS``.
        pictures: the number of the picture that each is about.
        files: the pictures' names in ``folder``, by their numbers.
    """

    key: str
    texts: list[str]
    answers: list[tuple[str, ...]]
    kinds: list[int]
    pictures: list[int]
    folder: Path
    files: Mapping[int, str]

    def file(self, question: int) -> str:
        """The name of the picture of a question; ``UserError`` where there is none."""
        number = self.pictures[question]
        if number not in self.files:
            raise UserError(
                f"{self.key}: picture {number} of question {self.texts[question]!r} is missing in {self.folder}; put "
                "it there, or leave its questions out"
            )
        return self.files[number]


def read_easy(questions: Path, folder: Path, files: Mapping[int, str], key: str) -> Asked:
    """The questions of easy-VQA: a list of [question, answer, number of the picture].

    Raises ``UserError``, which names ``key``, the file and the place, for anything else.
    """
    rows = _records(read_json(questions, key), questions, key, "questions")
    for place, row in enumerate(rows):
        fits = isinstance(row, list) and len(row) == 3 and all(isinstance(one, str) for one in row[:2])
        if not fits or not _is_number(row[2]):
            _refuse(key, questions, f"[{place}]", row, "a list [question, answer, number of the picture]")
    answers = [" ".join(row[1].split()).lower() for row in rows]
    return Asked(
        key,
        [row[0] for row in rows],
        [(answer,) for answer in answers],
        [kind_of(answer) for answer in answers],
        [row[2] for row in rows],
        folder,
        files,
    )


def read_vqa(questions: Path, annotations: Path, folder: Path, files: Mapping[int, str], key: str) -> Asked:
    """The questions of VQA v1 or v2 with the answers that people gave, normalised; annotations of others are left out.

    Raises ``UserError``, which names the key (``key``_questions or ``key``_annotations), the file and the place: for
    files of another form, a question without an annotation or with one for another picture, ids that occur twice, and
    where not all questions have the same number of answers.
    """
    asked_key, told_key = f"{key}_questions", f"{key}_annotations"
    told: dict[int, tuple[int, int, tuple[str, ...]]] = {}
    shared, people = cache(normalise), 0
    for place, one in enumerate(_listed(annotations, told_key, "annotations")):
        number, picture, where = *_ids(one, told_key, annotations, place, "annotations"), f"annotations[{place}]"
        if number in told:
            _refuse(told_key, annotations, f"{where}.question_id", number, "another one's, it occurs twice")
        kind, given = one.get("answer_type"), one.get("answers")
        if kind not in KINDS:
            _refuse(told_key, annotations, f"{where}.answer_type", kind, f"one of {', '.join(KINDS)}")
        texts = [answer.get("answer") if isinstance(answer, dict) else None for answer in given or ()] if isinstance(
            given, list
        ) else []  # fmt: skip
        if not texts or not all(isinstance(text, str) for text in texts):
            _refuse(told_key, annotations, f"{where}.answers", given, "a list of {answer: text}, one for each person")
        people = people or len(texts)
        if len(texts) != people:
            _refuse(told_key, annotations, f"{where}.answers", len(texts), f"{people} answers, as the first has")
        told[number] = picture, KINDS.index(kind), most_frequent_first([shared(text) for text in texts])
    asked = Asked(key, [], [], [], [], folder, files)
    seen: set[int] = set()
    for place, one in enumerate(_listed(questions, asked_key, "questions")):
        number, picture = _ids(one, asked_key, questions, place, "questions")
        where, text = f"questions[{place}]", one.get("question")
        if not isinstance(text, str):
            _refuse(asked_key, questions, f"{where}.question", text, "a text")
        if number in seen:
            _refuse(asked_key, questions, f"{where}.question_id", number, "another one's, it occurs twice")
        seen.add(number)
        if number not in told:
            _refuse(asked_key, questions, f"{where}.question_id", number, f"that of an annotation in {annotations}")
        other, kind_number, answers = told[number]
        if other != picture:
            _refuse(asked_key, questions, f"{where}.image_id", picture, f"{other}, as in {annotations}")
        asked.texts.append(text)
        asked.answers.append(answers)
        asked.kinds.append(kind_number)
        asked.pictures.append(picture)
    return asked


def _listed(path: Path, key: str, name: str) -> list[Any]:
    """The list ``name`` of a file that holds one object."""
    whole = read_json(path, key)
    if not isinstance(whole, dict) or name not in whole:
        raise UserError(f"{key}: {path} has no list {name!r}; must be a file of VQA v1 or v2, as published")
    return _records(whole[name], path, key, name)


def _records(rows: Any, path: Path, key: str, name: str) -> list[Any]:
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{key}: {path} has no {name}, but {show(rows)}; must be a list of them")
    return rows


def _ids(one: Any, key: str, path: Path, place: int, name: str) -> tuple[int, int]:
    """The question's and the picture's number of a record."""
    if not isinstance(one, dict):
        _refuse(key, path, f"{name}[{place}]", one, "an object with question_id and image_id")
    for what in ("question_id", "image_id"):
        if not _is_number(one.get(what)):
            _refuse(key, path, f"{name}[{place}].{what}", one.get(what), "a whole number from 0")
    return one["question_id"], one["image_id"]


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _refuse(key: str, path: Path, where: str, value: object, must: str) -> NoReturn:
    raise UserError(f"{key}: {path}, {where}={show(value)}: must be {must}; mend the file")
