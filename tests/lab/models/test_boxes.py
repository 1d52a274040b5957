"""Boxes against references that look at one box, or one pair of them, at a time."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from torchreaper.lab.models.boxes import area, assign, decode, encode, giou, iou, points, suppress

STRIDE = 4
few = settings(max_examples=40, deadline=None)
edges = st.integers(0, 24).map(float)


@st.composite
def boxes(draw, most: int = 6):
    """[k, 4] of some area, on a grid of whole pixels, so that ties happen."""
    rows = []
    for _ in range(draw(st.integers(1, most))):
        (x1, x2), (y1, y2) = (sorted(draw(st.tuples(edges, edges).filter(lambda p: p[0] != p[1]))) for _ in range(2))
        rows.append([x1, y1, x2, y2])
    return torch.tensor(rows, dtype=torch.float64)


def pair(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and GIoU of two boxes, number by number."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = wide * high if wide > 0 and high > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / union, both / union - (hull - union) / hull


@few
@given(boxes(), boxes())
def test_overlaps_are_those_of_single_pairs(a, b):
    found = [[pair(one, other) for other in b.tolist()] for one in a.tolist()]
    expected = torch.tensor(found, dtype=torch.float64)
    torch.testing.assert_close(iou(a[:, None], b), expected[..., 0], rtol=0, atol=1e-7)
    torch.testing.assert_close(giou(a[:, None], b), expected[..., 1], rtol=0, atol=1e-7)
    assert (area(a) > 0).all()
    assert area(a[:, [2, 1, 0, 3]]).eq(0).all()


@few
@given(boxes(), st.sampled_from([1, 2, 8, 32]), arrays(float, 2, elements=st.floats(-50, 50)))
def test_what_is_encoded_comes_back(found, stride, at):
    at = torch.from_numpy(at)
    torch.testing.assert_close(decode(encode(found, at, stride), at, stride), found, rtol=1e-9, atol=1e-9)


def test_points_are_the_centres_of_cells_row_by_row():
    assert points(2, 3, 4, torch.zeros(0)).tolist() == [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6]]


def assigned(rows: list[list[float]], height: int, width: int, radius: float) -> list[int | None]:
    """Which box every point answers for, one point and one box at a time."""
    found: list[int | None] = []
    for i in range(height):
        for j in range(width):
            x, y = (j + 0.5) * STRIDE, (i + 0.5) * STRIDE
            best, smallest = None, math.inf
            for k, (x1, y1, x2, y2) in enumerate(rows):
                cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
                near = max(abs(x - cx), abs(y - cy)) <= radius * STRIDE and x1 < x < x2 and y1 < y < y2
                home = (min(int(cx // STRIDE), width - 1), min(int(cy // STRIDE), height - 1)) == (j, i)
                if (near or home) and (x2 - x1) * (y2 - y1) < smallest:
                    best, smallest = k, (x2 - x1) * (y2 - y1)
            found.append(best)
    return found


@few
@given(boxes(), st.integers(0, 2), st.sampled_from([0.5, 1.5, 2.5]))
def test_points_are_assigned_as_one_by_one(found, padding, radius):
    padded = torch.cat([torch.full((padding, 4), -1.0, dtype=found.dtype), found])[None]
    real = torch.arange(padded.shape[1])[None] >= padding
    box, positive = assign(padded, real, 6, 6, STRIDE, radius)
    expected = assigned(found.tolist(), 6, 6, radius)
    assert [int(k) - padding if yes else None for k, yes in zip(box[0], positive[0], strict=True)] == expected
    alone = assign(found[:1, None], torch.ones(1, 1, dtype=torch.bool), 6, 6, STRIDE, radius)
    assert alone.positive.any(), "a box alone always has a point"


def greedy(rows: list[list[float]], classes: list[int], threshold: float) -> list[bool]:
    kept: list[int] = []
    for k, row in enumerate(rows):
        if all(classes[i] != classes[k] or pair(rows[i], row)[0] <= threshold for i in kept):
            kept.append(k)
    return [k in kept for k in range(len(rows))]


@few
@given(st.lists(boxes(12), min_size=1, max_size=3), st.sampled_from([0.21, 0.47, 0.83]), st.data())
def test_suppression_is_the_greedy_one(pictures, threshold, data):
    most = max(map(len, pictures))
    labels = [data.draw(st.lists(st.integers(0, 1), min_size=len(one), max_size=len(one))) for one in pictures]
    rows = torch.stack([torch.cat([one, one.new_zeros(most - len(one), 4)]) for one in pictures])
    classes = torch.tensor([one + [-1] * (most - len(one)) for one in labels])
    stays = suppress(rows, classes, threshold)
    for kept, one, label in zip(stays, pictures, labels, strict=True):
        assert kept[: len(one)].tolist() == greedy(one.tolist(), label, threshold)


def test_a_chain_of_suppressions():
    """Each box overlaps the next one: the third stays, because the second, which would push it out, is gone."""
    rows = torch.tensor([[[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [12, 0, 22, 10]]], dtype=torch.float64)
    assert suppress(rows, torch.zeros(1, 4), 0.3).tolist() == [[True, False, True, False]]
