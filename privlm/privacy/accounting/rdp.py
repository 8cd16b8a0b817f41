"""Renyi-DP accountant of dp-accounting: a certified bound, looser than PLD.

Subsampled Gaussian by Mironov, Talwar, Zhang (arXiv 1908.10530); conversion to (epsilon, delta) by Canonne, Kamath,
Steinke (arXiv 2004.00010, Proposition 12), the least over the orders 1.1, ..., 10.9, 11, ..., 63, 128, 256, 512, 1024.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant

from privlm.privacy.accounting.types import Curve, Segment


def curve(segments: Sequence[Segment]) -> tuple[Curve, int]:
    """epsilon(delta) under add/remove, and how many orders were left out because their series did not converge."""
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
