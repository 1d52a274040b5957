"""Questions as numbers: words, which of them are known, and rows of word numbers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

PADDING, UNKNOWN = 0, 1
SPECIAL = ("<pad>", "<unknown>")
"""What the first two numbers of every vocabulary stand for; no word can look like that."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def tokenise(text: str) -> tuple[str, ...]:
    """The words of a text in lower case: letters and digits, with apostrophes inside ("what's")."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return tuple(_WORD.findall(plain))


def vocabulary_of(questions: Iterable[Sequence[str]], least: int = 1) -> tuple[str, ...]:
    """``SPECIAL``, then the words that occur ``least`` times or more: the most frequent first, of equals by letters."""
    counts = Counter(word for question in questions for word in question)
    known = [word for word, count in counts.items() if count >= least]
    return (*SPECIAL, *sorted(known, key=lambda word: (-counts[word], word)))


def encode(
    questions: Sequence[Sequence[str]], vocabulary: Sequence[str], words: int
) -> Int64[Tensor, "questions words"]:
    """Word numbers of each question, cut to ``words``, with ``PADDING`` at the end and ``UNKNOWN`` for other words."""
    numbers = {word: number for number, word in enumerate(vocabulary)}
    rows = torch.full((len(questions), words), PADDING, dtype=torch.int64)
    for row, question in zip(rows.numpy(), questions):
        known = [numbers.get(word, UNKNOWN) for word in question[:words]]
        row[: len(known)] = known
    return rows
