"""Gaussian-DP central limit accountant: an estimate that can be far too low in short runs.

Bu, Dong, Long, Su, "Deep learning with Gaussian differential privacy" (arXiv 1911.11607): T subsampled steps tend to
mu-GDP with mu = q sqrt(T (exp(1/sigma^2) - 1)); squares of mu add over segments.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from privlm.privacy.accounting.types import Curve, Segment


def curve(segments: Sequence[Segment]) -> Curve:
    """epsilon(delta) in the central limit; inf where mu exceeds the range of floats."""
    with np.errstate(over="ignore"):
        mu_squared = sum(s.sampling_rate**2 * s.steps * np.expm1(s.noise_multiplier**-2.0) for s in segments)
    return lambda delta: gaussian_epsilon(math.sqrt(mu_squared), delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of telling N(0, 1) from N(mu, 1) at `delta` (Balle and Wang, arXiv 1805.06530, Theorem 5)."""
    if math.isinf(mu):
        return math.inf

    def excess(epsilon: float) -> float:
        # e^eps Phi(-mu/2 - eps/mu) <= 1, so the exponent is negative; only its round-off can be positive.
        dual = np.exp(min(0.0, epsilon + log_ndtr(-mu / 2 - epsilon / mu)))
        return ndtr(mu / 2 - epsilon / mu) - dual - delta

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    # The first term alone is below delta here: Phi(-x) <= exp(-x^2 / 2).
    ceiling = mu**2 / 2 + mu * math.sqrt(-2 * math.log(delta))
    return float(brentq(excess, 0.0, ceiling, xtol=1e-12))
