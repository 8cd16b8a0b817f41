"""A statistic of independent units that has no interval of its own: the BCa bootstrap."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from privlm.metrics.estimate import Estimate

MIN_UNITS = 30
RESAMPLES = 2000


def statistic(function: Callable[..., Any], *columns: Any, seed: int = 0) -> Estimate:
    """The value of `function(*columns)` with a bias-corrected and accelerated interval (Efron, JASA 1987), its level
    raised by as much as the spread of n resampled units falls short of that of n new ones (expanded percentiles,
    Hesterberg, The American Statistician 2015, section 5.3).

    No interval with fewer than 30 units, nor where the resampled values do not differ. Prefer a share, a paired
    difference or the t interval where the figure is one: resampling knows nothing of failures that it has not seen.

    Args:
        function: columns [N] each, or with axis=-1 [..., N], to values; NaN where undefined.
        columns: what is known of each unit, [N] each; rows are resampled together.
    """
    from scipy.stats import bootstrap, norm, t

    arrays = [np.asarray(column) for column in columns]
    value, n = float(function(*arrays, axis=-1)), len(arrays[0])
    if n < MIN_UNITS or not math.isfinite(value):
        return Estimate(value, None, None, n)
    level = 1 - 2 * float(norm.sf(math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)))
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):  # said by an interval that is absent
        drawn = bootstrap(
            arrays, function, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=max(1, 1_000_000 // n),
            method="BCa", confidence_level=level, rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = map(float, drawn.confidence_interval)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return Estimate(value, None, None, n)
    return Estimate(value, low, high, n)
