"""Two systems measured on the same items."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from privlm.metrics.estimate import MIN_N, Z_95, Estimate


def paired_difference(a: Any, b: Any, units: Any = None, weights: Any = None, *, span: float = 1.0) -> Estimate:
    """Mean of a - b over items, with the adjusted interval of Bonett and Price (J. Educ. Behav. Statist. 2012): as if
    one more unit had spoken wholly for a and one wholly for b. It holds more than 95 % where systems hardly differ.

    Args:
        a, b: what each item earned, [N]. units, weights: as of privlm.metrics.shares.share.
        span: the largest difference that an item can have.

    Raises ValueError for lengths that differ, no items, and weights that are all 0.
    """
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    weights = np.ones(len(differences)) if weights is None else np.asarray(weights, dtype=float)
    if not len(differences) or not weights.sum() > 0:
        raise ValueError("a difference needs items, and a weight above 0")
    unit = np.arange(len(differences)) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    weight = np.bincount(unit, weights)
    total = np.bincount(unit, weights * differences)[weight > 0]
    weight = weight[weight > 0]
    value, num_units = float(total.sum() / weight.sum()), len(weight)
    if num_units < MIN_N:
        return Estimate(value, None, None, num_units)
    one = weight.mean()
    each = np.append(total / weight, [span, -span])
    weight = np.append(weight, [one, one]) / (weight.sum() + 2 * one)
    centre = float((weight * each).sum())
    half = Z_95 * math.sqrt((weight**2 * (each - centre) ** 2).sum())
    return Estimate(value, max(-span, centre - half), min(span, centre + half), num_units)


def mcnemar(a: Any, b: Any) -> float:
    """Exact two-sided p of McNemar's test (Psychometrika 1947): among the items that one system alone has right, is it
    as often the one as the other? 1 where they agree on all.

    a, b: whether each item is right, bool [N].
    """
    from scipy.stats import binomtest

    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
