import io
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchreaper.lab.average_precision import average_precision, names_of_classes
from torchreaper.lab.errors import UserError

pytest.importorskip("pycocotools")
OVERLAPS = np.linspace(0.5, 0.95, 10).tolist()
SIZES = {"": (0, 1e10), " small": (0, 32**2), " medium": (32**2, 96**2), " large": (96**2, 1e10)}


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def common(one, other):
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0) * max(high, 0)


def reference(found, truths, crowds, number, overlap, size=""):
    """Average precision of one class at one overlap, from its definition; None where there is no truth."""
    low, high = SIZES[size]
    marks, there = [], 0
    for boxes, real, crowd in zip(found, truths, crowds):
        real, crowd = ([box for box in each if box[4] == number] for each in (real, crowd))
        counted = [low <= area(box) <= high for box in real]
        there += sum(counted)
        free = set(range(len(real)))
        for box in sorted((box for box in boxes if box[5] == number), key=lambda box: -box[4])[:100]:
            fits = {i: common(box, real[i]) / (area(box) + area(real[i]) - common(box, real[i])) for i in free}
            near = [(fit, i) for i, fit in fits.items() if fit >= overlap]
            best = max(((fit, i) for fit, i in near if counted[i]), default=None)
            # Neither right nor wrong: of another size, or in a crowd.
            aside = [(fit, i) for fit, i in near if not counted[i]]
            covered = [(common(box, one) / area(box), len(real)) for one in crowd]
            aside = max(aside + [one for one in covered if one[0] >= overlap], default=None)
            if best or aside:
                free.discard((best or aside)[1])
            if best or (not aside and low <= area(box) <= high):
                marks.append((box[4], best is not None))
    if not there:
        return None
    right = wrong = 0
    curve = []
    for _, hit in sorted(marks, reverse=True):
        right, wrong = right + hit, wrong + (not hit)
        curve.append((right / there, right / (right + wrong)))
    steps = [max((p for r, p in curve if r >= recall), default=0) for recall in np.linspace(0, 1, 101)]
    return float(np.mean(steps))


def mean(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def expected(found, truths, crowds, classes):
    def of(numbers, overlaps, size=""):
        return mean([reference(found, truths, crowds, n, o, size) for n in numbers for o in overlaps])

    every = range(len(classes))
    figures = {"mAP": of(every, OVERLAPS), "AP50": of(every, [OVERLAPS[0]]), "AP75": of(every, [OVERLAPS[5]])}
    figures |= {f"AP{size}": of(every, OVERLAPS, size) for size in SIZES if size}
    figures |= {f"AP {name}": of([number], OVERLAPS) for number, name in enumerate(classes)}
    return {name: value for name, value in figures.items() if value is not None}


def tensors(lists, columns):
    return [torch.tensor(rows, dtype=torch.float64).reshape(-1, columns) for rows in lists]


def measured(found, truths, classes, crowds=None):
    crowd = None if crowds is None else tensors(crowds, 5)
    return average_precision(tensors(found, 6), tensors(truths, 5), classes, crowd=crowd)


# Sides of few different lengths: boxes that nearly fit each other are many.
sides = st.sampled_from([8, 9, 10, 30, 34, 40, 90, 100, 120])
places = st.integers(0, 4)


@st.composite
def images(draw, classes, *, scores):
    def box():
        x, y = draw(places), draw(places)
        return [x, y, x + draw(sides), y + draw(sides)]

    truths = [[*box(), draw(st.integers(0, classes - 1))] for _ in range(draw(st.integers(0, 3)))]
    found = [[*box(), next(scores), draw(st.integers(0, classes - 1))] for _ in range(draw(st.integers(0, 4)))]
    crowds = [[*box(), draw(st.integers(0, classes - 1))] for _ in range(draw(st.integers(0, 1)))]
    return found, truths, crowds


@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_it_is_what_its_definition_says(data, classes, count, random):
    scores = [place / 100 for place in range(1, 100)]  # all different: equal ones have no order
    random.shuffle(scores)
    drawn = [data.draw(images(classes, scores=iter(scores[20 * i :]))) for i in range(count)]
    found, truths, crowds = map(list, zip(*drawn))
    names = [f"c{number}" for number in range(classes)]
    got, wanted = measured(found, truths, names, crowds), expected(found, truths, crowds, names)
    assert list(got) == list(wanted)
    assert got == pytest.approx(wanted, abs=1e-9)
    without = [[] for _ in crowds]
    assert measured(found, truths, names) == pytest.approx(expected(found, truths, without, names), abs=1e-9)


TRUTH = [[10, 10, 50, 50, 0], [60, 60, 160, 160, 1]]


def test_perfect_detections_are_1_and_none_are_0():
    found = [[[*box[:4], 0.3, box[4]] for box in TRUTH], []]
    assert measured(found, [TRUTH, []], ("cat", "dog")) == pytest.approx(
        {
            **dict.fromkeys(("mAP", "AP50", "AP75", "AP medium", "AP large", "AP cat", "AP dog"), 1.0),
        }
    )
    nothing = measured([[], []], [TRUTH, []], ("cat", "dog", "cow"))
    assert nothing == dict.fromkeys(("mAP", "AP50", "AP75", "AP medium", "AP large", "AP cat", "AP dog"), 0.0)


def test_nothing_to_find_gives_no_figures():
    assert measured([[[0, 0, 9, 9, 0.5, 0]]], [[]], ("cat",)) == {}
    assert measured([], [], ("cat",)) == {}


def test_by_hand():
    # IoU 40 * 30 / 1600 = 0.75: a fit at 0.50 to 0.75, 6 of 10 overlaps; the better score first.
    one = [[[10, 10, 50, 40, 0.9, 0]]]
    assert measured(one, [TRUTH[:1]], ("cat",)) == pytest.approx(
        {"mAP": 0.6, "AP50": 1, "AP75": 1, "AP medium": 0.6, "AP cat": 0.6}
    )
    # A wrong one above a right one: precision 1/2 at every recall. Below it: nothing lost.
    wrong = [200, 200, 240, 240]
    right = [*TRUTH[0][:4], 0.5, 0]
    assert measured([[right, [*wrong, 0.9, 0]]], [TRUTH[:1]], ("cat",))["mAP"] == pytest.approx(0.5)
    assert measured([[right, [*wrong, 0.1, 0]]], [TRUTH[:1]], ("cat",))["mAP"] == pytest.approx(1)
    # One of two found: recalls up to 0.5, 51 of 101.
    two = [[*TRUTH[0]], [100, 100, 140, 140, 0]]
    assert measured([[right]], [two], ("cat",))["AP50"] == pytest.approx(51 / 101)
    # A second box on the same object is wrong, unless it lies in a crowd.
    twice = [[right, [*TRUTH[0][:4], 0.9, 0], [100, 100, 140, 140, 0.1, 0]]]
    assert measured(twice, [two], ("cat",))["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert measured(twice, [two], ("cat",), [[[0, 0, 60, 60, 0]]])["AP50"] == pytest.approx(1)


words = st.sampled_from(["cat", "small", "small (class)", "medium", "50"])


@given(st.lists(words, max_size=6))
def test_each_class_has_a_name_of_its_own(classes):
    names = names_of_classes(classes)
    assert len({*names, "mAP", "AP50", "AP75", "AP small", "AP medium", "AP large"}) == len(classes) + 6
    assert all(name.startswith(f"AP {one}") for name, one in zip(names, classes, strict=True))
    assert names_of_classes(["cat", "small"]) == ["AP cat", "AP small (class)"]


def test_a_class_that_is_called_as_a_size_is():
    got = measured([[[*TRUTH[0][:4], 0.5, 0]]], [TRUTH], ("medium", "dog"))
    assert got["AP medium"] == got["AP medium (class)"] == pytest.approx(1)
    assert got["AP dog"] == 0


@pytest.mark.parametrize(
    ("found", "truths", "message"),
    [
        ([], [[]], r"found, truths, crowd: of 0, 1, 1 images"),
        ([[[0, 0, 9, 9, float("nan"), 0]]], [[]], r"found\[0\]: holds values that are not finite"),
        ([[[0, 0, 9, 9, 0.5, 1]]], [[]], r"found\[0\]: holds a class that is not one of 0 to 0"),
        ([[]], [[[0, 0, 9, 9, -1]]], r"truths\[0\]: holds a class that is not one of 0 to 0"),
    ],
)
def test_what_is_wrong_is_told(found, truths, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        measured(found, truths, ("cat",))
    with pytest.raises(ValueError, match=r"^found\[0\]: of shape \[1, 5\]; must be \[boxes, 6\]"):
        average_precision([torch.ones(1, 5)], [torch.ones(0, 5)], ("cat",))


def test_it_prints_nothing_and_holds_nobody_else_up(monkeypatch):
    out, running = io.StringIO(), threading.Event()
    monkeypatch.setattr(sys, "stdout", out)
    done = threading.Event()

    def other():
        while not done.is_set():
            print("other")
            running.set()

    thread = threading.Thread(target=other)
    thread.start()
    running.wait()
    measured([[[*TRUTH[0][:4], 0.5, 0]]] * 5, [TRUTH] * 5, ("cat", "dog"))
    done.set()
    thread.join()
    assert set(out.getvalue().split()) == {"other"}
    assert sys.stdout is out


def test_without_pycocotools_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(
        UserError, match=r"needs pycocotools, which cannot be imported \(.*\); pip install pycocotools$"
    ):
        measured([[]], [TRUTH], ("cat", "dog"))
