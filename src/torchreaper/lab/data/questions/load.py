"""From a ``data:`` section of questions to what a network reads."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchreaper.lab.data.cache import cached, state_of
from torchreaper.lab.data.finding import find_file, find_folder
from torchreaper.lab.data.load import images_of
from torchreaper.lab.data.questions.answers import keep_answers, numbers_of
from torchreaper.lab.data.questions.asked import Asked, read_easy, read_vqa
from torchreaper.lab.data.questions.choosing import hold_out, limited
from torchreaper.lab.data.questions.pictures import Pictures, numbered
from torchreaper.lab.data.questions.spec import QuestionsSpec
from torchreaper.lab.data.questions.split import Questions
from torchreaper.lab.data.questions.words import encode, tokenise, vocabulary_of
from torchreaper.lab.data.split import Readable, judged_on
from torchreaper.lab.data.stream import Part
from torchreaper.lab.data.table import Progress
from torchreaper.lab.errors import UserError

logger = logging.getLogger("torchreaper.lab")
PACKAGE = "easy_vqa"


@dataclass(frozen=True)
class QuestionsData:
    """What a run is trained and judged on: as `Dataset` for pictures.

    Attributes:
        train, validation, test: the questions.
        classes: the texts of the answers that can be given.
        mean, std: per channel, in units of full brightness (0 to 1), over the different pictures of ``train``.
        vocabulary: the words by their numbers; 0 is "<pad>" and 1 "<unknown>".
        words: the length of every row of questions.
        left_out: how many training questions have an answer that cannot be given, and are not in ``train``.
    """

    train: Questions
    validation: Questions | None
    test: Questions
    classes: tuple[str, ...]
    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]
    vocabulary: tuple[str, ...]
    words: int
    left_out: int


class _Stored(NamedTuple):
    """Where the questions of a training or test set are."""

    key: str
    files: tuple[Path, ...]
    folder: Path
    images: str
    read: Callable[..., Asked]


def load_questions(spec: QuestionsSpec, base: Path | str = ".", *, progress: Progress | None = None) -> QuestionsData:
    """Load the questions of ``spec`` and the pictures they are about, or prepare to read those.

    Relative paths start at ``base``, else at the current folder. Only pictures that are used are decoded, each once.
    The last data sets are kept as those of `load` are; do not write to them.
    Raises ``UserError``: no such file, a file of another form (see `read_easy`, `read_vqa`), a missing picture, one
    that cannot be decoded or has another size, fewer questions than asked for, more than memory holds, and for
    "easy-vqa" without a path where that package is not installed.
    """
    train, test = (_stored(spec, Path(base), part) for part in ("train", "test"))
    pictures = {one.folder: numbered(one.folder, one.images) for one in (train, test)}
    files = [path for one in (train, test) for path in one.files]
    if spec.memory:
        files += [folder / name for folder, names in pictures.items() for name in names.values()]
    read = partial(_load, spec, train, test, pictures, progress)
    return judged_on(spec.judge, cached(spec, state_of(files), read))


def _stored(spec: QuestionsSpec, base: Path, part: str) -> _Stored:
    key = f"data.{part}"
    if spec.name == "vqa":
        names = (f"{part}_questions", f"{part}_annotations")
        files = tuple(find_file(getattr(spec, name), base, f"data.{name}") for name in names)
        images = f"{part}_images"
        folder = find_folder(getattr(spec, images), base, f"data.{images}", "the folder of the pictures")
        return _Stored(key, files, folder, f"data.{images}", read_vqa)
    root = _package() if spec.path is None else find_folder(spec.path, base, "data.path", "the folder of easy-VQA")
    questions = find_file(str(root / part / "questions.json"), base, key)
    folder = find_folder(str(root / part / "images"), base, key, "the folder of the pictures")
    return _Stored(key, (questions,), folder, key, read_easy)


def _package() -> Path:
    """The data of the package easy-vqa, which is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "data.name='easy-vqa': the package that carries its pictures is not installed; pip install easy-vqa, or "
            "set data.path"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _load(
    spec: QuestionsSpec, train: _Stored, test: _Stored, pictures: dict[Path, dict[int, str]], progress: Progress | None
) -> QuestionsData:
    asked, judged = (one.read(*one.files, one.folder, pictures[one.folder], one.key) for one in (train, test))
    seed = spec.split_seed
    kept, held_out = hold_out(torch.tensor(asked.pictures), spec.validation, seed=seed)
    classes = keep_answers((asked.answers[i][0] for i in kept.tolist()), spec.answers)
    known = frozenset(classes)
    with_answer = kept[torch.tensor([asked.answers[i][0] in known for i in kept.tolist()])]
    left_out = len(kept) - len(with_answer)
    if left_out:
        logger.info(
            "%d of %d training questions are left out: their answer is none of the %d kept",
            *(left_out, len(kept), len(classes)),
        )
    index = {
        "train": limited(with_answer, spec.limit, seed=seed, key="limit", what="training"),
        "test": limited(torch.arange(len(judged.texts)), spec.test_limit, seed=seed, key="test_limit", what="test"),
    }
    if spec.validation:
        index["validation"] = held_out
    sets = {what: judged if what == "test" else asked for what in index}
    texts = {what: [tokenise(sets[what].texts[i]) for i in index[what].tolist()] for what in index}
    vocabulary = vocabulary_of(texts["train"], spec.vocabulary)
    words = spec.words or max(1, *map(len, texts["train"]))
    different = {what: _pictures(sets[what], index[what]) for what in index}
    images = images_of(
        {what: part for what, (part, _) in different.items()},
        classes,
        size=spec.size,
        memory=spec.memory,
        workers=spec.workers,
        progress=progress,
    )

    def split(what: str, pictures: Readable) -> Questions:
        chosen, one = index[what].tolist(), sets[what]
        return Questions(
            pictures,
            different[what][1],
            encode(texts[what], vocabulary, words),
            numbers_of([one.answers[i] for i in chosen], classes),
            torch.tensor([one.kinds[i] for i in chosen]),
        )

    return QuestionsData(
        split("train", images.train),
        split("validation", images.validation) if images.validation is not None else None,
        split("test", images.test),
        classes,
        images.mean,
        images.std,
        vocabulary,
        words,
        left_out,
    )


def _pictures(asked: Asked, index: Int64[Tensor, " n"]) -> tuple[Part, Int64[Tensor, " n"]]:
    """The different pictures of some questions, and the place of each one's there."""
    names = [asked.file(i) for i in index.tolist()]
    files = tuple(dict.fromkeys(names))
    place = {name: number for number, name in enumerate(files)}
    rows = torch.arange(len(files))
    part = Part(Pictures(asked.folder, files, asked.key), rows, torch.zeros_like(rows))
    return part, torch.tensor([place[name] for name in names])
