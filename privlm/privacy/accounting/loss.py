"""The privacy loss of one Poisson-subsampled Gaussian step, in units of its noise.

A direction names the pair of outputs that a step is told apart by, with mu = 1 / sigma and the sampling rate q:

    remove   P = (1 - q) N(0, 1) + q N(mu, 1)   Q = N(0, 1)                          a record less
    add      P = N(0, 1)                        Q = (1 - q) N(0, 1) + q N(-mu, 1)    a record more
    replace  P = (1 - q) N(0, 1) + q N(mu, 1)   Q = (1 - q) N(0, 1) + q N(-mu, 1)    another record (its own mirror)

The loss log dP/dQ grows in x for each. That these pairs dominate what they stand for is shown in adjacency.py.
"""

import math

import numpy as np
from scipy.special import log_ndtr, ndtr

from privlm.privacy.accounting.types import Segment


def loss(x: np.ndarray, sampling_rate: float, mu: float) -> np.ndarray:
    """L(x) = log dP/dQ(x) in the direction remove."""
    exponent = mu * x - mu**2 / 2
    if sampling_rate == 1:
        return exponent
    # log1p and expm1 keep the mean, about -1e-6 for small q; past 50 expm1 could overflow and the 1 no longer matters.
    small = np.log1p(sampling_rate * np.expm1(np.minimum(exponent, 50.0)))
    return np.where(exponent < 50.0, small, np.logaddexp(np.log1p(-sampling_rate), np.log(sampling_rate) + exponent))


def loss_in(direction: str, x: np.ndarray, sampling_rate: float, mu: float) -> np.ndarray:
    """log dP/dQ(x) in a direction: L(x), -L(-x), or their sum."""
    if direction == "remove":
        return loss(x, sampling_rate, mu)
    added = -loss(-x, sampling_rate, mu)
    return added if direction == "add" else added + loss(x, sampling_rate, mu)


def noise_of(direction: str, losses: np.ndarray, segment: Segment) -> np.ndarray:
    """The x of each loss; -inf below the range of losses, inf above it."""
    q, mu = segment.sampling_rate, 1 / segment.noise_multiplier
    if direction == "add":
        return -noise_of("remove", -losses, segment)
    if direction == "replace":
        return _replaced_noise_of(losses, q, mu)
    log_ratio = losses
    if q < 1:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_ratio = np.log1p(np.expm1(losses) / q)  # of exp(mu x - mu^2 / 2)
        log_ratio = np.where(losses > 500, losses - math.log(q), log_ratio)
        log_ratio = np.where(losses <= math.log1p(-q), -math.inf, log_ratio)
    return (log_ratio + mu**2 / 2) / mu


def _replaced_noise_of(losses: np.ndarray, q: float, mu: float) -> np.ndarray:
    """From mu x = l / 2 + asinh(A sinh(l / 2)), A = (1 - q) / q exp(mu^2 / 2), in logarithms lest anything overflow."""
    if q == 1:
        return losses / (2 * mu)
    half = np.abs(losses) / 2
    with np.errstate(divide="ignore"):
        log_sinh = half + np.log(-np.expm1(-2 * half) / 2)
    log_argument = math.log1p(-q) - math.log(q) + mu**2 / 2 + log_sinh
    asinh = np.logaddexp(log_argument, np.logaddexp(0.0, 2 * log_argument) / 2)
    return np.sign(losses) * (half + asinh) / mu


def tails(direction: str, x: np.ndarray, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """(P[X > x], log Q[X > x]) of the pair of a direction."""
    q, mu = segment.sampling_rate, 1 / segment.noise_multiplier
    above, log_below = ndtr(-x), log_ndtr(-x)
    if direction != "add":
        above = (1 - q) * above + q * ndtr(mu - x) if q < 1 else ndtr(mu - x)
    if direction != "remove":
        moved = log_ndtr(-x - mu)
        log_below = np.logaddexp(math.log1p(-q) + log_below, math.log(q) + moved) if q < 1 else moved
    return above, log_below


def deltas(direction: str, epsilons: np.ndarray, segment: Segment) -> np.ndarray:
    """The delta of one step at each epsilon: P[loss > epsilon] - exp(epsilon) Q[loss > epsilon]."""
    above, log_below = tails(direction, noise_of(direction, epsilons, segment), segment)
    return np.clip(above - np.exp(epsilons + log_below), 0.0, 1.0)
