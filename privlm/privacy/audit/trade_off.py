"""Trade-off curves f of hypothesis testing (Dong, Roth, Su, JRSS B 2022, arXiv 1905.02383), as an audit reads them.

A claim enters a test through one function: the largest false-positive rate x with 1 - f(x) <= y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.special import ndtr, ndtri

if TYPE_CHECKING:
    from privlm.privacy.accounting import Segment

NUM_DELTAS = 400
LARGEST_EPSILON = 700.0  # exp of more overflows


class TradeOff(Protocol):
    """A claimed curve f."""

    def inverse(self, y: float) -> float:
        """The largest x in [0, 1] with 1 - f(x) <= y."""
        ...


@dataclass(frozen=True)
class GaussianTradeOff:
    """mu-GDP: telling N(0, 1) from N(mu, 1)."""

    mu: float

    def inverse(self, y: float) -> float:
        return float(ndtr(ndtri(y) - self.mu))


@dataclass(frozen=True)
class PairsTradeOff:
    """The curve that many (epsilon, delta) guarantees of one mechanism imply together; each holds, so all do.

    epsilons_k (each >= 0) and deltas_k are float64 [K].
    """

    epsilons_k: np.ndarray
    deltas_k: np.ndarray

    def inverse(self, y: float) -> float:
        near_zero = (y - self.deltas_k) * np.exp(-self.epsilons_k)
        near_one = 1 - self.deltas_k - np.exp(self.epsilons_k) * (1 - y)
        return float(max(0.0, near_zero.max(), near_one.max()))


def certified_trade_off(segments: Sequence[Segment]) -> PairsTradeOff:
    """The curve of Poisson-subsampled Gaussian steps under adding or removing a record, certified by PLD.

    Every point bounds the truth from above, so a rejected curve refutes the mechanism and not the discretisation.
    """
    from privlm.privacy.accounting import pld

    curve = pld.curve(segments, "both", pld.COARSE)
    small = np.geomspace(pld.MIN_CERTIFIED_DELTA, 1e-2, NUM_DELTAS // 4)
    deltas_k = np.concatenate([small, np.linspace(1e-2, 1, NUM_DELTAS, endpoint=False)[1:]])
    epsilons_k = np.array([curve(delta) for delta in deltas_k])
    says_something = epsilons_k < LARGEST_EPSILON
    return PairsTradeOff(epsilons_k[says_something], deltas_k[says_something])
