"""Claims of a table: does one row stand above another, over the seeds that both have?

Runs of one seed share data order and initialisation, so the difference is taken seed by seed. Its mean gets the paired
t interval; a claim that it leaves open is open. Differences that are all equal have no such interval: then the exact
sign flips decide, which takes six seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from privlm.metrics.estimate import MIN_N
from privlm.metrics.seeds import agree, mean_over_seeds, sign_flips
from privlm.results import interval_text

LEVEL = 0.05


@dataclass(frozen=True)
class Judgement:
    """verdict: holds, does not hold, or not decidable. difference: mean over `num_seeds` seeds, None without any.

    p: of the sign flips, where there is no interval although the seeds are enough.
    """

    verdict: str
    num_seeds: int
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None


def judge(higher: Mapping[int, float], than: Mapping[int, float]) -> Judgement:
    """Whether the values `higher` (seed -> value) lie above `than`: 0 outside the interval decides.

    Fewer than three shared seeds decide nothing.
    """
    differences = [higher[seed] - than[seed] for seed in sorted(higher.keys() & than.keys())]
    if not differences:
        return Judgement("not decidable", 0)
    found = mean_over_seeds(differences)
    if found.ci_low is not None and found.ci_high is not None:
        verdict = "holds" if found.ci_low > 0 else "does not hold" if found.ci_high < 0 else "not decidable"
        return Judgement(verdict, found.n, found.value, found.ci_low, found.ci_high)
    if found.n < MIN_N or not agree(differences):
        return Judgement("not decidable", found.n, found.value)
    p = sign_flips(differences)
    verdict = "not decidable" if p > LEVEL else "holds" if found.value > 0 else "does not hold"
    return Judgement(verdict, found.n, found.value, p=p)


def in_words(claim: str, judgement: Judgement, decimals: int) -> str:
    """One line for the footer of the table."""
    line = f"claim: {claim}: {judgement.verdict}"
    if judgement.num_seeds < MIN_N:
        return f"{line}, {judgement.num_seeds} shared seeds of the {MIN_N} it takes"
    form = f"+.{decimals}f"
    difference = f"difference {judgement.difference:{form}}"
    if judgement.p is not None:
        return f"{line} ({difference} at each of {judgement.num_seeds} seeds, p {judgement.p:.3f} by sign flips)"
    interval = interval_text(judgement.ci_low, judgement.ci_high, form)
    if not interval:
        return f"{line} (a value is not finite)"
    return f"{line} ({difference} {interval}, 95 % paired t interval over {judgement.num_seeds} seeds)"
