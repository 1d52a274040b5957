"""Which questions about which pictures a recipe asks for."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from torchreaper.lab.data.spec import Judge, check_judge, check_split_seed, check_workers
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import Settings, did_you_mean, show

NAMES = ("easy-vqa", "vqa")
_FILES = tuple(f"{part}_{what}" for part in ("train", "test") for what in ("questions", "annotations", "images"))
_ANSWERS = {"easy-vqa": None, "vqa": 1000}


class QuestionsSpec(Settings):
    """The recipe's ``data:`` section of ``task: vqa``. Checking it opens and imports nothing; `load_questions` does.

    Attributes:
        name: "easy-vqa" (5,000 pictures of shapes, 64x64, and 48,248 questions, as the package easy-vqa carries them)
            or "vqa" (VQA v1 or v2 by path).
        path: easy-vqa: a folder of that form instead, with ``train`` and ``test``, each with ``questions.json``
            ([question, answer, number of the picture] each) and ``images`` (0.png, 1.png, ...).
        train_questions, train_annotations: vqa: the JSON files as they are published.
        train_images: vqa: the folder of its pictures, whose names end in their numbers as COCO's do
            (COCO_train2014_000000000123.jpg).
        test_questions, test_annotations, test_images: vqa: likewise; those of the validation set, as the answers of the
            test set are not public.
        answers: so many most frequent answers of the training questions can be given; None: all of easy-vqa, 1000 of
            vqa. Training questions with another answer are left out; test questions with another count as wrong.
        vocabulary: how often a word must occur in the training questions to be known.
        words: longest question; longer ones are cut. None: the longest training question.
        size: bring pictures to ``size`` x ``size`` pixels: the shorter side, then the middle. None: all have one size.
        memory: keep all pictures in memory as pixels, each once; else they are read when they are needed.
        workers: without ``memory``: processes that read. It changes no number.
        limit: training questions kept, at random; None: all. test_limit: test questions kept, likewise.
        validation: training questions held out, before ``limit``: all that belong to some pictures, as many as go into
            that number whole, so that no picture is on both sides.
        judge: "test", or "validation": the test questions are left alone, see ``DataSpec``.
        split_seed: the random choice of limit, test_limit and validation.
    """

    name: str
    path: str | None = None
    train_questions: str | None = None
    train_annotations: str | None = None
    train_images: str | None = None
    test_questions: str | None = None
    test_annotations: str | None = None
    test_images: str | None = None
    answers: int | None = Field(default=None, ge=2, validate_default=True)
    vocabulary: int = Field(default=1, ge=1)
    words: int | None = Field(default=None, ge=1)
    size: int | None = Field(default=None, ge=1)
    memory: bool = True
    workers: int = Field(default=2, ge=0)
    limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)
    validation: int = Field(default=0, ge=0)
    judge: Judge = "test"
    split_seed: int = Field(default=0, ge=0)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in NAMES:
            raise ValueError(f"unknown data of questions; {did_you_mean(name, NAMES)}")
        return name

    @field_validator("answers", mode="before")
    @classmethod
    def _most(cls, answers: Any, info: ValidationInfo) -> Any:
        return _ANSWERS.get(info.data.get("name", "")) if answers is None else answers

    @model_validator(mode="after")
    def _together(self) -> QuestionsSpec:
        for key in ("path", *_FILES):
            value, belongs = getattr(self, key), (key == "path") == (self.name == "easy-vqa")
            if value is not None and not belongs:
                raise UserError(f"{key}={show(value)}: has no effect with name={self.name!r}; leave it out")
            if not value and belongs and (key != "path" or value == ""):
                raise UserError(f"{key}: is missing; name={self.name!r} needs it")
        check_workers(self)
        check_split_seed(self)
        check_judge(self)
        return self
