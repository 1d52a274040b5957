import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.data.questions.choosing import hold_out, limited
from torchreaper.lab.errors import UserError

PICTURES = st.lists(st.integers(0, 6), min_size=2, max_size=30)


@given(PICTURES, st.integers(0, 20), st.integers(0, 3))
def test_all_questions_about_a_picture_go_to_one_side(pictures, count, seed):
    pictures = torch.tensor(pictures)
    try:
        kept, held = hold_out(pictures, count, seed=seed)
    except UserError:
        sizes = torch.unique(pictures, return_counts=True)[1]
        assert count >= len(pictures) or count < sizes.min()
        return
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(pictures)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    assert not set(pictures[kept].tolist()) & set(pictures[held].tolist())
    assert len(held) <= count
    left = torch.unique(pictures[kept], return_counts=True)[1]
    assert (left > count - len(held)).all()


@given(st.integers(1, 30), st.integers(0, 3), st.data())
def test_a_limit_takes_some_at_random_in_order(count, seed, data):
    index = torch.arange(count) * 2
    limit = data.draw(st.integers(1, count))
    found = limited(index, limit, seed=seed, key="limit", what="training").tolist()
    assert found == sorted(set(found))
    assert len(found) == limit
    assert set(found) <= set(index.tolist())
    assert torch.equal(limited(index, None, seed=seed, key="limit", what="training"), index)


def test_another_seed_chooses_others():
    pictures = torch.arange(100) // 2
    assert not torch.equal(hold_out(pictures, 30, seed=0)[1], hold_out(pictures, 30, seed=1)[1])
    first, second = (limited(pictures, 30, seed=seed, key="limit", what="training") for seed in (0, 1))
    assert not torch.equal(first, second)


def refused(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_too_few_questions():
    pictures = torch.tensor([0, 0, 0, 1, 1])
    assert refused(hold_out, pictures, 5, seed=0) == (
        "data.validation=5: leaves nothing to train on, there are 5 training questions"
    )
    assert refused(hold_out, pictures, 1, seed=0) == (
        "data.validation=1: every picture has 2 questions or more, which stay together; use validation >= 2"
    )
    assert refused(limited, pictures, 6, seed=0, key="test_limit", what="test") == (
        "data.test_limit=6: only 5 test questions are there; use test_limit <= 5"
    )
