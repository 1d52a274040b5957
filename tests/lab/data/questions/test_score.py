from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.data.questions import accuracy


def brute_force(predicted, people):
    """Over every way to ask all but one of them."""
    found = [min(others.count(predicted) / 3, 1.0) for others in combinations(people, len(people) - 1)]
    return sum(found) / len(found)


@given(
    st.integers(2, 10).flatmap(
        lambda people: st.lists(
            st.tuples(st.integers(0, 3), st.lists(st.integers(-1, 3), min_size=people, max_size=people)),
            min_size=1,
            max_size=5,
        )
    )
)
def test_it_is_the_mean_over_all_ways_to_leave_one_out(questions):
    predicted, targets = (torch.tensor(list(column)) for column in zip(*questions))
    found = accuracy(predicted, targets)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([brute_force(*question) for question in questions], abs=1e-12)


@pytest.mark.parametrize(("count", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_of_ten_people(count, score):
    people = torch.tensor([[7] * count + [2] * (10 - count)])
    assert accuracy(torch.tensor([7]), people).item() == pytest.approx(score)


def test_of_one_person():
    found = accuracy(torch.tensor([3, 3, 0, 1]), torch.tensor([[3], [2], [-1], [1]]))
    assert found.tolist() == [1, 0, 0, 1]


def test_an_answer_that_is_not_kept_is_never_right():
    assert accuracy(torch.tensor([-1]), torch.full((1, 10), -1)).item() == 0
