"""PLD accountant: certified epsilon from discretised privacy-loss distributions, convolved by FFT (dp-accounting).

Every distribution is rounded pessimistically (connect the dots: Doroshenko et al., arXiv 2207.04380), so epsilon at any
discretization interval bounds the true one from above; a finer interval is only tighter. The round-off of the FFT,
which grows with the steps, is taken from delta before a curve is read.
"""

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from dp_accounting.pld import pld_pmf
from scipy.special import ndtri_exp

from privlm.errors import UsageError
from privlm.privacy.accounting import edgeworth
from privlm.privacy.accounting.adjacency import REPLACE
from privlm.privacy.accounting.loss import deltas, loss_in
from privlm.privacy.accounting.types import Curve, Segment, on_full_data

COARSE, FINE, FINEST = 1e-3, 1e-4, 2e-5
"""Discretization intervals: inside a search, for a certificate, and where the first two still disagree."""

MIN_CERTIFIED_DELTA = 1e-10
"""Below this delta the round-off of the FFT is larger than the pessimism of the rounding."""

_ROUND_OFF = 5e-16
"""Of delta, a sampled step: four times the most that was seen beside tails computed without cancellation, up to 1.5e5
steps (errors that lower delta)."""

_MAX_GRID_POINTS = 20_000_000  # about 1 GB in the FFT
_LOG_TAIL = -50.0 - math.log(2)


def curve(segments: Sequence[Segment], direction: str, interval: float) -> Curve:
    """epsilon(delta) at one discretization interval, the larger of the directions asked for.

    Raises UsageError where the distribution of the run would not fit into memory.
    """
    segments = _join_gaussians(segments)
    _check_grid(segments, direction, interval)

    lost = round_off(segments)

    def bound(direction: str, interval: float) -> Curve:
        return lambda delta: _epsilon(_compose(segments, direction, interval), delta - lost if lost < delta else delta)

    if direction != "both":
        return bound(direction, interval)
    remove, add = bound("remove", interval), bound("add", interval)
    if on_full_data(segments):
        return remove  # both directions are the same
    coarse_add = bound("add", max(COARSE, interval))

    def larger(delta: float) -> float:
        """Adding costs less than removing nearly always, so that a coarse bound of it is enough."""
        removal = remove(delta)
        return removal if coarse_add(delta) <= removal else max(removal, add(delta))

    return larger


def round_off(segments: Iterable[Segment]) -> float:
    """How much of delta the FFT may hide."""
    return _ROUND_OFF * sum(segment.steps for segment in segments if segment.sampling_rate < 1)


def _join_gaussians(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Steps on the full data compose exactly: one Gaussian whose 1/sigma^2 is the sum of theirs."""
    full = [segment for segment in segments if segment.sampling_rate == 1]
    sampled = [segment for segment in segments if segment.sampling_rate < 1]
    if full:
        precision = sum(segment.steps / segment.noise_multiplier**2 for segment in full)
        sampled.append(Segment(1.0, precision**-0.5, 1))
    return tuple(sampled)


def _check_grid(segments: Sequence[Segment], direction: str, interval: float) -> None:
    """The grid spans one step's losses, mu^2 + 20 mu wide with mu = 1 / sigma, and the spread of their sum.

    (Twice that for a replaced record.)
    """
    widest = max(20 / s.noise_multiplier + s.noise_multiplier**-2.0 for s in segments)
    widest *= 2 if direction == REPLACE else 1
    pairs = edgeworth.totals(segments, direction)
    deviation = math.sqrt(max(cumulant[1] for pair in pairs for cumulant in pair))
    points = (widest + 20 * deviation) / interval
    if points > _MAX_GRID_POINTS:
        raise UsageError(
            f"noise_multiplier is too small for accountant pld, whose grid would hold {points:.1e} points at "
            f"discretization {interval:g}: raise it (`privlm accountant eps --accountant rdp` bounds what it costs)"
        )


@functools.lru_cache(maxsize=4)
def _compose(segments: tuple[Segment, ...], direction: str, interval: float) -> pld_pmf.PLDPmf:
    runs = [
        _one_step(segment, direction, interval).self_compose(segment.steps, tail_mass_truncation=1e-15)
        for segment in segments
    ]
    # compose_pmfs, unlike a distribution's own compose, takes the sparse ones of short runs beside dense ones.
    return functools.reduce(lambda left, right: pld_pmf.compose_pmfs(left, right, tail_mass_truncation=1e-15), runs)


def _one_step(segment: Segment, direction: str, interval: float) -> pld_pmf.PLDPmf:
    """Between the losses beyond which lies less than exp(-50) of P, whose upper part counts as an infinite loss."""
    mu = 1 / segment.noise_multiplier
    reach = float(-ndtri_exp(_LOG_TAIL))
    nodes = np.array([-reach - (mu if direction == "add" else 0.0), reach + (0.0 if direction == "add" else mu)])
    ends = loss_in(direction, nodes, segment.sampling_rate, mu)
    lowest, highest = math.floor(ends[0] / interval), math.ceil(ends[1] / interval)
    epsilons = np.arange(lowest, highest + 1) * interval
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
        interval, lowest, highest, deltas(direction, epsilons, segment)
    )


def _epsilon(pmf: pld_pmf.PLDPmf, delta: float) -> float:
    # The library's search would walk on to losses so negative that exp(-loss) overflows.
    if pmf.get_delta_for_epsilon(0.0) <= delta:
        return 0.0
    return float(pmf.get_epsilon_for_delta(delta))
