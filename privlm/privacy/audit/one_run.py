"""Auditing with one training run: m canaries, each in or out of the data by a fair coin of its own.

The auditor scores the canaries, guesses "in" for the highest scores and "out" for the lowest, abstains on the rest, and
counts right guesses. The binary test (Steinke, Nasr, Jagielski, NeurIPS 2023, arXiv 2305.08846) is about an
(epsilon, delta) claim, the test of a whole trade-off curve (Mahloujifar, Melis, Chaudhuri, ICML 2025, arXiv 2410.22235)
is tighter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, betaln, expit, xlog1py, xlogy

from privlm.errors import UsageError
from privlm.privacy.audit.trade_off import GaussianTradeOff, TradeOff

IN, OUT, ABSTAIN = 1, 0, -1


def guess(scores_m: np.ndarray, num_in: int, num_out: int, rng: np.random.Generator) -> np.ndarray:
    """Guesses for canaries with scores [m] (higher: more likely in): IN, OUT or ABSTAIN, int8 [m].

    Equal scores are ordered by `rng`: their order in the array may correlate with the coins. Raises UsageError for
    scores that are NaN and for more guesses than canaries.
    """
    if np.isnan(scores_m).any():
        raise UsageError(f"{int(np.isnan(scores_m).sum())} canary scores are NaN: the audited run has diverged")
    if num_in < 0 or num_out < 0 or num_in + num_out > len(scores_m):
        raise UsageError(f"{num_in} + {num_out} guesses do not fit to {len(scores_m)} canaries")
    ascending = np.lexsort((rng.random(len(scores_m)), scores_m))
    guesses = np.full(len(scores_m), ABSTAIN, dtype=np.int8)
    guesses[ascending[:num_out]] = OUT
    guesses[ascending[len(scores_m) - num_in :]] = IN
    return guesses


def p_value(epsilon: float, *, num_canaries: int, num_guesses: int, num_correct: int, delta: float) -> float:
    """Probability bound of at least `num_correct` right guesses under (epsilon, delta)-DP (Steinke et al.).

    beta + 2 m delta alpha, where beta = P[Bin(r, q) >= v] and alpha is the largest mean of the probabilities of
    v-1, ..., v-i over i; q = e^epsilon / (1 + e^epsilon).
    """
    if num_correct == 0:
        return 1.0
    q = expit(epsilon)
    beta = betainc(num_correct, num_guesses - num_correct + 1, q)
    if delta == 0:
        return float(beta)
    below = _binomial_pmf(np.arange(num_correct - 1, -1, -1), num_guesses, q)
    alpha = (np.cumsum(below) / np.arange(1, num_correct + 1)).max()
    return float(min(1.0, beta + 2 * num_canaries * delta * alpha))


def epsilon_lower_bound(
    num_canaries: int, num_guesses: int, num_correct: int, *, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon that the guesses refute at `delta`; 0 where they refute none.

    Raises UsageError for numbers that no audit can have.
    """
    significance = _significance(num_canaries, num_guesses, num_correct, confidence)
    if not 0 <= delta < 1:
        raise UsageError(f"delta must lie in [0, 1), got {delta}")

    def excess(epsilon: float) -> float:
        p = p_value(epsilon, num_canaries=num_canaries, num_guesses=num_guesses, num_correct=num_correct, delta=delta)
        return p - significance

    return _largest_refuted(excess)


def rejects(
    trade_off: TradeOff, num_canaries: int, num_guesses: int, num_correct: int, *, confidence: float = 0.95
) -> bool:
    """Whether the guesses refute that the mechanism is f-DP for the curve `trade_off` (Mahloujifar et al.).

    With probability at least `confidence` a mechanism that keeps its curve is not rejected.
    """
    significance = _significance(num_canaries, num_guesses, num_correct, confidence)
    return _f_dp_excess(trade_off, num_canaries, num_guesses, num_correct, significance) < 0


def mu_lower_bound(num_canaries: int, num_guesses: int, num_correct: int, *, confidence: float = 0.95) -> float:
    """The largest mu for which mu-GDP is rejected; 0 where none is.

    An estimate where the mechanism is not exactly Gaussian, as subsampled steps are not.
    """
    significance = _significance(num_canaries, num_guesses, num_correct, confidence)

    def refutes(mu: float) -> bool:
        return _f_dp_excess(GaussianTradeOff(mu), num_canaries, num_guesses, num_correct, significance) < 0

    if not refutes(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refutes(high):
        low, high = high, 2 * high
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if refutes(middle) else (low, middle)
    return low


def _f_dp_excess(
    trade_off: TradeOff, num_canaries: int, num_guesses: int, num_correct: int, significance: float
) -> float:
    """Probability mass that the curve leaves for the guesses, less what they need; positive where the claim may hold.

    r and h bound, downward in i, the mean chance that guess i is the next right or wrong one.
    """
    r = significance * num_correct / num_canaries
    h = significance * (num_guesses - num_correct) / num_canaries
    for i in range(num_correct - 1, -1, -1):
        higher = max(h, trade_off.inverse(r))
        if higher == h:
            break
        r = min(1.0, r + i / (num_guesses - i) * (higher - h))
        h = higher
    return num_guesses / num_canaries - (r + h)


def _binomial_pmf(counts: np.ndarray, num_trials: int, q: float) -> np.ndarray:
    """As scipy.stats.binom.pmf, whose import would take most of the time of a bound."""
    log_choose = -np.log1p(num_trials) - betaln(num_trials - counts + 1, counts + 1)
    return np.exp(log_choose + xlogy(counts, q) + xlog1py(num_trials - counts, -q))


def _largest_refuted(excess: Callable[[float], float]) -> float:
    """Where an increasing function of epsilon crosses zero, 0 if it starts above."""
    if excess(0.0) > 0:
        return 0.0
    high = 1.0
    while excess(high) <= 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-12))


def _significance(num_canaries: int, num_guesses: int, num_correct: int, confidence: float) -> float:
    if num_canaries < 10:
        raise UsageError(f"an audit needs at least 10 canaries, got {num_canaries}")
    if not 0 <= num_correct <= num_guesses <= num_canaries:
        raise UsageError(
            f"{num_correct} right of {num_guesses} guesses about {num_canaries} canaries: they must not decrease"
        )
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie in (0, 1), got {confidence}")
    return 1 - confidence
