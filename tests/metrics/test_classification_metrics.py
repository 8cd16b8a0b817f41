"""Accuracy, F1 and their intervals against hand-worked values and brute force."""

import numpy as np
import pytest

from privlm.metrics.classification import accuracy, f1, macro_f1, majority_class, matthews, precision, recall
from privlm.metrics.shares import wilson

pytestmark = pytest.mark.torch_free


def test_accuracy_and_wilson_interval():
    labels = np.zeros(100, dtype=np.int64)
    predictions = np.array([0] * 90 + [1] * 10)
    estimate = accuracy(predictions, labels)
    assert (estimate.value, estimate.n) == (0.9, 100)
    # Wilson's interval of 90/100: roots of (p - 0.9)^2 = z^2 p (1 - p) / n
    roots = np.roots([1 + 1.959963984540054**2 / 100, -2 * 0.9 - 1.959963984540054**2 / 100, 0.81])
    assert (estimate.ci_high, estimate.ci_low) == pytest.approx(tuple(roots))


@pytest.mark.parametrize("right", [0, 5])
def test_interval_stays_within_zero_and_one(right):
    estimate = accuracy(np.array([1] * right + [0] * (5 - right)), np.ones(5, dtype=np.int64))
    assert 0 <= estimate.ci_low <= estimate.value <= estimate.ci_high <= 1
    assert estimate.ci_high - estimate.ci_low == pytest.approx(1 - 0.05**0.2)


def test_f1_of_known_counts():
    labels = np.array([1] * 10 + [0] * 20)
    predictions = np.array([1] * 8 + [0] * 2 + [1] * 4 + [0] * 16)
    assert f1(predictions, labels, positive=1).value == pytest.approx(16 / 22)
    assert f1(predictions, labels, positive=0).value == pytest.approx(32 / 38)


def test_f1_has_the_interval_of_the_share_of_hits_among_all_that_is_predicted_or_actual():
    labels = np.array([1] * 50 + [0] * 950)
    predictions = np.array([1] * 40 + [0] * 10 + [1] * 5 + [0] * 945)
    estimate = f1(predictions, labels, positive=1)
    low, high = wilson(40 / 55, 55)
    assert (estimate.value, estimate.n) == (pytest.approx(80 / 95), 1000)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))
    assert (precision(predictions, labels, 1).value, recall(predictions, labels, 1).value) == (40 / 45, 40 / 50)


def test_f1_of_an_absent_class_is_zero_and_has_no_interval():
    estimate = f1(np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.int64), positive=1)
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == (0, None, None)


def test_macro_f1_and_matthews_by_hand():
    labels = np.repeat([0, 1], 50)
    predictions = np.concatenate([np.repeat([0, 1], [45, 5]), np.repeat([0, 1], [10, 40])])
    by_class = [f1(predictions, labels, one) for one in (0, 1)]
    macro, phi = macro_f1(predictions, labels), matthews(predictions, labels)
    assert macro.value == pytest.approx((90 / 105 + 80 / 95) / 2)
    assert macro.ci_low == pytest.approx((by_class[0].ci_low + by_class[1].ci_low) / 2)  # the errors are the same ones
    assert phi.value == pytest.approx((45 * 40 - 5 * 10) / (50 * 50 * 55 * 45) ** 0.5)
    assert phi.ci_low == pytest.approx(2 * wilson((1 + phi.value) / 2, 100)[0] - 1, abs=0.01)
    assert phi.ci_low < phi.value < phi.ci_high


def test_predictions_without_an_error_are_not_certain():
    labels = np.repeat([0, 1, 2], 20)
    assert 0.8 < macro_f1(labels, labels).ci_low < 0.97
    assert 0.7 < matthews(labels % 2, labels % 2).ci_low < 0.97
    assert matthews(np.zeros(9, dtype=int), np.zeros(9, dtype=int)).ci_low is None


def test_majority_class():
    assert majority_class(np.array([2, 0, 2, 1])) == (2, 0.5)
    assert majority_class(np.array([1, 0])) == (0, 0.5)


@pytest.mark.parametrize(("predictions", "labels"), [((0,), (0,)), ((2,), (3,)), ((3, 1), (3, 1)), ((3, 1), (3,))])
def test_shapes_that_do_not_match_are_refused(predictions, labels):
    with pytest.raises(ValueError, match="must be"):
        accuracy(np.zeros(predictions), np.zeros(labels))
