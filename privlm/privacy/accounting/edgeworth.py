"""Edgeworth accountant AEA: a fast, close estimate of epsilon that is NOT a guarantee (it understates short runs).

Wang et al., arXiv 2206.04236. The total privacy loss of a run is expanded around the normal distribution by its
cumulants, which add over steps; order 0 is the plain central limit, orders 1 to 3 add one group of corrections each.
"""

from collections.abc import Sequence

import numpy as np
from numpy.polynomial.hermite_e import hermeval
from scipy.optimize import brentq
from scipy.special import ndtr

from privlm.privacy.accounting.adjacency import REPLACE
from privlm.privacy.accounting.loss import loss, loss_in
from privlm.privacy.accounting.types import Curve, Segment

# Trapezoid nodes for expectations over N(0, 1). The privacy loss is analytic up to a distance pi sigma from the real
# line, so the error exp(-2 pi^2 sigma / 0.005) is below round-off for sigma >= 0.01; for still less noise the bend of
# the loss lies outside both windows of `cumulants`.
_SPACING = 0.005
_NODES = _SPACING * np.arange(-2800, 2801)
_WEIGHTS = _SPACING * np.exp(-(_NODES**2) / 2) / np.sqrt(2 * np.pi)
_FLIP = np.array([-1.0, 1.0, -1.0, 1.0, -1.0])  # cumulants 1 to 5 of -L from those of L

# Standard deviations beyond which every tail is exactly 0 or 1 in floating point.
_REACH = 40.0


def curve(segments: Sequence[Segment], order: int, direction: str) -> Curve:
    """epsilon(delta) estimated with `order` groups of corrections (0 to 3), the larger of the directions asked for."""
    pairs = totals(segments, direction)
    return lambda delta: max(_largest_root(primal, dual, order, delta) for primal, dual in pairs)


def totals(segments: Sequence[Segment], direction: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(primal, dual) cumulants of the whole run for each direction asked for, in the order remove, add.

    The primal loss S_Y and its dual S_X have delta(epsilon) = P[S_Y > epsilon] - e^epsilon P[S_X > epsilon].
    """
    if direction == REPLACE:
        primal = np.sum([segment.steps * _cumulants(*replaced_losses(segment)) for segment in segments], axis=0)
        return [(primal, _FLIP * primal)]
    absent, present = np.sum([segment.steps * np.stack(cumulants(segment)) for segment in segments], axis=0)
    pairs = {"remove": (present, absent), "add": (_FLIP * absent, _FLIP * present)}
    return list(pairs.values()) if direction == "both" else [pairs[direction]]


def cumulants(segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """First five cumulants, each [5], of one step's loss under P (record absent) and Q (present)."""
    absent, present = losses(segment)
    return _cumulants(*absent), _cumulants(*present)


def losses(segment: Segment) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(values, probabilities) of one step's loss L = log dQ/dP at the nodes of P (record absent) and of Q (present).

    P = N(0, 1) and Q = (1 - q) N(0, 1) + q N(mu, 1) with mu = 1 / sigma.
    """
    q, mu = segment.sampling_rate, 1 / segment.noise_multiplier
    unsampled, sampled = loss(_NODES, q, mu), loss(_NODES + mu, q, mu)
    mixture = np.concatenate([unsampled, sampled]), np.concatenate([(1 - q) * _WEIGHTS, q * _WEIGHTS])
    return (unsampled, _WEIGHTS), mixture


def replaced_losses(segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """(values, probabilities) of one step's loss where a record is replaced; its dual is the mirror of it."""
    q, mu = segment.sampling_rate, 1 / segment.noise_multiplier
    values = [loss_in(REPLACE, nodes, q, mu) for nodes in (_NODES, _NODES + mu)]
    return np.concatenate(values), np.concatenate([(1 - q) * _WEIGHTS, q * _WEIGHTS])


def _cumulants(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    mean = (weights * values).sum()  # sums, not products of matrices, whose threads cost more than they bring here
    centred = values - mean
    terms, moments = weights * centred, []
    for _ in range(4):
        terms = terms * centred
        moments.append(terms.sum())
    c2, c3, c4, c5 = moments
    return np.array([mean, c2, c3, c4 - 3 * c2**2, c5 - 10 * c3 * c2])


def tail(epsilon: np.ndarray, cumulant: np.ndarray, order: int) -> np.ndarray:
    """P[S > epsilon] for a sum S with these cumulants."""
    deviation = np.sqrt(cumulant[1])
    if deviation < max(1e-50, 1e-12 * abs(cumulant[0])):  # S is a constant
        return (epsilon < cumulant[0]).astype(float)
    z = (epsilon - cumulant[0]) / deviation
    l3, l4, l5 = cumulant[2:] / deviation ** np.array([3, 4, 5])
    hermite = np.zeros(9)  # coefficients of He_0 ... He_8
    if order >= 1:
        hermite[2] = l3 / 6
    if order >= 2:
        hermite[[3, 5]] = l4 / 24, l3**2 / 72
    if order >= 3:
        hermite[[4, 6, 8]] = l5 / 120, l3 * l4 / 144, l3**3 / 1296
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.clip(ndtr(-z) + density * hermeval(z, hermite), 0.0, 1.0)


def epsilon_grid(cumulant: np.ndarray) -> np.ndarray:
    """Ascending epsilons >= 0 over the whole range in which a tail with these cumulants is neither 0 nor 1."""
    return np.maximum(0.0, cumulant[0] + np.sqrt(cumulant[1]) * np.linspace(-_REACH, _REACH, 1601))


def _largest_root(primal: np.ndarray, dual: np.ndarray, order: int, delta: float) -> float:
    """Largest epsilon with P[S_Y > epsilon] - e^epsilon P[S_X > epsilon] = delta, or 0.

    The largest, because an expansion oscillates: smaller roots are artefacts.
    """

    def excess(epsilon: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            log_dual = epsilon + np.log(tail(epsilon, dual, order))
        # Anything above 1 makes the difference negative already; the cap keeps large epsilon from overflowing.
        return tail(epsilon, primal, order) - np.exp(np.minimum(log_dual, 1.0)) - delta

    grid = epsilon_grid(primal)
    above = np.flatnonzero(excess(grid) > 0)
    if len(above) == 0:
        return float(grid[0])
    last = above[-1]
    return float(brentq(excess, grid[last], grid[last + 1], xtol=1e-12))
