"""Accuracy, F1 and their intervals against hand-worked values and brute force."""

import numpy as np
import pytest

from privlm.metrics.classification import accuracy, f1, majority_class

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
    assert estimate.ci_high - estimate.ci_low == pytest.approx(0.434, abs=1e-3)


def test_f1_of_known_counts():
    labels = np.array([1] * 10 + [0] * 20)
    predictions = np.array([1] * 8 + [0] * 2 + [1] * 4 + [0] * 16)
    assert f1(predictions, labels, positive=1).value == pytest.approx(16 / 22)
    assert f1(predictions, labels, positive=0).value == pytest.approx(32 / 38)


def test_f1_interval_is_that_of_resampled_examples():
    rng = np.random.default_rng(3)
    labels = (rng.random(400) < 0.2).astype(np.int64)
    predictions = np.where(rng.random(400) < 0.1, 1 - labels, labels)
    rows = rng.integers(400, size=(4000, 400))
    hits = 2 * (predictions[rows] & labels[rows]).sum(axis=1)
    resampled = hits / (predictions[rows].sum(axis=1) + labels[rows].sum(axis=1))
    estimate = f1(predictions, labels, positive=1)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))), abs=0.01)
    assert estimate == f1(predictions, labels, positive=1)
    assert estimate != f1(predictions, labels, positive=1, seed=1)


def test_f1_of_an_absent_class_is_zero():
    estimate = f1(np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.int64), positive=1)
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == (0, 0, 0)


def test_majority_class():
    assert majority_class(np.array([2, 0, 2, 1])) == (2, 0.5)
    assert majority_class(np.array([1, 0])) == (0, 0.5)


@pytest.mark.parametrize(("predictions", "labels"), [((0,), (0,)), ((2,), (3,)), ((3, 1), (3, 1)), ((3, 1), (3,))])
def test_shapes_that_do_not_match_are_refused(predictions, labels):
    with pytest.raises(ValueError, match="must be"):
        accuracy(np.zeros(predictions), np.zeros(labels))
