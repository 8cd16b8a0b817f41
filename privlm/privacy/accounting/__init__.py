"""How much privacy a run of Poisson-subsampled Gaussian steps costs, and how much noise a budget needs.

`epsilon`, `noise_multiplier`, `most_steps` and `largest_batch_size` solve for one of the four given the others. Each
answers with a `Guarantee`, which says whether its number is certified (pld, rdp, prv) or an estimate (gdp,
edgeworth, contour).
"""

from privlm.privacy.accounting.accountant import MIN_CERTIFIED_DELTAS, certifies, epsilon
from privlm.privacy.accounting.calibration import Calibration, noise_multiplier
from privlm.privacy.accounting.edgeworth_answer import EdgeworthAnswer, edgeworth_answer
from privlm.privacy.accounting.limits import largest_batch_size, most_steps
from privlm.privacy.accounting.types import (
    ACCOUNTANTS,
    ADJACENCIES,
    CROSS_CHECKS,
    DIRECTIONS,
    ESTIMATES,
    ORDERS,
    Guarantee,
    Segment,
    check_delta,
    num_steps,
    resolve_delta,
)

__all__ = [
    "ACCOUNTANTS",
    "ADJACENCIES",
    "CROSS_CHECKS",
    "DIRECTIONS",
    "ESTIMATES",
    "MIN_CERTIFIED_DELTAS",
    "ORDERS",
    "Calibration",
    "EdgeworthAnswer",
    "Guarantee",
    "Segment",
    "certifies",
    "check_delta",
    "edgeworth_answer",
    "epsilon",
    "largest_batch_size",
    "most_steps",
    "noise_multiplier",
    "num_steps",
    "resolve_delta",
]
