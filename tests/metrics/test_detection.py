"""Areas under the curve and balanced accuracy, and the bootstrap of other statistics."""

import numpy as np
import pytest

from privlm.metrics.detection import auc, mean_of_rates
from privlm.metrics.shares import share, wilson
from privlm.metrics.statistic import statistic

pytestmark = pytest.mark.torch_free


def test_the_area_is_that_of_all_pairs_with_an_interval_around_it():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 40).round(1), rng.normal(0, 1, 60).round(1)
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    found = auc(positive, negative)
    assert found.value == pytest.approx(wins.mean())
    assert found.ci_low < found.value < found.ci_high
    mirrored = auc(negative, positive)
    assert (mirrored.ci_low, mirrored.ci_high) == pytest.approx((1 - found.ci_high, 1 - found.ci_low))


@pytest.mark.parametrize("n", [3, 50])
def test_perfect_scores_are_not_certain(n):
    found = auc(np.arange(n) + n, np.arange(n))
    assert (found.value, found.ci_high) == (1, 1)
    assert 0.3 < found.ci_low < 1 - 1 / n
    assert auc(np.arange(n), np.arange(n) + n).ci_low == 0
    assert auc([1, 2], [0, 1, 2]).ci_low is None


def test_equal_rates_of_two_sets_are_one_share_of_all():
    found = mean_of_rates(share([1] * 45 + [0] * 15), share([0] * 15 + [1] * 45))
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson(0.75, 120))
    assert mean_of_rates(share([1] * 9), share([1] * 9)).ci_low == pytest.approx(wilson(1.0, 18)[0])


def test_rates_of_two_sets_that_differ_have_the_variance_of_their_mean():
    found = mean_of_rates(share([1] * 600 + [0] * 400), share([1] * 990 + [0] * 10))
    half = 1.96 * (0.6 * 0.4 / 1000 + 0.99 * 0.01 / 1000) ** 0.5 / 2
    assert found.value == pytest.approx(0.795)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.795 - half, 0.795 + half), abs=0.001)
    assert mean_of_rates(share([1, 1]), share([1] * 5)).ci_low is None


def mean(values, axis):
    return values.mean(axis)


def test_the_bootstrap_of_a_mean_is_near_students_interval():
    values = np.random.default_rng(2).normal(5, 2, 200)
    found = statistic(mean, values)
    half = 1.972 * values.std(ddof=1) / 200**0.5
    assert (found.ci_low, found.ci_high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert found == statistic(mean, values)


@pytest.mark.parametrize("values", [np.ones(100), np.arange(10.0)])
def test_no_bootstrap_of_equal_or_few_values(values):
    assert statistic(mean, values).ci_low is None
