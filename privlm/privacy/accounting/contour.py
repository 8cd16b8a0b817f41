"""Contour accountant: epsilon by one integral in the complex plane, whatever the number of steps. NOT a guarantee.

Where PLD rounds the privacy loss S of a run to a grid, this inverts its moment generating function, for any t > 0:

    delta(eps) = 1/pi Int_0^inf Re{ exp(K(z) - z eps) / (z (1 + z)) } dy,   z = t + i y,   K(z) = log E[exp(z S)]

Exact up to quadrature, whose error is estimated and not proved: a cross-check, and a fast place to search from.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq

from privlm.errors import UsageError
from privlm.privacy.accounting.adjacency import on_full_data
from privlm.privacy.accounting.loss import loss
from privlm.privacy.accounting.types import Segment

_WINDOW = 40.0  # parts of an integrand below exp(-40) of its peak are left out
_REACH = math.sqrt(2 * _WINDOW)  # where a standard normal density is that small
_BLOCK = 64  # nodes on the contour, evaluated at a time
_MAX_NODES = 1 << 12
_MAX_LOSSES = 1 << 20  # nodes for one expectation over the loss


def solve(segments: Sequence[Segment], direction: str, delta: float) -> tuple[float, float]:
    """(epsilon at `delta`, estimated quadrature error of it): the larger epsilon of the directions asked for.

    Raises UsageError where the integrand falls off too slowly: runs of a few steps, or with hardly any noise.
    """
    if 1 - math.prod((1 - segment.sampling_rate) ** segment.steps for segment in segments) <= delta:
        return 0.0, 0.0  # delta covers the chance that a record is ever drawn
    if direction != "both":
        return _solve(_Moments(segments, direction), delta)
    removal, addition = _solve(_Moments(segments, "remove"), delta), _Moments(segments, "add")
    if on_full_data(segments) or _saddle_point(addition, delta)[1] < 0.9 * removal[0]:
        return removal  # adding costs the same, or less by more than the approximation can be wrong
    return max(removal, _solve(addition, delta))


Integral = Callable[[float], tuple[float, float, float]]
"""epsilon -> (delta, its derivative, the estimated error of delta)."""


class _Moments:
    """K of all steps in one direction.

    Moments of the loss are those of exp(s L) under P = N(0, 1): since Q = P exp(L), s = 1 + z for the loss L under Q
    (remove), and s = -z for the loss -L under P (add).
    """

    def __init__(self, segments: Sequence[Segment], direction: str) -> None:
        self._segments = segments
        self._offset, self._sign = (1.0, 1.0) if direction == "remove" else (0.0, -1.0)

    def derivatives(self, t: float) -> tuple[float, float, float]:
        """K, K' and K'' at the real point t > 0."""
        total = np.zeros(3)
        for segment in self._segments:
            log_scale, weights, losses = self._tilted(segment, t, 0.0)
            mass = weights.sum()
            mean = weights @ losses / mass
            variance = weights @ (losses - mean) ** 2 / mass
            total += segment.steps * np.array([log_scale + math.log(mass), self._sign * mean, variance])
        return total[0], total[1], total[2]

    def on_contour(self, t: float, y_M: np.ndarray) -> np.ndarray:
        """K(t + i y), complex [M], for ascending y."""
        total_M = np.zeros(len(y_M), dtype=complex)
        for segment in self._segments:
            log_scale, weights, losses = self._tilted(segment, t, y_M[-1])
            moment_M = np.exp(1j * self._sign * np.outer(y_M, losses)) @ weights
            with np.errstate(divide="ignore"):
                total_M += segment.steps * (log_scale + np.log(moment_M))
        return total_M

    def _tilted(self, segment: Segment, t: float, y: float) -> tuple[float, np.ndarray, np.ndarray]:
        """(log scale, weights, losses) with E_P[exp(s L) f(L)] = exp(log scale) * sum(weights * f(losses)).

        Trapezoid rule: its error is exp(-2 pi d / spacing) for an integrand that is analytic up to a distance d from
        the real line, here pi sigma, and grows on the way by exp(y L' d).
        """
        q, mu = segment.sampling_rate, 1 / segment.noise_multiplier
        s = self._offset + self._sign * t
        shift = s * mu  # no peak of exp(s L - x^2/2) lies beyond it
        if s < 0 and q < 1:  # -L is bounded, which holds the peak nearer to 0
            shift = max(shift, -math.sqrt(2 * -s * (loss(np.zeros(1), q, mu)[0] - math.log1p(-q))))
        first, last = min(shift, 0.0) - _REACH, max(shift, 0.0) + _REACH
        steepest = 0.0
        for frequency in (0.0, y):
            spacing = min(0.25, 1 / (2.5 * mu + 0.25 * frequency * steepest))
            if (last - first) / spacing > _MAX_LOSSES:
                raise _too_slow()
            x = np.arange(first, last + spacing, spacing)
            losses = loss(x, q, mu)
            exponents = s * losses - x**2 / 2
            log_scale = exponents.max()
            kept = np.flatnonzero(exponents > log_scale - _WINDOW)
            first, last = x[kept[[0, -1]]]
            steepest = mu * q * math.exp(mu * last - mu**2 / 2 - losses[kept[-1]])  # L' grows with x
            if y == 0:
                break
        weights = np.exp(exponents[kept] - log_scale) * spacing / math.sqrt(2 * math.pi)
        return log_scale, weights, losses[kept]


def _solve(moments: _Moments, delta: float) -> tuple[float, float]:
    t, epsilon, width = _saddle_point(moments, delta)
    for nodes_per_width in (6, 12, 24, 48):
        integral = _integral(moments, t, width / nodes_per_width)
        value, _, error = integral(epsilon)
        if error <= 1e-6 * value:
            return _root(integral, epsilon, delta)
    raise _too_slow()


def _root(integral: Integral, epsilon: float, delta: float) -> tuple[float, float]:
    """Newton's method on the logarithm of delta, from an epsilon that is nearly right."""
    for _ in range(50):
        value, slope, error = integral(epsilon)
        last, epsilon = epsilon, max(0.0, epsilon + math.log(value / delta) * value / -slope)
        if abs(epsilon - last) <= 1e-11 * (1 + epsilon):
            return float(epsilon), float(error / -slope)
    raise _too_slow()


def _too_slow() -> UsageError:
    return UsageError("accountant contour: its integral converges too slowly on these steps; take accountant pld")


def _saddle_point(moments: _Moments, delta: float) -> tuple[float, float, float]:
    """(t, epsilon, width): the integrand for this epsilon peaks at y = 0 and falls off over `width`.

    There the one-term saddle-point approximation of delta, good to about 1 %, equals `delta`.
    """

    def at(log_t: float) -> tuple[float, float, float]:
        t = math.exp(log_t)
        value, slope, curvature = moments.derivatives(t)
        epsilon = slope - 1 / t - 1 / (1 + t)
        curvature += t**-2 + (1 + t) ** -2
        log_delta = value - t * epsilon - math.log(t * (1 + t)) - math.log(2 * math.pi * curvature) / 2
        return log_delta, epsilon, curvature**-0.5

    low = high = 0.0
    while at(low)[0] < math.log(delta):
        low -= 1
    while at(high)[0] > math.log(delta):
        high += 1
    log_t = brentq(lambda log_t: at(log_t)[0] - math.log(delta), low, high, xtol=1e-3)
    _, epsilon, width = at(log_t)
    return math.exp(log_t), max(0.0, epsilon), width


def _integral(moments: _Moments, t: float, spacing: float) -> Integral:
    """The trapezoid rule on the line t + i y.

    Its error is the change on halving the spacing, plus the last term times the way it took to fall so low.
    """
    blocks: list[np.ndarray] = []
    num_nodes = 0
    while not blocks or blocks[-1][-1].real > blocks[0][0].real - _WINDOW:
        if num_nodes == _MAX_NODES:
            raise _too_slow()
        y_M = spacing * np.arange(num_nodes, num_nodes + _BLOCK)
        z_M = t + 1j * y_M
        blocks.append(moments.on_contour(t, y_M) - np.log(z_M) - np.log(1 + z_M))
        num_nodes += _BLOCK
    exponent_M = np.concatenate(blocks)
    y_M = spacing * np.arange(num_nodes)
    z_M = t + 1j * y_M

    def integral(epsilon: float) -> tuple[float, float, float]:
        terms_M = np.exp(exponent_M - z_M * epsilon) * spacing / math.pi
        terms_M[0] /= 2
        value = terms_M.sum().real
        halving = abs(value - 2 * terms_M[::2].sum().real)
        truncation = abs(terms_M[-1]) * num_nodes
        return value, -(z_M * terms_M).sum().real, halving + truncation

    return integral
