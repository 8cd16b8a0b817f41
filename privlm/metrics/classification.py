"""Accuracy, F1 and other figures of class predictions with 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from privlm.metrics.estimate import MIN_N, Estimate
from privlm.metrics.shares import share, share_of_counts, wilson


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
    """Mean over the classes of the labels of their F1.

    The intervals of the classes are added in squares (Zou and Donner, Statistics in Medicine 2008). An error is one of
    two classes: two of them go together as far as their errors are the same ones, wholly where there are none.
    """
    _check(predictions, labels)
    classes = np.unique(labels)
    found = [f1(predictions, labels, one) for one in classes]
    values, n = np.array([one.value for one in found]), len(labels)
    if any(one.ci_low is None for one in found):
        return Estimate(float(values.mean()), None, None, n)
    wrong = predictions != labels
    touched = np.stack([wrong & ((predictions == one) | (labels == one)) for one in classes]).astype(float)
    shared, errors = touched @ touched.T, touched.sum(axis=1)
    correlation = np.where(
        shared + errors + errors[:, None] == 0, 1.0, shared / np.sqrt(np.outer(errors, errors) + 1e-9)
    )
    np.fill_diagonal(correlation, 1.0)
    down, up = (values - [one.ci_low for one in found], [one.ci_high for one in found] - values)
    low, high = (math.sqrt(side @ correlation @ side) / len(classes) for side in (down, up))
    return Estimate(float(values.mean()), float(values.mean()) - low, float(values.mean()) + high, n)


def matthews(predictions: np.ndarray, labels: np.ndarray) -> Estimate:
    """Matthews' correlation of two classes, ids 0 and 1; NaN where either holds one class alone.

    (1 + coefficient) / 2 takes the interval of a share, with the design effect that the variance of the coefficient
    (Bishop, Fienberg and Holland, Discrete Multivariate Analysis, 1975, section 11.2) has over that of a share; half a
    count is added to each of the four cells for it.
    """
    _check(predictions, labels)
    n = len(labels)
    counts = np.bincount(2 * labels + predictions, minlength=4).reshape(2, 2)
    value, _ = _phi(counts)
    if n < MIN_N or math.isnan(value):
        return Estimate(value, None, None, n)
    phi, variance = _phi(counts + 0.5)
    low, high = wilson((1 + value) / 2, n * (1 - phi**2) / variance)
    return Estimate(value, 2 * low - 1, 2 * high - 1, n)


def _phi(counts: np.ndarray) -> tuple[float, float]:
    """The correlation of a table of 2 x 2 counts, and n times its variance."""
    cells = counts / counts.sum()
    (p, q), (r, s) = cells.sum(axis=1), cells.sum(axis=0)
    if not p * q * r * s > 0:
        return math.nan, math.nan
    phi = float((cells[0, 0] * cells[1, 1] - cells[0, 1] * cells[1, 0]) / math.sqrt(p * q * r * s))
    skew_p, skew_r = (p - q) / math.sqrt(p * q), (r - s) / math.sqrt(r * s)
    variance = 1 - phi**2 + phi * (1 + phi**2 / 2) * skew_p * skew_r - 0.75 * phi**2 * (skew_p**2 + skew_r**2)
    return phi, float(variance)


def majority_class(labels: np.ndarray) -> tuple[int, float]:
    """The most frequent class (the lowest of equals) and its share: what a constant prediction reaches."""
    counts = np.bincount(labels)
    return int(counts.argmax()), float(counts.max() / len(labels))


def _check(predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must be [N] of one N above 0")
