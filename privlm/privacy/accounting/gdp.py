"""Gaussian-DP central limit accountant: an estimate that can be far too low in short runs.

Bu, Dong, Long, Su, "Deep learning with Gaussian differential privacy" (arXiv 1911.11607): T subsampled steps tend to
mu-GDP with mu = q sqrt(T (exp(1/sigma^2) - 1)); squares of mu add over segments. The same limit of the pair of a
replaced record has (exp(1/sigma^2) - exp(-1/sigma^2)) 2 for (exp(1/sigma^2) - 1): mu = 2 q sqrt(T sinh(1/sigma^2)).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import erfcx, ndtr

from privlm.privacy.accounting.adjacency import REPLACE
from privlm.privacy.accounting.types import Curve, Segment


def curve(segments: Sequence[Segment], direction: str) -> Curve:
    """epsilon(delta) in the central limit, for both directions or for `replace`; inf beyond the range of floats."""

    def distance(inverse_variance: float) -> float:
        return 4 * np.sinh(inverse_variance) if direction == REPLACE else np.expm1(inverse_variance)

    with np.errstate(over="ignore"):
        mu_squared = sum(s.sampling_rate**2 * s.steps * distance(s.noise_multiplier**-2.0) for s in segments)
    return lambda delta: gaussian_epsilon(math.sqrt(mu_squared), delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of telling N(0, 1) from N(mu, 1) at `delta` (Balle and Wang, arXiv 1805.06530, Theorem 5).

    With epsilon = mu^2/2 + mu t, delta = Phi(-t) - e^epsilon Phi(-mu - t), and e^epsilon Phi(-mu - t) is written as
    exp(-t^2/2) erfcx((mu + t)/sqrt 2)/2, in which nothing overflows or cancels.
    """

    def excess(t: float) -> float:
        return ndtr(-t) - math.exp(-(t**2) / 2) * erfcx((mu + t) / math.sqrt(2)) / 2 - delta

    low = max(-mu / 2, -40.0)  # epsilon 0, or where Phi(-t) is 1
    if excess(low) <= 0:
        return mu * (mu / 2 + low)
    high = math.sqrt(-2 * math.log(delta))  # Phi(-t) <= exp(-t^2/2), so the first term alone is below delta
    return mu * (mu / 2 + brentq(excess, low, high, xtol=1e-14))
