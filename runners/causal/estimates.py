"""Values with 95 % intervals by resampling items (percentile bootstrap; Efron, 1979)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from privlm.metrics.classification import Estimate

RESAMPLES = 5000
SEED = 0


def estimate(rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """A statistic of the sums of `rows`, with the interval over resampled rows.

    Args:
        rows: float [num_units, num_columns]; the columns of two systems in one row make the comparison paired.
        statistic: sums [..., num_columns] -> values [...]; NaN where undefined.
    """
    num_units = len(rows)
    counts = np.random.default_rng(SEED).multinomial(num_units, np.full(num_units, 1 / num_units), size=RESAMPLES)
    resampled = statistic(counts @ rows)
    low, high = np.nanquantile(resampled, (0.025, 0.975)) if not np.isnan(resampled).all() else (np.nan, np.nan)
    return Estimate(float(statistic(rows.sum(0))), float(low), float(high), num_units)


def mean(values: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """The (weighted) mean of values [num_units]. Raises ValueError if all weights are 0."""
    weights = np.ones(len(values)) if weights is None else weights
    if not weights.sum() > 0:
        raise ValueError("a weighted mean needs a weight above 0")
    return estimate(np.stack([values * weights, weights], axis=1), _ratio)


def _ratio(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]
