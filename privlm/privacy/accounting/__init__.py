"""How much privacy a run of Poisson-subsampled Gaussian steps costs, and how much noise a budget needs.

`epsilon` and `noise_multiplier` answer with a `Guarantee`, which says whether its number is certified (pld, rdp) or an
estimate (gdp, edgeworth, contour).
"""

from privlm.privacy.accounting.accountant import epsilon
from privlm.privacy.accounting.calibration import Calibration, noise_multiplier
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
    "ORDERS",
    "Calibration",
    "Guarantee",
    "Segment",
    "check_delta",
    "epsilon",
    "noise_multiplier",
    "num_steps",
    "resolve_delta",
]
