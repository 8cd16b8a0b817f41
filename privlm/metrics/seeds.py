"""What runs that differ in the seed alone say about their mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from privlm.metrics.estimate import MIN_N, Estimate


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean with Student's t interval. It is about new seeds, not about new data: all runs saw the same items.

    Of differences seed by seed it is the paired t interval. None with fewer than three seeds, where all are equal (they
    say nothing of what others would give), and where a value is not finite.
    """
    n = len(values)
    mean = values[0] if len(set(values)) == 1 else sum(values) / n  # all infinite included
    if n < MIN_N or not all(map(math.isfinite, values)) or agree(values):
        return Estimate(mean, None, None, n)
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def agree(values: Sequence[float]) -> bool:
    """Whether all are equal but for rounding."""
    return math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)


def sign_flips(differences: Sequence[float]) -> float:
    """Exact two-sided p of the mean under flips of the signs (Fisher, The Design of Experiments, section 21).

    It asks nothing of the distribution; six seeds of one sign give 1/32, five 1/16.
    """
    import numpy as np
    from scipy.stats import permutation_test

    flips = permutation_test((np.array(differences),), np.mean, permutation_type="samples", n_resamples=1 << 14, rng=0)
    return float(flips.pvalue)
