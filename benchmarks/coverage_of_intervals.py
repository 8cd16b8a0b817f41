"""How often each interval of privlm.metrics holds the truth: `python benchmarks/coverage_of_intervals.py` simulates it.

Each line is one kind of estimate in one setting, each column one true value; a cell is the coverage in percent, or
where intervals were withheld (n too small) that of the ones given, with the share withheld in brackets. Plain shares
are summed over all outcomes, everything else is drawn, seeded. Some minutes on one core; --repeats 100 for a look.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm

from privlm.metrics.classification import f1, f1_of_counts, macro_f1, matthews, precision
from privlm.metrics.detection import auc, mean_of_rates
from privlm.metrics.differences import paired_difference
from privlm.metrics.estimate import Estimate
from privlm.metrics.seeds import mean_over_seeds
from privlm.metrics.shares import share, share_of_counts, wilson
from privlm.metrics.statistic import statistic

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
NUMBERS = (3, 5, 6, 10, 30, 100, 300, 1000)
FEW_SHARES = (0.5, 0.7, 0.9, 0.97, 0.99)
SEEDS = (3, 4, 5, 7, 10)
LOW, HIGH = 0.93, 0.99
Draw = Callable[[np.random.Generator], tuple[Estimate, float]]
"""One experiment: an estimate, and the truth."""


@dataclass(frozen=True)
class Cell:
    """coverage: of the intervals that were given, NaN where none was. withheld: share of experiments without one."""

    kind: str
    setting: str
    column: str
    coverage: float
    withheld: float = 0.0

    @property
    def text(self) -> str:
        if math.isnan(self.coverage):
            return "none"
        return f"{100 * self.coverage:.1f}" + (f" ({100 * self.withheld:.0f})" if self.withheld else "")


def drawn(kind: str, setting: str, column: str, repeats: int, draw: Draw) -> Cell:
    rng = np.random.default_rng([*f"{kind} {setting} {column}".encode()])
    covered = given = 0
    for _ in range(repeats):
        estimate, truth = draw(rng)
        if estimate.ci_low is not None and estimate.ci_high is not None:
            assert estimate.ci_low < estimate.ci_high, "an interval of width 0"
            given += 1
            covered += estimate.ci_low - 1e-12 <= truth <= estimate.ci_high + 1e-12
    return Cell(kind, setting, column, covered / given if given else math.nan, 1 - given / repeats)


def shares(repeats: int) -> Iterator[Cell]:
    """Exact: the probabilities of the outcomes whose interval holds the truth."""
    for n in NUMBERS:
        ends = np.array([wilson(right / n, n) for right in range(n + 1)])
        for true in SHARES:
            holds = (ends[:, 0] <= true) & (true <= ends[:, 1])
            yield Cell("share", f"n {n}", f"{true}", float(binom.pmf(np.arange(n + 1), n, true)[holds].sum()))


def shares_in_units(repeats: int) -> Iterator[Cell]:
    """Units of 1 to 4 items with correlation (beta-binomial); n counts items."""
    of_counts = functools.lru_cache(None)(share_of_counts)
    for name, pattern in (("2", (2,)), ("4", (4,)), ("1 to 4", (1, 2, 3, 4))):
        for correlation in (0.0, 0.3, 0.7):
            for n in (10, 30, 100, 300, 1000):
                sizes = units_of(n, pattern)

                def draw(rng: np.random.Generator, true: float, sizes: np.ndarray = sizes, r: float = correlation):
                    chance = true if r == 0 else rng.beta(true * (1 / r - 1), (1 - true) * (1 / r - 1), len(sizes))
                    order = np.lexsort((right := rng.binomial(sizes, chance), sizes))
                    return of_counts(tuple(right[order]), tuple(sizes[order])), true

                setting = f"units of {name}, correlation {correlation}, n {n}"
                for true in FEW_SHARES:
                    yield drawn("share in units", setting, f"{true}", repeats, functools.partial(draw, true=true))
                of_counts.cache_clear()


def units_of(n: int, pattern: tuple[int, ...]) -> np.ndarray:
    sizes = np.resize(pattern, n)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
    sizes[-1] -= sizes.sum() - n
    return sizes


def weighted_shares(repeats: int) -> Iterator[Cell]:
    """Weights that differ by a factor of some 20, alone and on pairs of items with correlation 0.3."""
    for name, size in (("", 1), (", units of 2", 2)):
        for n in (10, 30, 100, 300, 1000):
            weight = np.repeat(np.exp(np.random.default_rng(n).normal(0, 0.8, n // size)), size)
            units = np.repeat(np.arange(n // size), size)

            def draw(rng: np.random.Generator, true: float, weight=weight, units=units, size=size):
                chance = true if size == 1 else rng.beta(true * 7 / 3, (1 - true) * 7 / 3, units[-1] + 1)[units]
                return share(rng.random(len(units)) < chance, units, weight), true

            for true in FEW_SHARES:
                cell = functools.partial(draw, true=true)
                yield drawn("weighted share", f"n {n}{name}", f"{true}", repeats, cell)


def class_metrics(repeats: int) -> Iterator[Cell]:
    """F1 and precision of a class that a share of the examples has; errors of both kinds equally often."""
    for metric in (f1, precision):
        for prevalence in (0.1, 0.5):
            for n in (10, 30, 100, 300, 1000):

                def draw(rng: np.random.Generator, true: float, metric=metric, q: float = prevalence, n: int = n):
                    labels = (rng.random(n) < q).astype(
                        int
                    )  # P(predicted | class) = true, P(predicted | other) so that
                    wrong = q * (1 - true) / (1 - q)  # precision = recall = F1 = true
                    chance = np.where(labels == 1, true, wrong)
                    return metric((rng.random(n) < chance).astype(int), labels, 1), true

                setting = f"class share {prevalence}, n {n}"
                for true in FEW_SHARES:
                    cell = functools.partial(draw, true=true)
                    yield drawn(metric.__name__, setting, f"{true}", repeats, cell)


def graph_metrics(repeats: int) -> Iterator[Cell]:
    """F1 of directed edges and the share of wrong cells (NHD), over pairs of nodes with two cells each."""
    for num_pairs in (10, 45, 66, 300):

        def counts(rng: np.random.Generator, true: float, num_pairs: int = num_pairs) -> tuple[np.ndarray, np.ndarray]:
            actual = rng.random((num_pairs, 2)) < 0.4
            keep = np.repeat(rng.random((num_pairs, 1)) < 0.5, 2, axis=1)  # half of the pairs share their fate
            u = np.where(keep, rng.random((num_pairs, 1)), rng.random((num_pairs, 2)))
            return actual, np.where(actual, u < true, u > 1 - 0.4 * (1 - true) / 0.6)

        def edge_f1(rng: np.random.Generator, true: float, counts=counts) -> tuple[Estimate, float]:
            actual, found = counts(rng, true)
            return f1_of_counts((actual & found).sum(1), found.sum(1), actual.sum(1)), true

        def nhd(rng: np.random.Generator, true: float, counts=counts) -> tuple[Estimate, float]:
            actual, found = counts(rng, true)
            return share_of_counts((actual != found).sum(1), np.full(len(actual), 2)), 0.8 * (1 - true)

        for name, metric in (("F1 of edges", edge_f1), ("NHD", nhd)):
            for true in FEW_SHARES:
                cell = functools.partial(metric, true=true)
                yield drawn(name, f"{num_pairs} pairs of nodes", f"{true}", repeats, cell)


def differences(repeats: int) -> Iterator[Cell]:
    """Two systems on the same items. Columns: how often the one alone and the other alone is right."""
    for name, size in (("", 1), (", units of 2", 2)):
        for n in NUMBERS:

            def draw(rng: np.random.Generator, ab: tuple[float, float], n: int = n, size: int = size):
                own = rng.random(n)
                first = own[np.arange(n) // size * size]
                u = np.where(rng.random(n) < (0.5 if size > 1 else 0), first, own)  # correlation 0.5 within units
                difference = (u < ab[0]).astype(float) - (u > 1 - ab[1])
                return paired_difference(difference, np.zeros(n), np.arange(n) // size), ab[0] - ab[1]

            for ab in ((0.01, 0), (0.05, 0), (0.05, 0.05), (0.1, 0.02), (0.3, 0.1), (0.3, 0.3)):
                cell = functools.partial(draw, ab=ab)
                yield drawn("paired difference", f"n {n}{name}", f"{ab[0]} / {ab[1]}", repeats, cell)


def seeds(repeats: int) -> Iterator[Cell]:
    """Means and paired differences over seeds, of several distributions."""
    draws: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
        "normal": lambda rng, n: rng.normal(0, 1, n),
        "accuracies of 1,040 items at .97": lambda rng, n: rng.binomial(1040, 0.97, n) / 1040 - 0.97,
        "heavy tails (t, 4 degrees)": lambda rng, n: rng.standard_t(4, n),
        "uniform": lambda rng, n: rng.uniform(-1, 1, n),
        "skewed (gamma, shape 4)": lambda rng, n: rng.gamma(4, 1, n) - 4,
    }
    for name, values in draws.items():
        for n in SEEDS:
            draw: Draw = lambda rng, n=n, values=values: (mean_over_seeds(list(values(rng, n))), 0.0)  # noqa: E731
            yield drawn("mean over seeds (t)", name, f"{n} seeds", 4 * repeats, draw)


def membership(repeats: int) -> Iterator[Cell]:
    """AUC of two normal distributions, and balanced accuracy at their common median."""
    for n in (10, 30, 100, 300):

        def area(rng: np.random.Generator, true: float, n: int = n) -> tuple[Estimate, float]:
            return auc(rng.normal(math.sqrt(2) * norm.ppf(true), 1, n), rng.normal(0, 1, n)), true

        def balanced(rng: np.random.Generator, true: float, n: int = n) -> tuple[Estimate, float]:
            scores = rng.normal(0, 1, (2, n)) + norm.ppf(true) * np.array([[1], [-1]])
            middle = np.median(scores)
            return mean_of_rates(share(scores[0] > middle), share(scores[1] <= middle)), true

        for name, metric in (("AUC", area), ("balanced accuracy", balanced)):
            for true in FEW_SHARES:
                yield drawn(name, f"{n} each", f"{true}", repeats, functools.partial(metric, true=true))


def several_classes(repeats: int) -> Iterator[Cell]:
    """Macro-F1 of 2 and 4 classes, Matthews' coefficient of two: accuracy in the columns."""
    for share_of_one in (0.5, 0.2):
        for n in (10, 30, 100, 300, 1000):

            def mcc(rng: np.random.Generator, true: float, n: int = n, q: float = share_of_one):
                labels = (rng.random(n) < q).astype(int)
                r = q * true + (1 - q) * (1 - true)
                truth = (q * true - q * r) / math.sqrt(q * (1 - q) * r * (1 - r))
                return matthews(np.where(rng.random(n) < true, labels, 1 - labels), labels), truth

            for true in FEW_SHARES:
                cell = functools.partial(mcc, true=true)
                yield drawn("Matthews", f"class share {share_of_one}, n {n}", f"{true}", repeats, cell)
    for num_classes in (2, 4):
        for n in (30, 100, 300, 1000):

            def macro(rng: np.random.Generator, true: float, n: int = n, k: int = num_classes):
                labels = rng.integers(k, size=n)
                other = (labels + rng.integers(1, k, n)) % k
                return macro_f1(np.where(rng.random(n) < true, labels, other), labels), true

            for true in FEW_SHARES:
                cell = functools.partial(macro, true=true)
                yield drawn("macro-F1", f"{num_classes} classes, n {n}", f"{true}", repeats, cell)


def resampled(repeats: int) -> Iterator[Cell]:
    """BCa: the correlation of two normal variables (columns)."""
    for n in (30, 50, 100, 300):

        def correlation(rng: np.random.Generator, true: float, n: int = n) -> tuple[Estimate, float]:
            x = rng.normal(size=n)
            return statistic(pearson, x, true * x + math.sqrt(1 - true**2) * rng.normal(size=n)), true

        for true in (0.0, 0.5, 0.9):
            cell = functools.partial(correlation, true=true)
            yield drawn("correlation (BCa)", f"n {n}", f"{true}", max(1, repeats // 2), cell)


def pearson(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    x, y = x - x.mean(axis, keepdims=True), y - y.mean(axis, keepdims=True)
    return (x * y).sum(axis) / np.sqrt((x**2).sum(axis) * (y**2).sum(axis))


KINDS = (
    shares, shares_in_units, weighted_shares, class_metrics, graph_metrics, differences, seeds, membership,
    several_classes, resampled,
)  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="experiments a cell")
    parser.add_argument("--only", nargs="+", choices=[kind.__name__ for kind in KINDS], help="these kinds")
    arguments = parser.parse_args(argv)
    repeats = arguments.repeats
    start = time.process_time()
    summary: dict[str, list[Cell]] = {}
    chosen = arguments.only or [kind.__name__ for kind in KINDS]
    for kind in (kind for kind in KINDS if kind.__name__ in chosen):
        lines: dict[tuple[str, str], list[Cell]] = {}
        for cell in kind(repeats):
            lines.setdefault((cell.kind, cell.setting), []).append(cell)
            summary.setdefault(cell.kind, []).append(cell)
        columns = [cell.column for cell in next(iter(lines.values()))]
        print(f"| estimate | setting | {' | '.join(columns)} |\n|--|--|{'--|' * len(columns)}")
        for (name, setting), cells in lines.items():
            print(f"| {name} | {setting} | {' | '.join(cell.text for cell in cells)} |", flush=True)
        print()
    names = ("estimate", "cells", "lowest", "mean", "highest", "below 93 %", "93 to 99 %", "above 99 %")
    print(f"| {' | '.join(names)} |\n{'|--' * len(names)}|")
    for name, cells in summary.items():
        found = np.array([cell.coverage for cell in cells if not math.isnan(cell.coverage)])
        parts = (found < LOW).mean(), ((found >= LOW) & (found <= HIGH)).mean(), (found > HIGH).mean()
        spread = " | ".join(f"{100 * value:.1f}" for value in (found.min(), found.mean(), found.max()))
        print(f"| {name} | {len(found)} | {spread} | {' | '.join(f'{part:.0%}' for part in parts)} |")
    print(f"\n{repeats} experiments a cell, {time.process_time() - start:.0f} CPU-seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
