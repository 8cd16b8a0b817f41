"""`epsilon`: one entry to all accountants, with adjacency, certification and the notes that belong to the number."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from privlm.errors import UsageError
from privlm.privacy.accounting import contour, edgeworth, gdp, pld, prv, rdp
from privlm.privacy.accounting.adjacency import pair_of
from privlm.privacy.accounting.types import (
    ACCOUNTANTS,
    ADJACENCIES,
    CROSS_CHECKS,
    DIRECTIONS,
    ESTIMATES,
    ORDERS,
    Guarantee,
    Segment,
    check_delta_range,
    merge,
)

MIN_CERTIFIED_DELTAS = {"pld": pld.MIN_CERTIFIED_DELTA, "prv": prv.MIN_CERTIFIED_DELTA, "rdp": 0.0}
"""What each accountant that certifies needs of delta."""

# Less noise than this is no noise: infinity is the honest bound long before floating point overflows.
NO_NOISE = 1e-6

_LIBRARY = {
    "pld": "dp-accounting",
    "rdp": "dp-accounting",
    "gdp": "privlm",
    "edgeworth": "privlm",
    "prv": "privlm",
    "contour": "privlm",
}


@dataclass(frozen=True)
class _Answer:
    epsilon: float
    certified: bool
    discretization: float | None = None
    notes: tuple[str, ...] = ()


def certifies(accountant: str, delta: float) -> bool:
    """Whether what `accountant` says of both directions at `delta` is a guarantee."""
    return delta >= MIN_CERTIFIED_DELTAS.get(accountant, math.inf)


def epsilon(
    segments: Iterable[Segment],
    delta: float,
    *,
    accountant: str = "pld",
    order: int = 2,
    direction: str = "both",
    adjacency: str = "add_remove",
    discretization: float | None = None,
) -> Guarantee:
    """Epsilon at `delta` of Poisson-subsampled Gaussian steps, segments composed in any order.

    Args:
        accountant: pld, rdp and prv certify; gdp and edgeworth estimate, contour cross-checks (`guarantee` is False).
        order: groups of Edgeworth corrections, 0 to 3; only edgeworth reads it.
        direction: both, or only the loss of a record being there ("remove") or not ("add"); not for rdp and gdp.
        adjacency: add_remove, zero_out (same numbers), or replace_one; each by its dominating pairs, see
            `privlm.privacy.accounting.adjacency`.
        discretization: interval of the PLD grid. None takes 1e-4, and 2e-5 as well where 1e-3 and 1e-4 differ by
            more than 0.01; every interval bounds from above, so the smallest value is given.

    No steps cost exactly 0, steps without noise cost inf. Raises UsageError for bad input and for a computation that
    this accountant cannot do; another accountant never takes its place.
    """
    return _epsilon(tuple(segments), delta, accountant, order, direction, adjacency, discretization)


@functools.lru_cache(maxsize=256)  # a run asks again what its plan has asked, and what every evaluation of it asks
def _epsilon(
    segments: tuple[Segment, ...],
    delta: float,
    accountant: str,
    order: int,
    direction: str,
    adjacency: str,
    discretization: float | None,
) -> Guarantee:
    _check(accountant, order, direction, adjacency)
    check_delta_range(delta)
    _check_discretization(discretization, accountant)
    active = merge(segments)
    pair = pair_of(adjacency, direction)
    if not active:
        answer = _Answer(0.0, certified=accountant not in ESTIMATES)
    elif min(segment.noise_multiplier for segment in active) < NO_NOISE:
        answer = _Answer(math.inf, certified=accountant not in ESTIMATES)
    else:
        answers = {
            "pld": lambda: _pld(active, delta, pair, discretization),
            "rdp": lambda: _rdp(active, delta, pair),
            "prv": lambda: _prv(active, delta, pair),
            "contour": lambda: _contour(active, delta, pair),
            "gdp": lambda: _Answer(gdp.curve(active, pair)(delta), certified=False),
            "edgeworth": lambda: _Answer(edgeworth.curve(active, order, pair)(delta), certified=False),
        }
        answer = answers[accountant]()

    if not answer.epsilon >= 0:
        raise UsageError(f"accountant {accountant} failed on these steps (epsilon {answer.epsilon}); take another")
    notes = []
    if accountant in ESTIMATES:
        certifier = next(name for name in ("pld", "rdp") if certifies(name, delta))
        notes.append(f"estimate, not a guarantee: accountant {certifier} certifies")
    if direction != "both":
        notes.append(f"bounds the direction {direction} only, not the other one")
    return Guarantee(
        accountant=accountant,
        version=f"{_LIBRARY[accountant]} {version(_LIBRARY[accountant])}",
        guarantee=answer.certified and direction == "both",
        adjacency=adjacency,
        direction=direction,
        delta=delta,
        epsilon=answer.epsilon,
        order=order if accountant == "edgeworth" else None,
        segments=segments,
        discretization=answer.discretization,
        notes=(*notes, *answer.notes),
    )


def _check(accountant: str, order: int, direction: str, adjacency: str) -> None:
    for name, value, allowed in (
        ("accountant", accountant, ACCOUNTANTS + CROSS_CHECKS),
        ("order", order, ORDERS),
        ("direction", direction, DIRECTIONS),
        ("adjacency", adjacency, ADJACENCIES),
    ):
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}")
    if direction != "both" and accountant in ("rdp", "gdp"):
        raise UsageError(
            f"direction={direction} needs accountant pld, prv, edgeworth or contour; {accountant} bounds both at once"
        )
    if direction != "both" and adjacency == "replace_one":
        raise UsageError(f"direction={direction} has no meaning under adjacency=replace_one, which is symmetric")


def _check_discretization(discretization: float | None, accountant: str) -> None:
    if discretization is None:
        return
    if accountant != "pld":
        raise UsageError(f"discretization is a setting of accountant pld, not of {accountant}")
    if not 0 < discretization < math.inf:
        raise UsageError(f"discretization must be positive and finite, got {discretization}")


def _pld(segments: Sequence[Segment], delta: float, pair: str, discretization: float | None) -> _Answer:
    def at(interval: float) -> float:
        return pld.curve(segments, pair, interval)(delta)

    if discretization is not None:
        readings = {discretization: at(discretization)}
    else:
        readings = {interval: at(interval) for interval in (pld.COARSE, pld.FINE)}
        if readings[pld.COARSE] - readings[pld.FINE] > 0.01:
            readings[pld.FINEST] = at(pld.FINEST)
    interval = min(readings, key=lambda interval: readings[interval])
    if certifies("pld", delta) and pld.round_off(segments) < delta:
        return _Answer(readings[interval], certified=True, discretization=interval)
    least = max(pld.MIN_CERTIFIED_DELTA, pld.round_off(segments))
    note = f"not certified below delta {least:.3g}: FFT round-off; accountant rdp certifies there"
    return _Answer(readings[interval], certified=False, discretization=interval, notes=(note,))


def _rdp(segments: Sequence[Segment], delta: float, pair: str) -> _Answer:
    curve, num_dropped = rdp.curve(segments, pair)
    notes = (f"{num_dropped} orders left out: their series did not converge",) if num_dropped else ()
    return _Answer(curve(delta), certified=True, notes=notes)


def _prv(segments: Sequence[Segment], delta: float, pair: str) -> _Answer:
    lower, estimate, upper = prv.solve(segments, pair, delta)
    note = f"at delta {delta:.3g} epsilon lies in [{lower:.4f}, {upper:.4f}], by estimate at {estimate:.4f}"
    if certifies("prv", delta):
        return _Answer(upper, certified=True, notes=(note,))
    return _Answer(
        upper, certified=False, notes=(note, f"not certified below delta {prv.MIN_CERTIFIED_DELTA:g}: FFT round-off")
    )


def _contour(segments: Sequence[Segment], delta: float, pair: str) -> _Answer:
    value, error = contour.solve(segments, pair, delta)
    return _Answer(value, certified=False, notes=(f"estimated quadrature error of epsilon: {error:.1e}",))
