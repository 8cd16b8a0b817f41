"""Accuracy and F1 of class predictions with 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal


@dataclass(frozen=True)
class Estimate:
    """A value measured on n examples, and its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> Estimate:
    """Share of right predictions with the Wilson score interval (Wilson, JASA 1927).

    Args:
        predictions, labels: class ids [N].
    """
    n = _num_examples(predictions, labels)
    share = float(np.mean(predictions == labels))
    shrink = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / shrink
    half_width = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2)) / shrink
    return Estimate(share, max(0.0, centre - half_width), min(1.0, centre + half_width), n)


def f1(predictions: np.ndarray, labels: np.ndarray, positive: int, seed: int = 0, resamples: int = 10_000) -> Estimate:
    """F1 of the class `positive`, 0 where neither labels nor predictions hold it, with a bootstrap percentile interval.

    F1 depends only on how many examples are true positive, false positive, false negative or none of these, so
    resampling the examples is drawing these four counts from their multinomial distribution.
    """
    n = _num_examples(predictions, labels)
    predicted, actual = predictions == positive, labels == positive
    counts = np.array([np.sum(predicted & actual), np.sum(predicted & ~actual), np.sum(~predicted & actual)])
    cells = np.append(counts, n - counts.sum())
    resampled = np.random.default_rng(seed).multinomial(n, cells / n, size=resamples)
    low, high = np.quantile(_f1_of_counts(resampled), (0.025, 0.975))
    return Estimate(float(_f1_of_counts(cells[None])[0]), float(low), float(high), n)


def majority_class(labels: np.ndarray) -> tuple[int, float]:
    """The most frequent class (the lowest of equals) and its share: what a constant prediction reaches."""
    counts = np.bincount(labels)
    return int(counts.argmax()), float(counts.max() / len(labels))


def _f1_of_counts(counts: np.ndarray) -> np.ndarray:
    """[..., (true positive, false positive, false negative, other)] -> F1 [...]."""
    true_positive, false_positive, false_negative = counts[..., 0], counts[..., 1], counts[..., 2]
    return 2 * true_positive / np.maximum(2 * true_positive + false_positive + false_negative, 1)


def _num_examples(predictions: np.ndarray, labels: np.ndarray) -> int:
    if predictions.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must be [N] of one N above 0")
    return len(labels)
