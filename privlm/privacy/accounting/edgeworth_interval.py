"""EEAI: an interval that holds the true epsilon, from a bound on the error of the first-order Edgeworth expansion.

Wang et al., arXiv 2206.04236, with the bound of Derumigny, Girard, Guyonvarch, arXiv 2101.05780 (equal steps, moments
only), whose error term E3 is taken as the limit of E2. At delta <= 1e-5 it takes far more than thousands of steps until
the upper end is finite: the interval is there for honesty, not for calibration.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import gamma, gammaincc

from privlm.privacy.accounting import edgeworth
from privlm.privacy.accounting.adjacency import REPLACE, directions_of
from privlm.privacy.accounting.types import Segment


def interval(segments: Sequence[Segment], direction: str, delta: float) -> tuple[float, float]:
    """(lower, upper) bound of epsilon at `delta`; (0, inf) for steps of more than one kind.

    segments: merged, none of them empty.
    """
    if len(segments) > 1:
        return 0.0, math.inf
    [segment] = segments
    distances = [_distances(segment, each) for each in directions_of(direction)]
    pairs = zip(edgeworth.totals(segments, direction), distances, strict=True)
    lower, upper = zip(*(_interval(*cumulants, *errors, delta) for cumulants, errors in pairs), strict=True)
    return max(lower), max(upper)


def _distances(segment: Segment, direction: str) -> tuple[float, float]:
    """Of the primal loss and of its dual."""
    if direction == REPLACE:
        mirrored = distance(moments(*edgeworth.replaced_losses(segment)), segment.steps)
        return mirrored, mirrored
    absent, present = (distance(moments(*side), segment.steps) for side in edgeworth.losses(segment))
    return (present, absent) if direction == "remove" else (absent, present)


def _interval(
    primal: np.ndarray, dual: np.ndarray, primal_distance: float, dual_distance: float, delta: float
) -> tuple[float, float]:
    def excess(epsilon: np.ndarray, sign: float) -> np.ndarray:
        """Delta less `delta` where both tails are wrong by their distances, for the worse (+1) or the better (-1)."""
        primal_tail = np.clip(edgeworth.tail(epsilon, primal, 1) + sign * primal_distance, 0.0, 1.0)
        dual_tail = np.clip(edgeworth.tail(epsilon, dual, 1) - sign * dual_distance, 0.0, 1.0)
        with np.errstate(divide="ignore"):
            return primal_tail - np.exp(np.minimum(epsilon + np.log(dual_tail), 1.0)) - delta

    grid = edgeworth.epsilon_grid(primal)

    def crossing(index: int, sign: float) -> float:
        """Where the excess falls through 0 between two points of the grid."""
        return float(brentq(excess, grid[index], grid[index + 1], args=(sign,), xtol=1e-12))

    holds = np.flatnonzero(excess(grid, 1.0) <= 0)
    fails = np.flatnonzero(excess(grid, -1.0) > 0)
    upper = math.inf
    if len(holds):
        upper = float(grid[0]) if holds[0] == 0 else crossing(holds[0] - 1, 1.0)
    lower = crossing(fails[-1], -1.0) if len(fails) else 0.0
    return lower, upper


@dataclass(frozen=True)
class Moments:
    """Of one step's loss, centred and scaled to variance 1."""

    absolute_mean: float
    skewness: float  # its absolute value
    absolute_third: float
    kurtosis: float


def moments(values: np.ndarray, weights: np.ndarray) -> Moments:
    centred = values - weights @ values
    scaled = centred / math.sqrt(weights @ centred**2)
    size = abs(scaled)
    return Moments(weights @ size, abs(weights @ scaled**3), weights @ size**3, weights @ scaled**4)


def distance(moments: Moments, n: int) -> float:
    """Bound on sup |F - first-order Edgeworth expansion of F| for the sum of n equal steps, at most 1."""
    lam, K3, K4 = moments.skewness, moments.absolute_third, moments.kurtosis
    Kt = K3 + moments.absolute_mean
    e, psi = 0.1, 1.0253  # e is free in (0, 1/3)
    s = (1 - 3 * e) ** 2
    P2 = (
        48 * e * math.sqrt(K4 / n)
        + 4 * e**2 * K4 / n
        + 96 * math.sqrt(2 * e) * lam / (K4 * n) ** 0.25
        + 32 * e * lam**2 / math.sqrt(K4 * n)
        + 16 * math.sqrt(2) * K4**0.25 * lam * e**1.5 / n**0.75
    )
    E3 = math.exp(e**2 * (1 / 6 + 1 / (2 * s)))
    E2 = E3 * math.exp(e**2 * P2 / (288 * s))
    b = K4 / 12 + 1 / (4 * s) + P2 / (576 * s)
    hi = 2 * math.sqrt(n) / Kt
    lo = min(math.sqrt(2 * e) * (n / K4) ** 0.25, hi)
    leading = (
        0.1995 * Kt / math.sqrt(n)
        + (0.031 * Kt**2 + 0.327 * K4 * (1 / 12 + 1 / (4 * s)) + 0.054 * lam * Kt + 0.037 * E3 * lam**2) / n
    )
    remainder = (
        81.2376 * Kt**4 / (16 * math.pi**4 * n**2)
        + 4.3394 * lam * Kt**3 / (8 * math.pi**3 * n**2)
        + 1.306 * (E2 - E3) * lam**2 / (36 * n)
        + lam * _gamma_between(lo, hi) / math.sqrt(n)
        + psi * 2**2.5 * K3 / (3 * math.pi * math.sqrt(n)) * _gamma_between(lo**2 / 8, hi**2 / 8)
    )
    h = psi / (2 * math.pi * s)
    tails = (
        h * lam * math.sqrt(2) * gamma(2.5) / (6 * n**1.5)
        + h * K4 * 8 * gamma(5) / (24 * n**2)
        + h * lam**2 * 8 * gamma(5) / (36 * n**2)
        + h * K4 * lam * 2**3.5 * gamma(5.5) / (72 * n**2.5)
        + h * K4**2 * 16 * gamma(6) / (576 * n**3)
        + psi / math.pi * E2 * max(b, b**2) * 16 * gamma(6) / (8 * n**2)
        + psi / math.pi * E2 * lam * b * 2**3.5 * gamma(5.5) / (12 * n**1.5)
    )
    return min(1.0, leading + remainder + tails)


def _gamma_between(lower: float, upper: float) -> float:
    """Integral of sqrt(u) exp(-u) from `lower` to `upper`."""
    return gamma(1.5) * (gammaincc(1.5, lower) - gammaincc(1.5, upper))
