"""Shares of items, with Wilson's interval and the design effect where items come in units or carry weights.

Wilson's score interval (JASA 1927) covers 83 to 92 % of the time where few items fail, or n is small; there each end is
that of the mid-P interval if it lies further out (Brown, Cai and DasGupta, Statistical Science 2001, compare them).
Items of one unit (the two directions of a pair, the samples of a question) tend to be right together, and weights make
some items count for more: n is divided by the design effect, the ratio of the variance of the mean to that of as many
equal, independent items (Kish, Survey Sampling 1965).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import betainc

from privlm.metrics.estimate import MIN_N, Z_95, Estimate

FEW_FAILURES, SMALL_N = 5, 40
"""Up to so many failures (or successes), or below this n, Wilson's interval alone is too narrow."""


def share(correct: Any, units: Any = None, weights: Any = None, *, lowest: float = 0.0) -> Estimate:
    """The (weighted) share of items that are right. Its n is the number of units.

    Args:
        correct: for each item 1 (right), 0 (wrong) or the credit that it earns in between, [N].
        units: the unit of each item, any label, [N]. None: every item is one of its own.
        weights: of each item, [N]; items of weight 0 are left out. None: all equal.
        lowest: the least credit, where it lies below 0.

    Raises ValueError for no items, for values outside [lowest, 1] and for weights that are all 0.
    """
    earned = np.asarray(correct, dtype=float)
    values = (earned - lowest) / (1 - lowest)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"a share needs items, and values in [{lowest:g}, 1]")
    if not weights.sum() > 0:
        raise ValueError("a weighted mean needs a weight above 0")
    kept = weights > 0
    _, unit = np.unique(np.arange(len(values))[kept] if units is None else np.asarray(units)[kept], return_inverse=True)
    values, weights, num_units = values[kept], weights[kept], int(unit.max()) + 1
    value = float(np.average(earned[kept], weights=weights))
    if num_units < MIN_N:
        return Estimate(value, None, None, num_units)
    part = float(np.average(values, weights=weights))
    low, high = (
        lowest + (1 - lowest) * end for end in wilson(part, len(values) / design_effect(values, unit, weights))
    )
    return Estimate(value, low, high, num_units)


def share_of_counts(successes: Any, sizes: Any) -> Estimate:
    """The share of items that are right, where unit u holds `sizes[u]` items and `successes[u]` of them are; units
    without items are left out. NaN where there are no items at all.
    """
    successes, sizes = np.asarray(successes, dtype=int), np.asarray(sizes, dtype=int)
    if not sizes.sum():
        return Estimate(math.nan, None, None, 0)
    outcomes = np.tile([1.0, 0.0], len(sizes))
    times = np.stack([successes, sizes - successes], axis=1).ravel()
    return share(np.repeat(outcomes, times), np.repeat(np.arange(len(sizes)), sizes))


def wilson(value: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share `value` of n items; n need not be whole."""
    shrink = 1 + Z_95**2 / n
    centre = (value + Z_95**2 / (2 * n)) / shrink
    half = Z_95 * math.sqrt(value * (1 - value) / n + Z_95**2 / (4 * n**2)) / shrink
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    if n < SMALL_N or n * min(value, 1 - value) < FEW_FAILURES + 0.5:
        low, high = min(low, 1 - _mid_p_high(1 - value, n)), max(high, _mid_p_high(value, n))
    return low, high


def design_effect(values: np.ndarray, unit: np.ndarray, weights: np.ndarray) -> float:
    """The variance of the weighted mean of values in [0, 1] over that of as many independent yes or no of equal weight.

    The correlation within units is that of an analysis of variance, with one more unit that is all right and one that
    is all wrong, so that a few failing units do not pass for independent items. Credits between 0 and 1 vary less than
    yes and no do; one more item that varies as those keeps the variance from 0.

    Args:
        values, weights: of the items, [N]. unit: the unit of each, 0 to U - 1, [N].
    """
    num_items, num_units = len(values), int(unit.max()) + 1
    spread = values.mean() * (1 - values.mean())
    ratio = 1.0 if spread <= 0 else (((values - values.mean()) ** 2).sum() + spread) / ((num_items + 1) * spread)
    correlation = 0.0
    if num_units < num_items:
        sizes = np.bincount(unit)
        within = ((values - (np.bincount(unit, values) / sizes)[unit]) ** 2).sum()
        size = num_items / num_units
        mean = (values.sum() + size) / (num_items + 2 * size)
        freedom = num_items - num_units + 2 * (size - 1)
        correlation = min(1.0, max(0.0, 1 - within / (freedom * ratio * mean * (1 - mean))))
    alone, together = (weights**2).sum(), (np.bincount(unit, weights) ** 2).sum()
    kish = ((1 - correlation) * alone + correlation * together) / weights.sum() ** 2
    return float(num_items * ratio * kish)


def _mid_p_high(value: float, n: float) -> float:
    """The share at which `value` or less is seen 2.5 % of the time, `value` itself counted half."""
    from scipy.optimize import brentq

    successes = min(n, value * n)
    if n - successes < 1e-9:
        return 1.0

    def at_most(true: float) -> float:
        fewer = 1 - betainc(successes, n - successes + 1, true) if successes > 1e-9 else 0.0
        return (fewer + 1 - betainc(successes + 1, n - successes, true)) / 2

    return float(brentq(lambda true: at_most(true) - 0.025, 0.0, 1.0))
