"""PRV accountant: epsilon between two bounds, by FFT on an even grid of privacy losses (no pessimistic rounding).

Gopi, Lee, Wutschitz, NeurIPS 2021, arXiv 2106.02848. One step's loss Y is truncated to [-L, L], rounded to the nearest
of points h apart and moved to its exact mean, so that rounding errors average out over T steps instead of adding up.
With h = EPSILON_ERROR / sqrt(T/2 log(12 / delta_error)) and tails of Y and of the sum S small enough,

    delta_S(eps + EPSILON_ERROR) - delta_error <= delta_grid(eps) <= delta_S(eps - EPSILON_ERROR) + delta_error.

The upper end is a guarantee. PLD at its fine grid is tighter; this one is here because others quote it.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from privlm.errors import UsageError
from privlm.privacy.accounting import edgeworth
from privlm.privacy.accounting.adjacency import REPLACE, directions_of
from privlm.privacy.accounting.loss import noise_of, tails
from privlm.privacy.accounting.types import Segment

EPSILON_ERROR = 0.01
DELTA_ERROR = 1e-3  # as a share of delta
MIN_CERTIFIED_DELTA = 1e-7
"""Below this delta the round-off of the FFT is no longer small beside delta_error."""

_MAX_GRID_POINTS = 20_000_000
_TILTS = np.geomspace(0.05, 1000.0, 60)  # of Chernoff's bound
_REACH = 7.0  # standard deviations that a tilt may move a step's noise: the nodes of the expectation end at 14


def solve(segments: Sequence[Segment], direction: str, delta: float) -> tuple[float, float, float]:
    """(lower end, estimate, upper end) of epsilon at `delta`, the larger of the directions asked for.

    Raises UsageError where the grid would not fit into memory.
    """
    answers = [_solve(segments, each, delta) for each in directions_of(direction)]
    lower, estimate, upper = (max(ends) for ends in zip(*answers, strict=True))
    return lower, estimate, upper


def _solve(segments: Sequence[Segment], direction: str, delta: float) -> tuple[float, float, float]:
    delta_error = DELTA_ERROR * delta
    num_steps = sum(segment.steps for segment in segments)
    spacing = EPSILON_ERROR / math.sqrt(num_steps / 2 * math.log(12 / delta_error))
    steps = [_Step(segment, direction) for segment in segments]
    reach = EPSILON_ERROR + max(
        _tail_bound(steps, [segment.steps for segment in segments], delta_error / 4),
        *(_tail_bound([step], [1], delta_error / (8 * num_steps)) for step in steps),
    )
    half = (reach + num_steps * spacing / 2) / spacing  # the means of the grid and of the loss differ by spacing / 2
    if 2 * half > _MAX_GRID_POINTS:
        raise UsageError(
            f"noise_multiplier is too small for accountant prv, whose grid would hold {2 * half:.1e} points; raise it, "
            "or take accountant pld or rdp"
        )
    num_points = next_fast_len(2 * math.ceil(half) + 1, real=True)
    grid = spacing * (np.arange(num_points) - num_points // 2)
    transform, shift = np.ones(num_points // 2 + 1, dtype=complex), 0.0
    for step, segment in zip(steps, segments, strict=True):
        masses = step.masses(grid, spacing)
        transform *= rfft(np.fft.ifftshift(masses)) ** segment.steps
        shift += segment.steps * (step.mean - float(grid @ masses))
    masses = np.fft.fftshift(irfft(transform, num_points)).clip(min=0.0)
    read = _Reading(grid + shift, masses)
    upper = read.epsilon(delta - delta_error) + EPSILON_ERROR
    return max(0.0, read.epsilon(delta + delta_error) - EPSILON_ERROR), read.epsilon(delta), upper


class _Step:
    """The loss Y of one step in one direction (`privlm.privacy.accounting.loss`)."""

    def __init__(self, segment: Segment, direction: str) -> None:
        self._segment, self._direction = segment, direction
        if direction == REPLACE:
            self._values, self._weights = edgeworth.replaced_losses(segment)
        else:
            (absent, absent_weights), present = edgeworth.losses(segment)
            self._values, self._weights = present if direction == "remove" else (-absent, absent_weights)
        self.mean = float(self._weights @ self._values)
        self.log_moments = [self._log_moments(tilts) for tilts in (_TILTS, -_TILTS)]

    def masses(self, grid: np.ndarray, spacing: float) -> np.ndarray:
        """Probability of the cell around each point of the grid, given that the loss lies in one of them."""
        edges = np.append(grid - spacing / 2, grid[-1] + spacing / 2)
        above, _ = tails(self._direction, noise_of(self._direction, edges, self._segment), self._segment)
        cells = -np.diff(above)
        return cells / cells.sum()

    def _log_moments(self, tilts: np.ndarray) -> np.ndarray:
        """log E[exp(t Y)] for each tilt; inf where the nodes do not reach far enough."""
        found = np.full(len(tilts), math.inf)
        steepest = (2 if self._direction == REPLACE else 1) / self._segment.noise_multiplier  # of the loss
        usable = np.abs(tilts) * steepest <= _REACH
        exponents = np.outer(tilts[usable], self._values)
        top = exponents.max(axis=1, initial=-math.inf)
        found[usable] = top + np.log(np.exp(exponents - top[:, None]) @ self._weights)
        return found


class _Reading:
    """delta(epsilon) = E[(1 - e^(epsilon - S))_+] of a sum S on a grid, and its inverse."""

    def __init__(self, losses: np.ndarray, masses: np.ndarray) -> None:
        above = losses > 0
        self._losses, masses = losses[above], masses[above]
        self._mass = np.cumsum(masses[::-1])[::-1]
        self._discounted = np.cumsum((masses * np.exp(-self._losses))[::-1])[::-1]

    def epsilon(self, delta: float) -> float:
        """The epsilon >= 0 at which delta(epsilon) falls to `delta`; inf where it never does."""
        if self._mass[0] - self._discounted[0] <= delta:
            return 0.0
        at_losses = self._mass - np.exp(self._losses) * self._discounted  # decreasing
        number = int(np.argmax(at_losses <= delta))  # epsilon lies up to this point of the grid, above the one before
        if self._discounted[number] == 0 or self._mass[number] <= delta:
            return float(self._losses[number])
        return float(np.log((self._mass[number] - delta) / self._discounted[number]))


def _tail_bound(steps: Sequence[_Step], counts: Sequence[int], mass: float) -> float:
    """A length with P(|S| > length) <= mass for the sum S of so many steps of each kind (Chernoff, half a side)."""
    ends = []
    for side in range(2):
        total = sum(count * step.log_moments[side] for step, count in zip(steps, counts, strict=True))
        ends.append(float(((total + math.log(2 / mass)) / _TILTS).min()))
    return max(ends)
