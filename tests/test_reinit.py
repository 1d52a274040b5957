from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import torchreaper as tr
from torchreaper import reinit
from torchreaper.geometry import unit_rows
from torchreaper.reinit import complement, orthogonal_directions, returning_rows, span, worst_cosine


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def layers(draw):
    """Rows of a layer with duplicates, near-duplicates, zeros and wild lengths, and how many filters return."""
    filters, dims = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    rows = torch.randn(filters, dims, dtype=torch.float64, generator=generator(draw(st.integers(0, 10**6))))
    for k in range(1, filters):
        kind = draw(st.sampled_from(["own", "own", "copy", "near", "zero", "huge", "tiny"]))
        if kind == "copy":
            rows[k] = -2 * rows[k - 1]
        elif kind == "near":
            rows[k] = rows[k - 1] + 1e-13 * rows[k]
        elif kind in ("zero", "huge", "tiny"):
            rows[k] *= {"zero": 0.0, "huge": 1e25, "tiny": 1e-25}[kind]
    return rows, draw(st.integers(1, filters))


@given(layers(), st.integers(0, 1000))
@settings(max_examples=200)
def test_orthogonal_as_far_as_there_is_room(layer, seed):
    rows, count = layer
    dims = rows.shape[1]
    room = dims - span(rows).shape[1]
    new, case = orthogonal_directions(rows, count, generator(seed))
    assert new.shape == (count, dims)
    torch.testing.assert_close(new.norm(dim=1), torch.ones(count, dtype=torch.float64))
    free = min(count, room)
    # Orthogonal to every old and kept filter, as many as there is room for.
    if free:
        assert (new[:free] @ unit_rows(rows).T).abs().max() < 1e-5
    # To each other, as long as there are dimensions.
    mutual = new[: min(count, dims)]
    assert (mutual @ mutual.T - torch.eye(len(mutual))).abs().max() < 1e-10
    assert f"room {room} of {dims}" in case
    assert ("random" in case) == (count > dims)


@given(layers(), st.integers(0, 1000))
def test_the_span_does_not_jump(layer, seed):
    """A row moved by 1e-13 must not change how much room there is."""
    rows, _ = layer
    moved = rows + 1e-13 * rows.norm(dim=1, keepdim=True) * torch.randn(
        rows.shape, dtype=torch.float64, generator=generator(seed)
    )
    assert span(rows).shape == span(moved).shape
    basis = span(rows)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    unit = unit_rows(rows)
    torch.testing.assert_close(unit @ basis @ basis.T, unit, rtol=0, atol=2e-6)


@given(st.integers(0, 1000), st.floats(1e-9, 1.0))
@example(seed=0, tilt=1e-5)
def test_draws_that_almost_coincide_outside_the_span_give_no_half_right_direction(seed, tilt):
    """The basis leaves of the second what it leaves of the first, but for ``tilt``: rounding grows by as much."""
    draws = torch.randn(2, 7, dtype=torch.float64, generator=generator(seed))
    others = torch.randn(5, 7, dtype=torch.float64, generator=generator(seed + 5000))
    between = draws[1] - draws[0] + tilt * others[0]
    basis = torch.linalg.qr(torch.cat([between[None], others[1:]]).T)[0]
    new = complement(basis, 2, generator(seed))
    assert (new @ basis).abs().max() < 1e-12


def test_rank_deficient_layers_have_the_room_of_their_rank():
    rows = torch.randn(3, 10, dtype=torch.float64, generator=generator()).repeat(4, 1)
    _, case = orthogonal_directions(rows, 5, generator())
    assert "room 7 of 10" in case


def test_without_room_the_most_overlapping_are_honoured():
    rows = torch.randn(12, 8, dtype=torch.float64, generator=generator(1))
    new, case = orthogonal_directions(rows, 3, generator())
    assert case == "room 0 of 8, 3 orthogonal to the 5 most overlapping only"
    most = tr.overlap(rows).argsort(descending=True)[:5]
    assert (new @ unit_rows(rows[most]).T).abs().max() < 1e-10


def test_complement_is_random_not_canonical():
    basis = span(torch.randn(2, 6, dtype=torch.float64, generator=generator()))
    first, second = complement(basis, 2, generator(1)), complement(basis, 2, generator(2))
    assert not torch.allclose(first, second)


@given(st.integers(1, 10), st.integers(0, 6), st.integers(0, 10**6), st.data())
@settings(max_examples=60)
def test_released_is_gram_schmidt_of_the_own_old_value(filters, more, seed, data):
    rows = torch.randn(filters, filters + more, dtype=torch.float64, generator=generator(seed))
    chosen = data.draw(st.sets(st.integers(0, filters - 1), min_size=1))
    dropped = torch.tensor(sorted(chosen))
    back = returning_rows(rows, dropped, tr.Reinit("released"), generator())
    for k, f in enumerate(dropped.tolist()):
        residual = unit_rows(rows[f : f + 1])[0]
        for before in span(rows[:f]).T if f else []:
            residual = residual - (residual @ before) * before
        torch.testing.assert_close(back.rows[k], residual / residual.norm(), rtol=1e-6, atol=1e-6)


def test_released_with_more_filters_than_dimensions():
    rows = torch.randn(6, 4, dtype=torch.float64, generator=generator(3))
    back = returning_rows(rows, torch.tensor([1, 4, 5]), tr.Reinit("released"), generator())
    assert back.case == "residual of the old value, 2 random: more filters than dims 4"
    assert back.rows[0] @ rows[0] == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(back.rows.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_duplicates_do_not_use_up_what_can_be_honoured():
    """Eight filters in two directions and four others in five dimensions: with one returning, four can be honoured."""
    base = torch.randn(6, 5, dtype=torch.float64, generator=generator(2))
    rows = torch.cat([base[:2].repeat(4, 1), base[2:]])
    new, case = orthogonal_directions(rows, 1, generator())
    assert case == "room 0 of 5, 1 orthogonal to the 10 most overlapping only"
    honoured = rows[tr.overlap(rows).argsort(descending=True, stable=True)[:10]]
    assert (new @ unit_rows(honoured).T).abs().max() < 1e-10


def test_released_stays_close_to_the_old_direction():
    """Unlike the paper's: cosine about 0.99 with the old value for random filters of a wide layer."""
    rows = torch.randn(32, 800, dtype=torch.float64, generator=generator())
    dropped = torch.arange(0, 32, 3)
    back = returning_rows(rows, dropped, tr.Reinit("released"), generator())
    cosines = (back.rows * unit_rows(rows[dropped])).sum(dim=1)
    assert 0.97 < cosines.mean() < 1.0
    assert worst_cosine(back.rows, rows) > 0.9
    assert worst_cosine(returning_rows(rows, dropped, tr.Reinit(), generator()).rows, rows) < 1e-12


@pytest.mark.parametrize(("gain", "length"), [("kept", None), (0.25, 0.25), (3, 3.0)])
def test_gain_is_the_length(gain, length):
    rows = torch.randn(6, 20, dtype=torch.float64, generator=generator())
    dropped = torch.tensor([1, 4])
    back = returning_rows(rows, dropped, tr.Reinit(gain=gain), generator())
    expected = rows[[0, 2, 3, 5]].norm(dim=1).mean().item() if length is None else length
    torch.testing.assert_close(back.rows.norm(dim=1), torch.full((2,), expected, dtype=torch.float64))


def test_worst_cosine_finds_one_pair_among_many_in_blocks():
    rows = torch.eye(900, 1800, dtype=torch.float64)
    new = torch.eye(1800, dtype=torch.float64)[900:1500]
    assert worst_cosine(new, rows) == 0.0
    for where, other in ((new[420], new[10]), (new[599], new[598]), (new[300], rows[700])):
        kept = where.clone()
        where.copy_(0.6 * where + 0.8 * other)
        assert worst_cosine(new, rows) == pytest.approx(0.8)
        where.copy_(kept)


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e307])
def test_the_length_neither_overflows_nor_vanishes(scale):
    rows = torch.randn(6, 20, dtype=torch.float64, generator=generator()).clamp(-2, 2)
    dropped = torch.tensor([1, 4])
    back = returning_rows(rows * scale, dropped, tr.Reinit(), generator())
    expected = rows[[0, 2, 3, 5]].norm(dim=1).mean()
    torch.testing.assert_close((back.rows / scale).norm(dim=1), expected.expand(2), rtol=1e-9, atol=0)


def test_worst_cosine_sees_old_rows_and_new_ones():
    rows = torch.eye(4, dtype=torch.float64)
    assert worst_cosine(rows[:1], rows[1:]) == 0
    assert worst_cosine(rows[:1], rows) == 1
    assert worst_cosine(torch.stack([rows[0], rows[0]]), rows[1:]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"method": "orthagonal"}, "reinit='orthagonal': must be one of orthogonal, random, zero, released"),
        ({"gain": 0}, 'reinit.gain=0: must be "kept" or a number above 0'),
        ({"gain": float("nan")}, "reinit.gain=nan: must be"),
        (
            {"method": "zero", "consumers": "zero"},
            "reinit.consumers='zero': with method \"zero\" nothing would ever wake",
        ),
        ({"method": "zero", "gain": 2.0}, 'reinit.gain=2.0: has no effect with method "zero"'),
        ({"bias": "random"}, "reinit.bias='random': must be one of zero, keep"),
        ({"consumers": "drop"}, "reinit.consumers='drop': must be one of keep, zero, random"),
        ({"optimizer_state": "mean"}, "reinit.optimizer_state='mean': must be one of zero, layer-mean, keep"),
        ({"norms": "zero"}, "reinit.norms='zero': must be one of reset, small, keep"),
    ],
)
def test_wrong_choices_are_named(choice, message):
    with pytest.raises(tr.ReaperError) as caught:
        tr.Reinit(**choice)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("count", "ranked"), [(5, True), (6, False), (9, False)])
def test_what_overlaps_most_is_asked_only_where_it_can_be_honoured(count, ranked, monkeypatch):
    """Where as many return as there are dimensions, as in a 1x1 expansion, no row can be; no products then."""
    asked = []
    monkeypatch.setattr(reinit, "overlap", lambda rows: asked.append(1) or tr.overlap(rows))
    rows = torch.randn(20, 6, dtype=torch.float64, generator=generator())
    new, case = orthogonal_directions(rows, count, generator(1))
    assert bool(asked) == ranked
    assert case.startswith(f"room 0 of 6, {min(count, 6)} orthogonal to the {6 - min(count, 6)} most overlapping only")
    mutual = new[:6]
    assert (mutual @ mutual.T - torch.eye(len(mutual))).abs().max() < 1e-10
