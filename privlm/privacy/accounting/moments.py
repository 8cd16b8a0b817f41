"""Moments of the privacy loss of a run: its cumulant generating function, on the real line and along a contour."""

import math
from collections.abc import Sequence

import numpy as np

from privlm.privacy.accounting.loss import loss, loss_in
from privlm.privacy.accounting.types import Segment

WINDOW = 40.0  # parts of an integrand below exp(-40) of its peak are left out
_REACH = math.sqrt(2 * WINDOW)  # where a standard normal density is that small
_MAX_LOSSES = 1 << 20  # nodes for one expectation over the loss


class TooManyNodes(ArithmeticError):
    """An expectation that would take more nodes than `_MAX_LOSSES`."""


class Moments:
    """K(z) = log E_P[exp(z S)] of the loss S of all steps, for a real part t > 0 of z, in one direction.

    K(a - 1) / (a - 1) is the Renyi divergence of order a.
    """

    def __init__(self, segments: Sequence[Segment], direction: str) -> None:
        self._segments = segments
        self._direction = direction

    def derivatives(self, t: float) -> tuple[float, float, float]:
        """K, K' and K'' at the real point t. Raises TooManyNodes."""
        total = np.zeros(3)
        for segment in self._segments:
            log_scale, weights, losses = self._tilted(segment, t, 0.0)
            mass = weights.sum()
            mean = weights @ losses / mass
            variance = weights @ (losses - mean) ** 2 / mass
            total += segment.steps * np.array([log_scale + math.log(mass), mean, variance])
        return total[0], total[1], total[2]

    def on_contour(self, t: float, y_M: np.ndarray) -> np.ndarray:
        """K(t + i y), complex [M], for ascending y. Raises TooManyNodes."""
        total_M = np.zeros(len(y_M), dtype=complex)
        for segment in self._segments:
            log_scale, weights, losses = self._tilted(segment, t, y_M[-1])
            moment_M = np.exp(1j * np.outer(y_M, losses)) @ weights
            with np.errstate(divide="ignore"):
                total_M += segment.steps * (log_scale + np.log(moment_M))
        return total_M

    def _tilted(self, segment: Segment, t: float, y: float) -> tuple[float, np.ndarray, np.ndarray]:
        """(log scale, weights, losses) with E_P[exp(t S) f(S)] = exp(log scale) * sum(weights * f(losses)).

        Trapezoid rule: its error is exp(-2 pi d / spacing) for an integrand that is analytic up to a distance d from
        the real line, here pi sigma, and grows on the way by exp(y S' d).
        """
        q, mu = segment.sampling_rate, 1 / segment.noise_multiplier
        first, last = -_REACH, self._peak_bound(q, mu, t) + _REACH
        steepest = 0.0
        for frequency in (0.0, y):
            spacing = min(0.25, 1 / (2.5 * mu + 0.25 * frequency * steepest))
            if (last - first) / spacing > _MAX_LOSSES:
                raise TooManyNodes
            x = np.arange(first, last + spacing, spacing)
            losses = loss_in(self._direction, x, q, mu)
            exponents = t * losses - x**2 / 2
            if self._direction != "add":
                exponents += losses if self._direction == "remove" else loss(x, q, mu)  # P = N(0, 1) exp(L)
            log_scale = exponents.max()
            kept = np.flatnonzero(exponents > log_scale - WINDOW)
            first, last = x[kept[[0, -1]]]
            steepest = self._steepest(first, last, q, mu)
            if y == 0:
                break
        weights = np.exp(exponents[kept] - log_scale) * spacing / math.sqrt(2 * math.pi)
        return log_scale, weights, losses[kept]

    def _peak_bound(self, q: float, mu: float, t: float) -> float:
        """No peak of the tilted density of x, which lies at or above 0, lies beyond it."""
        if self._direction == "remove":
            return (1 + t) * mu
        if self._direction == "replace":
            return (1 + 2 * t) * mu
        if q == 1:
            return t * mu
        span = float(loss(np.zeros(1), q, mu)[0]) - math.log1p(-q)  # from the loss at 0 to its supremum
        return min(t * mu, math.sqrt(2 * t * span))

    def _steepest(self, first: float, last: float, q: float, mu: float) -> float:
        """Bound of S' between two x; the slope of L grows with x."""

        def slope(x: float) -> float:
            return mu * q * math.exp(mu * x - mu**2 / 2 - float(loss(np.array([x]), q, mu)[0]))

        rising = 0.0 if self._direction == "add" else slope(last)
        return rising + (0.0 if self._direction == "remove" else slope(-first))
