"""Data-driven direction of a numeric pair: what a language model is measured against. Nothing here reads a name.

The collection re-orients every pair to A -> B, so that a constant would be right always: A and B are swapped by seed
first. Its pairs carry no names and no weights; only the unweighted accuracy over them is reported.
"""

from __future__ import annotations

import csv
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from privlm.errors import UsageError
from privlm.metrics.shares import share
from privlm.results import Result

from .grading import row
from .sources import Sources

PAIRS, TARGETS = "tuebingen_cdt/Tuebingen_pairs.csv", "tuebingen_cdt/Tuebingen_targets.csv"
SPLIT = "numeric pairs"
ALPHA = 0.05
DEGREE = 3


@dataclass(frozen=True)
class NumericPair:
    """x, y: samples [n]. forward: whether x causes y."""

    id: str
    x: np.ndarray
    y: np.ndarray
    forward: bool


@dataclass(frozen=True)
class Decision:
    """score: above 0 for x -> y, below 0 for y -> x, 0 for neither. decided: whether the method stands by it."""

    score: float
    decided: bool


UNDECIDED = Decision(0.0, False)

Method = Callable[[np.ndarray, np.ndarray, int], Decision]
"""(x, y, seed) -> decision; x and y are standardised."""


def read_pairs(sources: Sources, seed: int) -> list[NumericPair]:
    """All pairs, each swapped or not by `seed`. Raises UsageError for values that are no numbers or do not match."""
    csv.field_size_limit(2**30)  # a column of samples is one field
    targets = {fields["SampleID"]: fields["Target"] for fields in sources.table(TARGETS, ("SampleID", "Target"))}
    rng = random.Random(seed)
    pairs = []
    for fields in sources.table(PAIRS, ("SampleID", "A", "B")):
        name = fields["SampleID"]
        try:
            a, b = (np.array(fields[column].split(), dtype=float) for column in "AB")
            forward = float(targets[name]) > 0
        except (ValueError, KeyError):
            raise UsageError(f"{sources.locate(PAIRS)}: {name} has values that are no numbers, or no target") from None
        if len(a) != len(b) or not np.isfinite([a, b]).all():
            raise UsageError(f"{sources.locate(PAIRS)}: {name} has samples without a partner, or infinite ones")
        if rng.random() < 0.5:
            a, b, forward = b, a, not forward
        pairs.append(NumericPair(name, a, b, forward))
    return pairs


def igci(x: np.ndarray, y: np.ndarray, seed: int) -> Decision:
    """Information-geometric causal inference, slope estimator, uniform reference (Janzing et al., AI 2012)."""
    score = _mean_log_slope(y, x) - _mean_log_slope(x, y)
    return Decision(score, bool(np.isfinite(score) and score != 0))


def _mean_log_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of log |dy/dx| over samples in the order of x, both scaled to [0, 1]; steps of no width are left out."""
    x, y = ((values - values.min()) / np.ptp(values) for values in (x, y))
    order = np.argsort(x, kind="stable")
    dx, dy = np.diff(x[order]), np.diff(y[order])
    real = (dx != 0) & (dy != 0)
    return float(np.mean(np.log(np.abs(dy[real] / dx[real])))) if real.any() else np.nan


def reci(x: np.ndarray, y: np.ndarray, seed: int) -> Decision:
    """Regression error (Bloebaum et al., AISTATS 2018): the cause predicts the effect better than the reverse.

    Polynomials of degree 3 on values scaled to [0, 1].
    """
    score = _regression_error(y, x) - _regression_error(x, y)
    return Decision(score, bool(np.isfinite(score) and score != 0))


def _regression_error(x: np.ndarray, y: np.ndarray) -> float:
    x, y = ((values - values.min()) / np.ptp(values) for values in (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.RankWarning)
        return float(np.mean((y - np.polyval(np.polyfit(x, y, DEGREE), x)) ** 2))


def anm(x: np.ndarray, y: np.ndarray, seed: int) -> Decision:
    """Additive noise models (Hoyer et al., NeurIPS 2008) of causal-learn: Gaussian process regression, HSIC test.

    The direction with the larger p-value of independent residuals; decided when only that one is accepted at 0.05.
    """
    from causallearn.search.FCMBased.ANM.ANM import ANM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bounds of a kernel's length scale
        forward, backward = ANM().cause_or_effect(x[:, None], y[:, None])
    return Decision(float(forward - backward), bool((forward > ALPHA) != (backward > ALPHA)))


METHODS: dict[str, Method] = {"anm": anm, "igci": igci, "reci": reci}


def results(
    pairs: list[NumericPair],
    methods: list[str],
    *,
    seed: int,
    max_points: int,
    seconds: float,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Accuracy of each method over all pairs (a pair without direction earns 0.5), over the decided ones, and their
    share.

    max_points: samples of a pair that anm uses, drawn by `seed` (its time grows with their cube); the others use all.
    seconds: for all methods together, an equal share of what is left for each; a pair that is not reached in time has
    no direction.
    """
    rows: list[Result] = []
    deadline = time.monotonic() + seconds
    for number, name in enumerate(methods):
        now = time.monotonic()
        ends = now + (deadline - now) / (len(methods) - number)
        decisions = []
        for place, pair in enumerate(pairs):
            late = time.monotonic() > ends
            num_points = max_points if name == "anm" else len(pair.x)
            decisions.append(UNDECIDED if late else _decide(METHODS[name], pair, seed, num_points))
            tick(number * len(pairs) + place + 1)
        rows += _rows(name, pairs, decisions)
    return rows


def _decide(method: Method, pair: NumericPair, seed: int, num_points: int) -> Decision:
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(pair.x), min(num_points, len(pair.x)), replace=False))
    x, y = pair.x[chosen], pair.y[chosen]
    if not np.ptp(x) or not np.ptp(y):  # a constant has no direction
        return UNDECIDED
    decision = method((x - x.mean()) / x.std(), (y - y.mean()) / y.std(), seed)
    return decision if np.isfinite(decision.score) else UNDECIDED


def _rows(name: str, pairs: list[NumericPair], decisions: list[Decision]) -> list[Result]:
    right = np.array(
        [
            0.5 if decision.score == 0 else float((decision.score > 0) == pair.forward)
            for pair, decision in zip(pairs, decisions, strict=True)
        ]
    )
    decided = np.array([decision.decided for decision in decisions])
    rows = [
        row(f"{name}_accuracy", share(right), SPLIT),
        row(f"{name}_decided", share(decided), SPLIT),
    ]
    if decided.any():
        rows.append(row(f"{name}_accuracy_decided", share(right[decided]), SPLIT))
    return rows
