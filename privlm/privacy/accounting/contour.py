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
from privlm.privacy.accounting.moments import WINDOW, Moments, TooManyNodes
from privlm.privacy.accounting.types import Segment, on_full_data

_BLOCK = 64  # nodes on the contour, evaluated at a time
_MAX_NODES = 1 << 12


def solve(segments: Sequence[Segment], direction: str, delta: float) -> tuple[float, float]:
    """(epsilon at `delta`, estimated quadrature error of it): the larger epsilon of the directions asked for.

    Raises UsageError where the integrand falls off too slowly: runs of a few steps, or with hardly any noise.
    """
    try:
        return _larger(segments, direction, delta)
    except TooManyNodes:
        raise _too_slow() from None


def _larger(segments: Sequence[Segment], direction: str, delta: float) -> tuple[float, float]:
    if 1 - math.prod((1 - segment.sampling_rate) ** segment.steps for segment in segments) <= delta:
        return 0.0, 0.0  # delta covers the chance that a record is ever drawn
    if direction != "both":
        return _solve(Moments(segments, direction), delta)
    removal, addition = _solve(Moments(segments, "remove"), delta), Moments(segments, "add")
    if on_full_data(segments) or _saddle_point(addition, delta)[1] < 0.9 * removal[0]:
        return removal  # adding costs the same, or less by more than the approximation can be wrong
    return max(removal, _solve(addition, delta))


Integral = Callable[[float], tuple[float, float, float]]
"""epsilon -> (delta, its derivative, the estimated error of delta)."""


def _solve(moments: Moments, delta: float) -> tuple[float, float]:
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


def _saddle_point(moments: Moments, delta: float) -> tuple[float, float, float]:
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


def _integral(moments: Moments, t: float, spacing: float) -> Integral:
    """The trapezoid rule on the line t + i y.

    Its error is the change on halving the spacing, plus the last term times the way it took to fall so low.
    """
    blocks: list[np.ndarray] = []
    num_nodes = 0
    while not blocks or blocks[-1][-1].real > blocks[0][0].real - WINDOW:
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
