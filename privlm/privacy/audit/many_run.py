"""Auditing with many training runs: one canary, R runs with it and R without, one threshold fixed beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri
from scipy.stats import beta

from privlm.errors import UsageError


@dataclass(frozen=True)
class ManyRunBound:
    """Lower bounds on epsilon (at the delta given) and on mu of Gaussian DP."""

    epsilon: float
    mu: float


def many_run_bound(
    *,
    num_false_positives: int,
    num_without: int,
    num_false_negatives: int,
    num_with: int,
    delta: float,
    confidence: float = 0.95,
) -> ManyRunBound:
    """From error counts of an attack, each rate bounded from above by Clopper and Pearson (Biometrika 1934).

    Args:
        num_false_positives: of the `num_without` runs without the canary, how many the attack took for runs with it.
        num_false_negatives: of the `num_with` runs with the canary, how many it missed.

    Raises UsageError for counts, delta or confidence outside their ranges.
    """
    if not (0 <= num_false_positives <= num_without and 0 <= num_false_negatives <= num_with):
        raise UsageError("false positives and negatives cannot exceed the numbers of runs without and with the canary")
    if num_without < 1 or num_with < 1:
        raise UsageError("a many-run audit needs runs with the canary and runs without it")
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise UsageError(f"delta must lie in [0, 1) and confidence in (0, 1), got {delta} and {confidence}")
    false_positive_rate = upper_bound(num_false_positives, num_without, confidence)
    false_negative_rate = upper_bound(num_false_negatives, num_with, confidence)
    branches = [
        math.log(mass / rate)
        for mass, rate in (
            (1 - delta - false_negative_rate, false_positive_rate),
            (1 - delta - false_positive_rate, false_negative_rate),
        )
        if mass > 0
    ]
    mu = -ndtri(false_positive_rate) - ndtri(false_negative_rate)
    return ManyRunBound(epsilon=max([0.0, *branches]), mu=max(0.0, float(mu)))


def upper_bound(num_events: int, num_trials: int, confidence: float) -> float:
    """Upper end of the two-sided Clopper-Pearson interval of a rate."""
    if num_events == num_trials:
        return 1.0
    return float(beta.ppf(1 - (1 - confidence) / 2, num_events + 1, num_trials - num_events))
