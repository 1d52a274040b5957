from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.data.questions.answers import (
    KINDS,
    keep_answers,
    kind_of,
    most_frequent_first,
    normalise,
    numbers_of,
)

GIVEN = st.lists(st.sampled_from("abcd"), min_size=1, max_size=10)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Yes", "yes"),
        ("  The\nRed  car ", "red car"),
        ("a", ""),
        ("two", "2"),
        ("none", "0"),
        ("twenty", "twenty"),
        ("1,000", "1000"),
        ("1,000 m/s", "1000 ms"),  # marks all go beside such a number
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("yes, it is!", "yes it is"),
        ("2.5", "2.5"),
        ("st. john", "st john"),
        ("o'clock", "o'clock"),
        ("dont know", "don't know"),
        ("its", "its"),
        ("(left)", "left"),
        ("t-shirt", "t shirt"),
        ("- 3", "3"),
    ],
)
def test_answers_that_the_evaluation_takes_for_the_same(text, same):
    assert normalise(text) == same


@given(st.text("aAnt he.,1/-?! two"))
def test_what_is_left_has_no_articles_marks_or_double_spaces(text):
    left = normalise(text)
    assert left == left.lower() == " ".join(left.split())
    assert not set(left) & set(",/-?!")
    assert not {"a", "an", "the", "two", "one"} & set(left.split())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("yes", 0), ("no", 0), ("2", 1), ("-1.5", 1), ("1,000", 1), ("three", 1), ("teal", 2), ("not", 2), ("2 dogs", 2)],
)
def test_the_kind_of_an_answer(answer, kind):
    assert kind_of(answer) == kind
    assert KINDS == ("yes/no", "number", "other")


@given(GIVEN)
def test_the_most_frequent_comes_first_and_none_is_lost(answers):
    found = most_frequent_first(answers)
    counts = Counter(answers)
    assert Counter(found) == counts
    best = [answer for answer in answers if counts[answer] == max(counts.values())]
    assert found[0] == best[0]
    rest = list(answers)
    rest.remove(found[0])
    assert list(found[1:]) == rest


@given(GIVEN, st.none() | st.integers(1, 5))
def test_the_most_frequent_answers_are_kept_and_numbered(answers, count):
    kept = keep_answers(answers, count)
    counts = Counter(answers)
    assert len(kept) == min(len(counts), count or 5)
    assert list(kept) == sorted(counts, key=lambda answer: (-counts[answer], answer))[: len(kept)]
    numbers = numbers_of([(answer, "z") for answer in answers], kept)
    assert numbers.shape == (len(answers), 2)
    assert (numbers[:, 1] == -1).all()
    assert [kept[n] if n >= 0 else None for n in numbers[:, 0]] == [a if a in kept else None for a in answers]
