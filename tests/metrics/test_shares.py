"""Shares of items against scipy, hand-worked values and the limits between which a design effect lies."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from privlm.metrics.shares import share, share_of_counts, wilson

pytestmark = pytest.mark.torch_free


def ends(estimate):
    return estimate.ci_low, estimate.ci_high


@pytest.mark.parametrize(("right", "n"), [(90, 100), (30, 60), (1021, 1040)])
def test_ordinary_shares_have_wilsons_interval(right, n):
    expected = binomtest(right, n).proportion_ci(method="wilson")
    estimate = share([1] * right + [0] * (n - right))
    assert (estimate.value, estimate.n) == (right / n, n)
    assert ends(estimate) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_with_few_failures_an_end_is_that_of_mid_p_where_it_lies_further_out():
    low, high = wilson(0.9, 10)
    one = binomtest(9, 10).proportion_ci(method="wilson")
    assert low == pytest.approx(one.low)
    assert high > one.high
    assert binom.cdf(8, 10, high) + binom.pmf(9, 10, high) / 2 == pytest.approx(0.025, abs=1e-9)
    assert wilson(1.0, 3) == (pytest.approx(0.05 ** (1 / 3)), 1.0)  # p^3 / 2 = 0.025


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_equal_values_have_an_interval_of_some_width(value):
    estimate = share([value] * 3)
    assert estimate.value == value
    assert 0 <= estimate.ci_low <= value <= estimate.ci_high <= 1
    assert estimate.ci_high - estimate.ci_low > 0.4


def test_two_items_are_too_few():
    assert ends(share([1, 1])) == (None, None)
    assert ends(share([1, 0, 1, 1, 0, 1], units=["a", "a", "a", "b", "b", "b"])) == (None, None)


def test_items_that_go_together_count_as_one():
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.7
    whole = share(np.repeat(right, 3), np.repeat(np.arange(200), 3))
    assert whole.n == 200
    assert ends(whole) == pytest.approx(ends(share(right)), abs=1e-6)


def test_items_of_a_unit_that_are_independent_count_each():
    right = np.random.default_rng(1).random(600) < 0.7
    units, items = share(right, np.repeat(np.arange(200), 3)), share(right)
    assert ends(units) == pytest.approx(ends(items), abs=0.01)


def test_units_with_one_right_of_two_are_not_taken_for_certain():
    low, high = ends(share([1, 0] * 50, np.repeat(np.arange(50), 2)))
    assert (low, high) == pytest.approx(ends(share([1, 0] * 50)))


def test_weights_cost_what_kish_says():
    values, weights = np.tile([1.0, 1.0, 0.0, 1.0], 50), np.tile([1.0, 3.0], 100)
    estimate = share(values, weights=weights)
    assert estimate.value == pytest.approx((1 + 3 + 3) / 8)
    assert ends(estimate) == pytest.approx(wilson(7 / 8, weights.sum() ** 2 / (weights**2).sum()))


def test_items_of_weight_0_are_left_out():
    estimate = share([1, 0, 1, 1, 0], weights=[1, 1, 1, 1, 0])
    assert estimate == share([1, 0, 1, 1])


def test_credits_below_0_keep_their_scale():
    estimate = share([1, 1, 1, -1, -1, 0] * 10, lowest=-1)
    assert estimate.value == pytest.approx(1 / 6)
    assert -1 < estimate.ci_low < 1 / 6 < estimate.ci_high < 1
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        share([1, -1, 0])


@pytest.mark.parametrize("call", [lambda: share([]), lambda: share([1, 1], weights=[0, 0])])
def test_nothing_is_no_share(call):
    with pytest.raises(ValueError, match=r"a share needs items|weight above 0"):
        call()


def test_counts_are_items_of_units():
    assert share_of_counts([1, 2, 0, 3], [2, 2, 1, 3]) == share(
        [1, 0, 1, 1, 0, 1, 1, 1], units=[0, 0, 1, 1, 2, 3, 3, 3]
    )
    assert np.isnan(share_of_counts([0, 0], [0, 0]).value)
