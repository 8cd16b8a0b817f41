"""Two systems on the same items, and runs that differ in the seed."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from privlm.metrics.differences import mcnemar, paired_difference
from privlm.metrics.seeds import mean_over_seeds, sign_flips

pytestmark = pytest.mark.torch_free


def test_the_difference_of_bonett_and_price_by_hand():
    a, b = [1] * 12 + [0] * 2 + [1] * 86, [0] * 12 + [1] * 2 + [1] * 86
    p, q = 13 / 102, 3 / 102
    half = 1.959963984540054 * math.sqrt((p + q - (p - q) ** 2) / 102)
    found = paired_difference(a, b)
    assert (found.value, found.n) == (pytest.approx(0.1), 100)
    assert (found.ci_low, found.ci_high) == pytest.approx((p - q - half, p - q + half))


def test_systems_that_agree_everywhere_have_a_difference_of_some_width():
    found = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert found.value == 0
    assert found.ci_low == pytest.approx(-found.ci_high)
    assert found.ci_high > 0.3
    assert paired_difference([1, 0], [1, 1]).ci_low is None


def test_a_unit_speaks_once_and_as_its_weight_says():
    a, b = np.array([1, 1, 0, 1, 1, 0, 1, 1.0]), np.zeros(8)
    assert paired_difference(a, b, units=np.repeat(range(4), 2)) == paired_difference([1, 0.5, 0.5, 1], [0] * 4)
    weighted = paired_difference(a, b, weights=[2, 2, 1, 1, 1, 1, 1, 1])
    assert weighted.value == pytest.approx(8 / 10)


def test_mcnemar_counts_items_that_one_system_alone_has_right():
    assert mcnemar([1] * 8 + [0] * 5, [0] * 8 + [0] * 5) == pytest.approx(2 / 2**8)
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1


@pytest.mark.parametrize("values", [[0.97, 0.98, 0.965], [1.0, 2.0, 4.0, 8.0, 9.0]])
def test_the_mean_over_seeds_has_students_interval(values):
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_over_seeds(values)
    assert found.value == pytest.approx(sum(values) / len(values))
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("values", [[0.9], [0.9, 0.8], [0.5, 0.5, 0.5], [0.1, 0.2, math.nan], [math.inf] * 3])
def test_seeds_that_give_no_interval(values):
    assert mean_over_seeds(values).ci_low is None


def test_sign_flips_are_exact():
    assert sign_flips([0.1] * 6) == 2 / 64
    assert sign_flips([0.3, 0.2, -0.1, 0.4]) == 4 / 16
