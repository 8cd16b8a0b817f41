"""Claims of a table: does one row stand above another, over the seeds that both have?

Runs of one seed share data order and initialisation, so the difference is taken seed by seed. Its mean gets a 95 %
interval by the paired bootstrap (Efron and Tibshirani 1993, chapter 13): seeds are drawn with replacement. Over the few
seeds of a table that interval is on the narrow side; a claim that it leaves open is open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RESAMPLES = 10_000
MIN_SEEDS = 3


@dataclass(frozen=True)
class Judgement:
    """verdict: holds, does not hold, or not decidable. difference: mean over `num_seeds` seeds, None without any."""

    verdict: str
    num_seeds: int
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


def judge(higher: Mapping[int, float], than: Mapping[int, float]) -> Judgement:
    """Whether the values `higher` (seed -> value) lie above `than`: 0 outside the interval decides.

    Fewer than MIN_SEEDS shared seeds decide nothing.
    """
    import numpy as np

    seeds = sorted(higher.keys() & than.keys())
    differences = np.array([higher[seed] - than[seed] for seed in seeds])
    if len(seeds) < MIN_SEEDS:
        return Judgement("not decidable", len(seeds), float(differences.mean()) if seeds else None)
    drawn = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    verdict = "holds" if low > 0 else "does not hold" if high <= 0 else "not decidable"
    return Judgement(verdict, len(seeds), float(differences.mean()), float(low), float(high))


def in_words(claim: str, judgement: Judgement, decimals: int) -> str:
    """One line for the footer of the table."""
    if judgement.ci_low is None:
        return f"claim: {claim}: {judgement.verdict}, {judgement.num_seeds} shared seeds of the {MIN_SEEDS} it takes"
    interval = f"[{judgement.ci_low:+.{decimals}f}, {judgement.ci_high:+.{decimals}f}]"
    return (
        f"claim: {claim}: {judgement.verdict} (difference {judgement.difference:+.{decimals}f} {interval}, "
        f"95 % paired bootstrap over {judgement.num_seeds} seeds)"
    )
