"""How well scores tell members from non-members."""

from __future__ import annotations

from typing import Any

import numpy as np

from privlm.metrics.estimate import MIN_N, Z_95, Estimate
from privlm.metrics.shares import wilson


def auc(positive: Any, negative: Any) -> Estimate:
    """Area under the ROC curve of two sets of scores, ties counted half; n is the number of the smaller set.

    The interval is method 5 of Newcombe (Statistics in Medicine 2006): all areas from which the one seen lies no more
    than 1.96 of their own standard errors (Hanley and McNeil, Radiology 1982). It has a width at 0 and 1, too.
    """
    from scipy.optimize import brentq
    from scipy.stats import rankdata

    positive, negative = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    num_positive, num_negative = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))[:num_positive]
    area = float((ranks.sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
    n = min(num_positive, num_negative)
    if n < MIN_N:
        return Estimate(area, None, None, n)

    def apart(true: float) -> float:
        others = (num_positive + num_negative) / 2 - 1
        spread = true * (1 - true) * (1 + others * (1 - true) / (2 - true) + others * true / (1 + true))
        return (true - area) ** 2 - Z_95**2 * spread / (num_positive * num_negative)

    inside = min(max(area, 1e-9), 1 - 1e-9)  # at 0 and 1 the area itself is a root
    low = 0.0 if area <= 0 else float(brentq(apart, 0.0, inside))
    return Estimate(area, low, 1.0 if area >= 1 else float(brentq(apart, inside, 1.0)), n)


def mean_of_rates(first: Estimate, second: Estimate) -> Estimate:
    """The mean of two shares of different sets: balanced accuracy from the rates of members and of non-members that are
    told right.

    It has the interval of a share of as many items as give its variance, half a count being added to each side of both
    rates; for equal rates of equal sets that is one share of all items.
    """
    value, n = (first.value + second.value) / 2, min(first.n, second.n)
    if n < MIN_N:
        return Estimate(value, None, None, n)
    rates = [(one.n * one.value + 0.5) / (one.n + 1) for one in (first, second)]
    variance = sum(rate * (1 - rate) / one.n for rate, one in zip(rates, (first, second), strict=True)) / 4
    middle = sum(rates) / 2
    return Estimate(value, *wilson(value, middle * (1 - middle) / variance), n)
