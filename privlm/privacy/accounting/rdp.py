"""Renyi-DP accountant of dp-accounting: a certified bound, looser than PLD.

Subsampled Gaussian by Mironov, Talwar, Zhang (arXiv 1908.10530); conversion to (epsilon, delta) by Canonne, Kamath,
Steinke (arXiv 2004.00010, Proposition 12), the least over the orders 1.1, ..., 10.9, 11, ..., 63, 128, 256, 512, 1024.

dp-accounting's own answer for a replaced record is that of a removed one, far too low. Here its divergences are those
of the dominating pair, by a trapezoid rule whose error lies below round-off (`moments`).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

from privlm.privacy.accounting.adjacency import REPLACE
from privlm.privacy.accounting.moments import Moments, TooManyNodes
from privlm.privacy.accounting.types import Curve, Segment


def curve(segments: Sequence[Segment], direction: str) -> tuple[Curve, int]:
    """epsilon(delta) for both directions or for `replace`, and how many orders were left out: they did not converge."""
    return _replaced(segments) if direction == REPLACE else _added_or_removed(segments)


def _replaced(segments: Sequence[Segment]) -> tuple[Curve, int]:
    moments = Moments(segments, REPLACE)
    divergences = {}
    for order in DEFAULT_RDP_ORDERS:
        with suppress(TooManyNodes):
            divergences[order] = moments.derivatives(order - 1)[0] / (order - 1)
    orders, values = list(divergences), list(divergences.values())
    return lambda delta: float(compute_epsilon(orders, values, delta)[0]), len(DEFAULT_RDP_ORDERS) - len(orders)


def _added_or_removed(segments: Sequence[Segment]) -> tuple[Curve, int]:
    accountant = RdpAccountant()
    with _muted_absl() as dropped:
        for segment in segments:
            step = PoissonSampledDpEvent(segment.sampling_rate, GaussianDpEvent(segment.noise_multiplier))
            accountant.compose(step, segment.steps)

    def epsilon(delta: float) -> float:
        with _muted_absl():
            return float(accountant.get_epsilon(delta))

    return epsilon, len(dropped)


@contextmanager
def _muted_absl() -> Iterator[list[logging.LogRecord]]:
    """Collects the library's warnings, one for each order dropped, instead of printing them."""
    records: list[logging.LogRecord] = []

    def collect(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(collect)
    try:
        yield records
    finally:
        logger.removeFilter(collect)
