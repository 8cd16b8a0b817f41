"""PLD accountant: certified epsilon from discretised privacy-loss distributions, convolved by FFT (dp-accounting).

Every distribution is rounded pessimistically (connect the dots: Doroshenko et al., arXiv 2207.04380), so epsilon at any
discretization interval bounds the true one from above; a finer interval is only tighter.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss

from privlm.errors import UsageError
from privlm.privacy.accounting import edgeworth
from privlm.privacy.accounting.adjacency import on_full_data
from privlm.privacy.accounting.types import Curve, Segment

COARSE, FINE, FINEST = 1e-3, 1e-4, 2e-5
"""Discretization intervals: inside a search, for a certificate, and where the first two still disagree."""

MIN_CERTIFIED_DELTA = 1e-10
"""Below this delta the round-off of the FFT is larger than the pessimism of the rounding."""

_MAX_GRID_POINTS = 20_000_000  # about 1 GB in the FFT


def curve(segments: Sequence[Segment], direction: str, interval: float) -> Curve:
    """epsilon(delta) at one discretization interval, the larger of the directions asked for.

    Raises UsageError where the distribution of the run would not fit into memory.
    """
    segments = _join_gaussians(segments)
    _check_grid(segments, interval)

    def bound(adjacency_type: AdjacencyType, interval: float) -> Curve:
        return lambda delta: _epsilon(_compose(segments, adjacency_type, interval), delta)

    if direction != "both":
        return bound(AdjacencyType[direction.upper()], interval)
    remove, add = bound(AdjacencyType.REMOVE, interval), bound(AdjacencyType.ADD, interval)
    if on_full_data(segments):
        return remove  # both directions are the same
    coarse_add = bound(AdjacencyType.ADD, max(COARSE, interval))

    def larger(delta: float) -> float:
        """Adding costs less than removing nearly always, so that a coarse bound of it is enough."""
        removal = remove(delta)
        return removal if coarse_add(delta) <= removal else max(removal, add(delta))

    return larger


def _join_gaussians(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Steps on the full data compose exactly: one Gaussian whose 1/sigma^2 is the sum of theirs."""
    full = [segment for segment in segments if segment.sampling_rate == 1]
    sampled = [segment for segment in segments if segment.sampling_rate < 1]
    if full:
        precision = sum(segment.steps / segment.noise_multiplier**2 for segment in full)
        sampled.append(Segment(1.0, precision**-0.5, 1))
    return tuple(sampled)


def _check_grid(segments: Sequence[Segment], interval: float) -> None:
    """The grid spans one step's losses, mu^2 + 20 mu wide with mu = 1 / sigma, and the spread of their sum."""
    moments = [(segment, edgeworth.cumulants(segment)) for segment in segments]
    widest = max(20 / s.noise_multiplier + s.noise_multiplier**-2.0 for s in segments)
    deviation = math.sqrt(max(sum(s.steps * pair[side][1] for s, pair in moments) for side in (0, 1)))
    points = (widest + 20 * deviation) / interval
    if points > _MAX_GRID_POINTS:
        raise UsageError(
            f"noise_multiplier is too small for accountant pld, whose grid would hold {points:.1e} points at "
            f"discretization {interval:g}; raise it, or take accountant rdp"
        )


@functools.lru_cache(maxsize=4)
def _compose(segments: tuple[Segment, ...], adjacency_type: AdjacencyType, interval: float) -> pld_pmf.PLDPmf:
    runs = [
        _one_step(segment, adjacency_type, interval).self_compose(segment.steps, tail_mass_truncation=1e-15)
        for segment in segments
    ]
    # compose_pmfs, unlike a distribution's own compose, takes the sparse ones of short runs beside dense ones.
    return functools.reduce(lambda left, right: pld_pmf.compose_pmfs(left, right, tail_mass_truncation=1e-15), runs)


def _one_step(segment: Segment, adjacency_type: AdjacencyType, interval: float) -> pld_pmf.PLDPmf:
    loss = GaussianPrivacyLoss(
        segment.noise_multiplier, sampling_prob=segment.sampling_rate, adjacency_type=adjacency_type
    )
    bounds = loss.connect_dots_bounds()
    lowest, highest = math.floor(bounds.epsilon_lower / interval), math.ceil(bounds.epsilon_upper / interval)
    deltas = loss.get_delta_for_epsilon(np.arange(lowest, highest + 1) * interval)
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, lowest, highest, deltas)


def _epsilon(pmf: pld_pmf.PLDPmf, delta: float) -> float:
    # The library's search would walk on to losses so negative that exp(-loss) overflows.
    if pmf.get_delta_for_epsilon(0.0) <= delta:
        return 0.0
    return float(pmf.get_epsilon_for_delta(delta))
