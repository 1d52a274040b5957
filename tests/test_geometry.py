from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchreaper as tr
from torchreaper.geometry import expected_cosine, overlap


def matrix(filters: int, dims: int, seed: int) -> torch.Tensor:
    return torch.randn(filters, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


shapes = {"filters": st.integers(1, 12), "dims": st.integers(1, 12), "seed": st.integers(0, 10**6)}


@given(**shapes)
def test_paper_is_the_formula(filters, dims, seed):
    """O_f = sum_j P[f, j] / J with P = |W^ W^T - I|, written out."""
    rows = matrix(filters, dims, seed)
    expected = []
    for f in range(filters):
        total = 0.0
        for j in range(filters):
            cosine = float(rows[f] @ rows[j] / (rows[f].norm() * rows[j].norm()))
            total += abs(cosine - (1.0 if j == f else 0.0))
        expected.append(total / filters)
    torch.testing.assert_close(overlap(rows), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@given(**shapes)
def test_released_is_the_formula(filters, dims, seed):
    rows = matrix(filters, dims, seed)
    whole = rows / rows.norm()
    products = whole @ whole.T
    products.fill_diagonal_(0)
    torch.testing.assert_close(overlap(rows, "released"), products.mean(dim=1).abs(), rtol=1e-9, atol=1e-12)


@given(**shapes, scale=st.floats(1e-30, 1e30))
def test_length_and_sign_of_a_filter_do_not_matter(filters, dims, seed, scale):
    rows = matrix(filters, dims, seed)
    changed = rows.clone()
    changed[0] *= -scale
    torch.testing.assert_close(overlap(rows), overlap(changed), rtol=1e-9, atol=1e-12)
    assert (overlap(rows) <= 1).all()


def test_ends_of_the_scale():
    assert not overlap(torch.eye(5)).any()
    torch.testing.assert_close(overlap(torch.ones(5, 7)), torch.full((5,), 0.8, dtype=torch.float64))
    assert not overlap(torch.zeros(3, 4)).any()
    assert not overlap(torch.ones(1, 9)).any()


@pytest.mark.parametrize(("filters", "dims"), [(32, 27), (32, 288), (64, 9), (16, 576), (5, 1)])
def test_corrected_is_one_for_random_directions(filters, dims):
    scores = torch.cat([overlap(matrix(filters, dims, seed), "corrected") for seed in range(40)])
    assert scores.mean().item() == pytest.approx(1.0, abs=0.02)


def test_expected_cosine():
    assert expected_cosine(1) == pytest.approx(1.0)
    assert expected_cosine(2) == pytest.approx(2 / torch.pi)
    assert expected_cosine(3) == pytest.approx(0.5)
    assert expected_cosine(10_000) == pytest.approx((2 / (torch.pi * 10_000)) ** 0.5, rel=1e-4)


def test_released_ranks_otherwise_than_the_paper():
    """Their rank correlation on random filters is about 0.13: two different criteria under one name."""

    def ranks(x):
        return x.argsort().argsort().double()

    pairs = [(overlap(w), overlap(w, "released")) for w in (matrix(32, 288, seed) for seed in range(60))]
    correlation = torch.stack([torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1] for a, b in pairs]).mean()
    assert 0.05 < correlation < 0.22


@given(groups=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_groups_are_compared_inside(groups, seed):
    weight = matrix(3 * groups, 8, seed).view(3 * groups, 2, 2, 2)
    together = overlap(weight, groups=groups)
    apart = torch.cat([overlap(block) for block in weight.split(3)])
    assert torch.equal(together, apart)


def test_many_filters_go_in_blocks():
    rows = matrix(700, 8, 0)
    unit = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(overlap(rows), ((unit @ unit.T).abs() - torch.eye(700)).sum(1) / 700)


def test_wrong_variant_is_named():
    with pytest.raises(tr.ReaperError, match="variant='best': must be one of paper, released, corrected"):
        tr.criteria.Orthogonality("best")
