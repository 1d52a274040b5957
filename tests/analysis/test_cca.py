from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA

import torchreaper as tr
from torchreaper.analysis import between_runs, canonical_correlations, cca, chance_cca, pairwise_cca


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def related(samples: int, p: int, q: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sides that share some of what they hold."""
    x, mixing, own = numbers(samples, p, seed=seed), numbers(p, q, seed=seed + 1), numbers(samples, q, seed=seed + 2)
    return x, x @ mixing / p**0.5 + own


def invertible(n: int, seed: int) -> torch.Tensor:
    """Well enough conditioned: orthogonal times scales between 1/4 and 4 times orthogonal."""
    scales = 4.0 ** (2 * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)
    left, right = (torch.linalg.qr(numbers(n, n, seed=seed + k))[0] for k in (1, 2))
    return left @ torch.diag(scales) @ right


sides = {"p": st.integers(1, 6), "q": st.integers(1, 6), "seed": st.integers(0, 10**6)}


@pytest.mark.parametrize(("p", "q"), [(1, 1), (3, 2), (2, 4), (5, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_against_sklearn(p, q, seed):
    x, y = related(80, p, q, seed)
    found = canonical_correlations(x, y)
    reference = CCA(n_components=min(p, q), max_iter=100_000, tol=1e-14)
    a, b = reference.fit_transform(x.numpy(), y.numpy())
    expected = sorted((abs(np.corrcoef(a[:, k], b[:, k])[0, 1]) for k in range(min(p, q))), reverse=True)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@given(**sides)
@settings(max_examples=30)
def test_against_the_eigenvalues_of_the_textbook(p, q, seed):
    """The squares are the eigenvalues of Sxx^-1 Sxy Syy^-1 Syx."""
    x, y = related(60, p, q, seed)
    x, y = x - x.mean(0), y - y.mean(0)
    matrix = torch.linalg.solve(x.T @ x, x.T @ y) @ torch.linalg.solve(y.T @ y, y.T @ x)
    squares = torch.linalg.eigvals(matrix).real.sort(descending=True).values[: min(p, q)]
    torch.testing.assert_close(canonical_correlations(x, y) ** 2, squares, rtol=0, atol=1e-9)


@given(**sides)
def test_bounds_order_and_symmetry(p, q, seed):
    x, y = related(30, p, q, seed)
    found = canonical_correlations(x, y)
    assert found.shape == (min(p, q),)
    assert found.dtype == torch.float64
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[:-1] >= found[1:]).all()
    torch.testing.assert_close(found, canonical_correlations(y, x), rtol=0, atol=1e-12)


@given(**sides, shift=st.floats(-100, 100), scale=st.floats(1e-200, 1e150))
def test_invertible_linear_maps_do_not_matter(p, q, seed, shift, scale):
    x, y = related(30, p, q, seed)
    mapped = canonical_correlations((x @ invertible(p, seed) + shift) * scale, y @ invertible(q, seed + 9))
    torch.testing.assert_close(mapped, canonical_correlations(x, y), rtol=0, atol=1e-8)


@given(**sides)
def test_one_where_one_side_is_made_of_the_other(p, q, seed):
    x = numbers(30, p, seed=seed)
    torch.testing.assert_close(
        canonical_correlations(x, x @ invertible(p, seed)), torch.ones(p, dtype=torch.float64), rtol=0, atol=1e-12
    )
    found = canonical_correlations(x, x @ numbers(p, q, seed=seed + 1))
    torch.testing.assert_close(found, torch.ones(min(p, q), dtype=torch.float64), rtol=0, atol=1e-9)


def test_orthogonal_sides_have_none():
    basis = torch.linalg.qr(torch.cat([torch.ones(20, 1, dtype=torch.float64), numbers(20, 5)], dim=1))[0][:, 1:]
    found = canonical_correlations(basis[:, :2], basis[:, 2:])
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@given(**sides)
@settings(max_examples=25)
def test_constant_and_collinear_columns_do_not_count(dtype, offset, p, q, seed):
    x, y = (side.to(dtype) for side in related(40, p, q, seed))
    x = x + offset
    more = torch.cat(
        [torch.full((40, 1), 0.1), x, x[:, :1] * 3 - 2, x @ numbers(p, 2, seed=seed + 3, dtype=dtype)], dim=1
    )
    found = canonical_correlations(more.to(dtype), y)
    assert len(found) == min(p, q)
    atol = 1e-9 if dtype == torch.float64 else 2e-3
    torch.testing.assert_close(found, canonical_correlations(x, y), rtol=0, atol=atol)


def test_a_feature_counts_whatever_its_scale():
    x = numbers(30, 3) * torch.tensor([1e-120, 1.0, 1e140], dtype=torch.float64)
    torch.testing.assert_close(canonical_correlations(x, numbers(30, 3)), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("constant", [torch.zeros(10, 2), torch.full((10, 1), 0.1), torch.empty(10, 0)])
def test_a_constant_side_has_no_correlations(constant):
    assert canonical_correlations(constant, numbers(10, 3)).shape == (0,)
    assert canonical_correlations(numbers(10, 3), constant).shape == (0,)
    assert between_runs(constant, numbers(10, 3)) == 0.0


@pytest.mark.parametrize(("samples", "features"), [(1, 1), (2, 1), (5, 4), (5, 9)])
def test_too_few_samples(samples, features):
    with pytest.raises(
        tr.ReaperError,
        match=f"[xy]: {samples} samples for {features} features span every direction.*more images or a coarser grid",
    ):
        canonical_correlations(torch.zeros(samples, 1), numbers(samples, features))
    with pytest.raises(tr.ReaperError, match=f"maps: {samples} samples for {features} features"):
        pairwise_cca(numbers(samples, 2, features))


def test_as_few_samples_as_possible():
    assert len(canonical_correlations(numbers(6, 1), numbers(6, 4, seed=1))) == 1


def test_samples_must_be_the_same():
    with pytest.raises(tr.ReaperError, match="x, y: 10 and 11 samples; both must hold the same samples"):
        canonical_correlations(numbers(10, 2), numbers(11, 2))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_not_finite(wrong):
    x, y, maps = numbers(10, 2), numbers(10, 2, seed=1), numbers(10, 3, 2)
    y[3, 1] = maps[0, 2, 1] = wrong
    with pytest.raises(tr.ReaperError, match="y: not finite; look for a run that has diverged"):
        canonical_correlations(x, y)
    for function in (pairwise_cca, lambda m: chance_cca(m, torch.Generator())):
        with pytest.raises(tr.ReaperError, match="maps: not finite"):
            function(maps)


def test_between_runs_is_the_mean():
    x, y = related(50, 4, 3, 0)
    assert between_runs(x, y) == pytest.approx(canonical_correlations(x, y).mean().item())
    assert between_runs(x, x.flip(1)) == pytest.approx(1.0)


def layer(images: int, filters: int, positions: int, seed: int) -> torch.Tensor:
    """Maps that share a part; the last filter repeats the first one's map but for one position that is constant."""
    maps = numbers(images, filters, positions, seed=seed) + numbers(images, 1, positions, seed=seed + 1)
    maps[:, -1] = maps[:, 0].flip(1)
    maps[:, -1, 0] = 1.0
    return maps


@pytest.mark.parametrize("work", [2**22, 40, 1])
@given(filters=st.integers(1, 7), positions=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_pairs_are_those_of_one_pair_at_a_time(work, filters, positions, seed):
    maps = layer(25, filters, positions, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cca, "_NUMBERS", work)
        found = pairwise_cca(maps)
    assert torch.equal(found.nan_to_num(2), found.T.nan_to_num(2))
    assert ((found >= 0) & (found <= 1) | found.isnan()).all()
    for f in range(filters):
        for g in range(filters):
            alone = canonical_correlations(maps[:, f], maps[:, g])
            assert found[f, g] == pytest.approx(alone.mean().item() if len(alone) else nan, abs=1e-10, nan_ok=True)


def test_a_constant_filter_has_no_correlation():
    """Not 0: a network of silent filters would look as if its filters had little in common."""
    maps = layer(25, 4, 3, 0)
    maps[:, 1] = torch.arange(3.0)
    found = pairwise_cca(maps)
    assert found[1].isnan().all()
    assert found[:, 1].isnan().all()
    others = pairwise_cca(maps[:, [0, 2, 3]])
    torch.testing.assert_close(found[[0, 2, 3]][:, [0, 2, 3]], others)
    assert pairwise_cca(torch.zeros(25, 4, 3)).isnan().all()


def test_half_precision_maps_keep_their_value():
    maps = layer(200, 4, 2, 0)
    torch.testing.assert_close(pairwise_cca(maps.half()), pairwise_cca(maps), rtol=0, atol=0.02)


def test_chance_is_what_unrelated_maps_give():
    related_maps = numbers(60, 6, 3) + 3 * numbers(60, 1, 3, seed=1)
    unrelated = pairwise_cca(numbers(60, 40, 3, seed=2))
    expected = unrelated.triu(1).sum() / (40 * 39 / 2)
    found = chance_cca(related_maps, torch.Generator().manual_seed(0), draws=400)
    assert found == pytest.approx(expected.item(), abs=0.015)
    mine = pairwise_cca(related_maps)
    assert mine.triu(1).sum() / 15 > 2 * found


def test_chance_comes_from_the_generator_alone():
    maps, state = layer(25, 5, 3, 0), torch.get_rng_state()
    first, again, other = (chance_cca(maps, torch.Generator().manual_seed(seed), draws=5) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_chance_of_one_filter_and_of_constant_ones():
    assert 0 < chance_cca(numbers(50, 1, 2), torch.Generator().manual_seed(0)) < 0.5
    assert isnan(chance_cca(torch.ones(50, 3, 2), torch.Generator().manual_seed(0)))


def test_chance_is_that_of_the_filters_that_vary():
    maps = numbers(60, 6, 3)
    some_silent = maps.clone()
    some_silent[:, 2:] = 0
    of_two = [chance_cca(one, torch.Generator().manual_seed(0), draws=100) for one in (maps[:, :2], some_silent)]
    assert of_two[0] == pytest.approx(of_two[1])


def test_chance_refuses_what_it_cannot_draw():
    with pytest.raises(tr.ReaperError, match="draws=0: must be at least 1"):
        chance_cca(numbers(20, 3, 2), torch.Generator(), draws=0)
    with pytest.raises(tr.ReaperError, match="maps: 0 filters; there must be at least 1"):
        chance_cca(numbers(20, 0, 2), torch.Generator())
