"""Accuracy, F1 and other figures of class predictions with 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share, share_of_counts
from privlm.metrics.statistic import statistic

MIN_ERRORS = 10
"""With fewer wrong (or right) examples, resampling them says nothing of macro-F1 and Matthews' coefficient."""


def accuracy(predictions: np.ndarray, labels: np.ndarray, units: Any = None) -> Estimate:
    """Share of right predictions.

    Args:
        predictions, labels: class ids [N].
        units: as of privlm.metrics.shares.share.
    """
    _check(predictions, labels)
    return share(predictions == labels, units)


def f1(predictions: np.ndarray, labels: np.ndarray, positive: int) -> Estimate:
    """F1 of the class `positive`, 0 where neither labels nor predictions hold it."""
    _check(predictions, labels)
    predicted, actual = predictions == positive, labels == positive
    found = f1_of_counts(predicted & actual, predicted, actual)
    return replace(found, value=0.0 if math.isnan(found.value) else found.value, n=len(labels))


def precision(predictions: np.ndarray, labels: np.ndarray, positive: int) -> Estimate:
    """Of the examples predicted as `positive`, the share that are; NaN where none is predicted."""
    _check(predictions, labels)
    return share_of_counts((predictions == positive) & (labels == positive), predictions == positive)


def recall(predictions: np.ndarray, labels: np.ndarray, positive: int) -> Estimate:
    """Of the examples that are `positive`, the share predicted so; NaN where none is."""
    return precision(labels, predictions, positive)


def f1_of_counts(hits: Any, predicted: Any, actual: Any) -> Estimate:
    """F1 = 2 hits / (predicted + actual) from the counts of each independent unit, [U] each; NaN where all are 0.

    With J, the share of hits among all that is predicted or actual (the Jaccard index), F1 = 2 J / (1 + J): it takes
    the interval of that share.
    """
    hits = np.asarray(hits, dtype=int)
    either = np.asarray(predicted, dtype=int) + np.asarray(actual, dtype=int) - hits
    return share_of_counts(hits, either).mapped(lambda jaccard: 2 * jaccard / (1 + jaccard))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> Estimate:
    """Mean over the classes of the labels of their F1; BCa bootstrap, none with fewer than ten wrong or right."""
    classes = np.unique(labels)

    def mean_f1(predicted: np.ndarray, actual: np.ndarray, axis: int) -> np.ndarray:
        total = np.zeros(predicted.shape[:-1])
        for one in classes:
            hits = ((predicted == one) & (actual == one)).sum(axis)
            total += 2 * hits / np.maximum((predicted == one).sum(axis) + (actual == one).sum(axis), 1)
        return total / len(classes)

    return _resampled(mean_f1, predictions, labels)


def matthews(predictions: np.ndarray, labels: np.ndarray) -> Estimate:
    """Matthews' correlation of two classes, ids 0 and 1; BCa bootstrap, none with fewer than ten wrong or right."""

    def correlation(predicted: np.ndarray, actual: np.ndarray, axis: int) -> np.ndarray:
        p, q = predicted.mean(axis), actual.mean(axis)
        return ((predicted * actual).mean(axis) - p * q) / np.sqrt(p * (1 - p) * q * (1 - q))

    return _resampled(correlation, predictions, labels)


def majority_class(labels: np.ndarray) -> tuple[int, float]:
    """The most frequent class (the lowest of equals) and its share: what a constant prediction reaches."""
    counts = np.bincount(labels)
    return int(counts.argmax()), float(counts.max() / len(labels))


def _resampled(function: Any, predictions: np.ndarray, labels: np.ndarray) -> Estimate:
    _check(predictions, labels)
    wrong = int((predictions != labels).sum())
    if min(wrong, len(labels) - wrong) < MIN_ERRORS:
        return Estimate(float(function(predictions, labels, axis=-1)), None, None, len(labels))
    return statistic(function, predictions, labels)


def _check(predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must be [N] of one N above 0")
