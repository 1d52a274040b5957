"""Answers: which texts are the same answer, of what kind it is, which are kept, and their numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

KINDS = ("yes/no", "number", "other")
"""The types of answers that the VQA data set tells apart."""

_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_NEGATED = "ai are ca could did do does had has have is might must need should was were wo would"
_CONTRACTED = {f"{verb}nt": f"{verb}n't" for verb in _NEGATED.split()} | {
    f"{who}{verb}": f"{who}'{verb}"
    for who, verbs in {"you": "re ve ll", "they": "re ve ll", "we": "ve", "i": "m ve", "that": "s", "what": "s"}.items()
    for verb in verbs.split()
}
_MARKS = re.escape(';/[]"{}()=+\\_-><@`,?!')
_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)
_PERIOD = re.compile(r"\.(?!\d)", re.ASCII)  # not that of 2.5


def normalise(text: str) -> str:
    """The text that the VQA evaluation compares: lower case, no punctuation, no articles, small numbers as digits.

    A mark at the edge of a word goes, and one between two letters becomes a space; in a text with a number such as
    1,000 all marks go. Of the evaluation's list of contractions ("dont" is "don't") the common ones are known.
    Source: Antol et al. 2015, section 4, and the evaluation that the data set's authors released.
    """
    text = " ".join(text.split()).lower()
    thousands = _COMMA_IN_NUMBER.search(text) is not None
    marked = text
    for mark in dict.fromkeys(re.findall(f"[{_MARKS}]", text)):
        edge = f"{mark} " in text or f" {mark}" in text or thousands
        marked = marked.replace(mark, "" if edge else " ")
    words = [_DIGITS.get(word, word) for word in _PERIOD.sub("", marked).split()]
    return " ".join(_CONTRACTED.get(word, word) for word in words if word not in _ARTICLES)


def kind_of(answer: str) -> int:
    """The index in ``KINDS`` of an answer of a data set that does not tell it."""
    if answer in ("yes", "no"):
        return 0
    return 1 if answer in _DIGITS or re.fullmatch(r"[+-]?\d+([.,]\d+)*", answer, re.ASCII) else 2


def most_frequent_first(answers: Sequence[str]) -> tuple[str, ...]:
    """The answers that several people gave to one question: the most frequent in front, of equals the first given."""
    top = Counter(answers).most_common(1)[0][0]
    place = answers.index(top)
    return (top, *answers[:place], *answers[place + 1 :])


def keep_answers(answers: Iterable[str], count: int | None) -> tuple[str, ...]:
    """The ``count`` most frequent ones, all for None; the most frequent first, of equals by letters."""
    counts = Counter(answers)
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:count])


def numbers_of(answers: Sequence[Sequence[str]], kept: Sequence[str]) -> Int64[Tensor, "questions people"]:
    """The answers to each question as indices into ``kept``; -1 for others."""
    index = {answer: number for number, answer in enumerate(kept)}
    return torch.tensor([[index.get(answer, -1) for answer in given] for given in answers], dtype=torch.int64)
