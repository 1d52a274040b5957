"""Intervals, paired differences, power, verdicts."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from torchreaper.lab.statistics import (
    Difference,
    answer,
    bootstrap_interval,
    correlation_interval,
    decimals,
    estimate,
    format_p,
    holm,
    paired_bootstrap,
    paired_difference,
    seeds_needed,
    verdict,
)

accuracies = st.lists(st.integers(0, 10_000).map(lambda hits: hits / 100), min_size=1, max_size=12)
pairs = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=12).map(
    lambda rows: ([a / 100 for a, _ in rows], [b / 100 for _, b in rows])
)


@given(pairs)
def test_paired_difference_is_the_paired_t_test(pair):
    values, baseline = pair
    found = paired_difference(values, baseline)
    assert found.mean == pytest.approx(np.mean(values) - np.mean(baseline), abs=1e-9)
    if found.half_width is None:
        assert len(values) == 1 or np.ptp(np.subtract(values, baseline)) < 1e-9
        return
    expected = stats.ttest_rel(values, baseline)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


@given(pairs)
def test_swapping_the_two_sides_turns_the_difference_round(pair):
    values, baseline = pair
    there, back = paired_difference(values, baseline), paired_difference(baseline, values)
    assert (back.n, back.p) == (there.n, pytest.approx(there.p) if there.p is not None else None)
    assert back.mean == pytest.approx(-there.mean, abs=1e-9)
    assert (there.low is None) == (back.high is None)
    if there.low is not None:
        assert back.high == pytest.approx(-there.low, abs=1e-9)


@given(accuracies)
def test_estimate_is_the_t_interval(values):
    found = estimate(values)
    assert (found.n, found.mean) == (len(values), pytest.approx(np.mean(values), abs=1e-9))
    if found.sd is None or found.sd == 0.0:
        assert found.half_width is None
        assert found.low is None
        assert len(set(values)) == 1
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(2, 9))
def test_equal_values_give_no_interval_no_nan_and_no_warning(value, other, n):
    same = estimate([value / 100] * n)
    assert (same.mean, same.sd, same.low, same.high) == (value / 100, 0.0, None, None)
    difference = paired_difference([value / 100] * n, [other / 100] * n)
    assert (difference.sd, difference.low) == (0.0, None)
    assert difference.p == (1.0 if value == other else None)


def test_rounding_is_not_a_spread():
    # 0.3 - 0.1, 0.4 - 0.2, 0.9 - 0.7: three doubles that differ in their last bits
    difference = paired_difference([0.3, 0.4, 0.9], [0.1, 0.2, 0.7])
    assert len({0.3 - 0.1, 0.4 - 0.2, 0.9 - 0.7}) > 1
    assert (difference.sd, difference.p) == (0.0, None)


def test_one_value_has_a_mean_only():
    found = paired_difference([71.0], [70.0])
    assert (found.n, found.mean, found.sd, found.low, found.high, found.p) == (1, 1.0, None, None, None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate([]), "values: empty"),
        (lambda: estimate([1.0, math.nan]), "every one must be a finite number"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "values: 2 of them for 1 of the baseline"),
        (lambda: seeds_needed(0.0, 1.0), "difference=0.0: must be a number other than 0"),
        (lambda: seeds_needed(1.0, -1.0), "sd=-1.0: must be a number, 0 or above"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_matches_published_sample_sizes(effect, n):
    # the paired t-test at 5 %, power 80 % (G*Power's numbers)
    assert seeds_needed(effect, 1.0) == n


@given(st.floats(0.1, 5.0), st.floats(1.0, 3.0))
def test_smaller_differences_need_more_seeds(difference, times):
    near, far = seeds_needed(difference, 1.0), seeds_needed(difference * times, 1.0)
    assert 2 <= far <= near
    assert seeds_needed(-difference, 1.0) == near


def test_seeds_needed_at_the_ends():
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(1.0, 1e-9) == 2
    assert seeds_needed(0.01, 1.0) is None


@given(accuracies)
@example([7.71, 7.71, 7.72])
@example([0.0, 7.71, 7.71])
def test_a_bootstrap_interval_lies_between_the_values_and_is_always_the_same(values):
    before = np.random.get_state()[1].copy()
    found = bootstrap_interval(values)
    assert (np.random.get_state()[1] == before).all()  # a generator of its own
    assert found == bootstrap_interval(values)
    assert (found is None) == (len(values) < 3 or len(set(values)) == 1)
    if found is not None:
        assert min(values) <= found.low < found.high <= max(values)
        narrower = bootstrap_interval(values, level=0.5)
        assert found.low <= narrower.low
        assert narrower.high <= found.high


def test_the_bootstrap_of_many_values_is_near_the_t_interval_and_of_few_too_narrow():
    draw = np.random.default_rng(1)
    for n, least, most in ((60, 0.9, 1.1), (3, 0.2, 0.6)):
        values = list(draw.normal(70, 1, n))
        by_t, by_bootstrap = estimate(values), bootstrap_interval(values)
        assert least < (by_bootstrap.high - by_bootstrap.low) / (by_t.high - by_t.low) < most


@given(pairs)
def test_the_paired_bootstrap_is_that_of_the_differences(pair):
    values, baseline = pair
    found = paired_bootstrap(values, baseline)
    if paired_difference(values, baseline).sd:
        assert found == bootstrap_interval([a - b for a, b in zip(values, baseline)])
    else:
        assert found is None


def test_differences_of_rounding_have_no_bootstrap_interval():
    assert paired_bootstrap([0.3, 0.4, 0.9], [0.1, 0.2, 0.7]) is None


p_values = st.lists(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000), max_size=10)


@given(p_values, st.integers(1, 999).map(lambda thousandths: thousandths / 1000))
def test_holm_rejects_what_stepping_down_rejects(found, alpha):
    # Holm 1979: from the smallest p up, as long as it is at most alpha over the number that is left.
    rejected, left = set(), sorted(range(len(found)), key=lambda place: found[place])
    while left and found[left[0]] * len(left) <= alpha:
        rejected.add(left.pop(0))
    assert {place for place, p in enumerate(holm(found)) if p <= alpha} == rejected


@given(p_values)
def test_holm_corrects_upwards_in_order_and_at_most_to_bonferroni(found):
    corrected = holm(found)
    for p, q in zip(found, corrected):
        assert p <= q <= min(1.0, len(found) * p)
    ordered = [q for _, q in sorted(zip(found, corrected))]
    assert ordered == sorted(ordered)
    assert holm(found[::-1]) == corrected[::-1]
    # What was not tested takes no part.
    assert holm([None, *found, None]) == [None, *corrected, None]


def test_holm_of_a_known_example_and_of_one():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


@given(pairs, p_values)
def test_the_verdict_judges_by_the_corrected_p_where_there_are_several(pair, others):
    difference = paired_difference(*pair)
    p_holm = holm([difference.p, *others])[0]
    tests = len(others) + (difference.p is not None)
    text = verdict("repr", "standard", difference, p_holm=p_holm, schemes=tests)
    said = "better" if "is better" in text else "worse" if "is worse" in text else "open"
    assert said == answer(difference, p_holm if tests > 1 else None)
    if said != "open":
        assert difference.low > 0 or difference.high < 0
        assert tests == 1 or p_holm < 0.05
    if tests > 1 and difference.low is not None:
        assert f"Holm's correction for {tests} schemes" in text


def test_what_several_schemes_make_of_one_difference():
    found = Difference(3, 1.367, 0.3215, 0.57, 2.17, 0.018)
    assert verdict("repr", "standard", found, p_holm=0.036, schemes=2) == (
        "repr is better than standard by 1.37 points: +1.37 points [+0.57, +2.17], p = 0.036 by Holm's correction "
        "for 2 schemes, 3 seeds."
    )
    assert verdict("repr", "standard", found, p_holm=0.054, schemes=3) == (
        "No evidence of a difference between repr and standard after Holm's correction for 3 schemes: "
        "+1.37 points [+0.57, +2.17], p = 0.018 by itself, p = 0.054 corrected, 3 seeds."
    )
    none = Difference(3, 0.37, 0.8, -1.56, 2.30, 0.499)
    assert verdict("repr", "standard", none, p_holm=0.998, schemes=2).endswith(
        "p = 0.998 by Holm's correction for 2 schemes, 3 seeds; with these seeds it would have had to be "
        "more than 1.93 points to show."
    )


@given(pairs)
def test_the_verdict_never_claims_more_than_the_interval(pair):
    values, baseline = pair
    difference = paired_difference(values, baseline)
    text = verdict("repr", "standard", difference)
    claims = "is better" in text or "is worse" in text
    assert claims == (difference.low is not None and (difference.low > 0 or difference.high < 0))
    assert "nan" not in text
    assert "\n" not in text
    if claims:
        assert ("better" in text) == (difference.mean > 0)


@pytest.mark.parametrize(
    ("values", "baseline", "text"),
    [
        (
            [71.0, 72.0, 73.0],
            [70.0, 70.5, 71.4],
            "repr is better than standard by 1.37 points: +1.37 points [+0.57, +2.17], p = 0.018, 3 seeds.",
        ),
        (
            [70.0, 70.5, 71.4],
            [71.0, 72.0, 73.0],
            "repr is worse than standard by 1.37 points: -1.37 points [-2.17, -0.57], p = 0.018, 3 seeds.",
        ),
        (
            [71.0, 70.0, 70.5],
            [70.0, 70.5, 69.9],
            "No evidence of a difference between repr and standard: +0.37 points [-1.56, +2.30], p = 0.499, "
            "3 seeds; with these seeds it would have had to be about 1.93 points to show.",
        ),
        (
            [90.0],
            [10.0],
            "One seed says nothing about a difference: repr minus standard is +80.00 points, "
            "without an interval; run at least 3 seeds.",
        ),
        (
            [71.0, 72.0],
            [71.0, 72.0],
            "No evidence of a difference: repr and standard are equal for each of the 2 seeds.",
        ),
        (
            [71.5, 72.5],
            [71.0, 72.0],
            "No verdict: repr minus standard is exactly +0.50 points for each of the 2 seeds, "
            "so there is no spread to judge it by; run more seeds.",
        ),
    ],
)
def test_verdicts(values, baseline, text):
    assert verdict("repr", "standard", paired_difference(values, baseline)) == text


def test_p_as_text():
    assert [format_p(p) for p in (None, 0.5, 0.00099, 1.0)] == ["no p", "p = 0.500", "p < 0.001", "p = 1.000"]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=5, max_size=30))
def test_the_interval_of_a_correlation_is_fishers(rows):
    a, b = (np.array(side, dtype=float) for side in zip(*rows))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return
    found = stats.pearsonr(a, b)
    interval = correlation_interval(float(found.statistic), len(rows))
    if abs(found.statistic) > 1 - 1e-12:
        return
    assert interval == pytest.approx(tuple(found.confidence_interval(0.95)))


def test_the_interval_of_a_correlation_of_ranks_is_wider_and_some_have_none():
    plain, ranks = correlation_interval(0.6, 50), correlation_interval(0.6, 50, ranks=True)
    assert ranks[0] < plain[0] < 0.6 < plain[1] < ranks[1]
    # Bonett and Wright 2000, by hand.
    half = 1.959964 * math.sqrt((1 + 0.18) / 47)
    assert ranks == pytest.approx((math.tanh(math.atanh(0.6) - half), math.tanh(math.atanh(0.6) + half)), abs=1e-6)
    assert correlation_interval(0.0, 50, ranks=True) == correlation_interval(0.0, 50)
    low, high = correlation_interval(0.6, 50, level=0.99)
    assert low < plain[0] < plain[1] < high
    for correlation, n in ((0.6, 4), (1.0, 50), (-1.0, 50)):
        assert correlation_interval(correlation, n) == (None, None)


@pytest.mark.parametrize("form", ["{:+.2f}", "{:.2f}", "x {:.2f}"])
@given(st.floats(-200, 200))
def test_a_number_as_text_is_itself_rounded_and_zero_has_no_minus(form, value):
    text = decimals(value, form)
    assert abs(float(text.removeprefix("x ")) - value) <= 0.005 + 1e-9
    assert "-0.00" not in text
    assert text == form.format(value) or form.format(value) == form.format(-0.0)


def test_what_is_almost_no_difference_is_no_negative_one():
    assert (decimals(-0.004), decimals(-0.006), decimals(math.nan)) == ("+0.00", "-0.01", "+nan")
    tiny = Difference(5, -0.001, 0.01, -0.0134, -0.001 + 0.0124, 0.835)
    assert "scheme and other: +0.00 points [-0.01, +0.01]" in verdict("scheme", "other", tiny)
