"""The intervals hold the truth as often as they say: a part of benchmarks/coverage_of_intervals.py."""

import numpy as np
import pytest
from support import benchmarks

pytestmark = pytest.mark.torch_free

REPEATS = 300

CONSERVATIVE = {"paired difference"}
"""Kinds that hold more than 95 % where nothing can hold 95 %: systems that differ on a few items at most."""


@pytest.fixture
def coverage():
    return benchmarks.script("coverage_of_intervals")


def of(cells):
    """Coverage of the cells in which most experiments gave an interval."""
    return np.array([cell.coverage for cell in cells if cell.withheld < 0.5])


def test_shares_hold_93_percent_and_more_at_every_n(coverage):
    cells = {(cell.setting, cell.column): cell.coverage for cell in coverage.shares(0)}
    below = {place: value for place, value in cells.items() if value < 0.93}
    assert set(below) == {("n 6", "0.6")}, "outcomes are few: the next wider interval holds 97 %"
    assert min(below.values()) > 0.91
    assert max(value for (setting, _), value in cells.items() if setting not in ("n 3", "n 5", "n 6", "n 10")) < 0.992


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_the_mean_over_seeds_holds_95_percent(coverage, num_seeds):
    def draw(rng):
        return coverage.mean_over_seeds(list(rng.normal(0, 1, num_seeds))), 0.0

    assert 0.94 < coverage.drawn("seeds", "normal", str(num_seeds), 4000, draw).coverage < 0.96


def test_a_sample_of_every_other_kind_holds_93_to_99_percent(coverage, monkeypatch):
    monkeypatch.setattr(coverage, "NUMBERS", (100,))
    monkeypatch.setattr(coverage, "FEW_SHARES", (0.7,))
    for kind in (coverage.weighted_shares, coverage.membership, coverage.graph_metrics):
        found = of(kind(40))
        assert 0.93 <= found.mean() <= 0.99, kind.__name__


@pytest.mark.slow
def test_every_interval_of_the_project(coverage):
    for kind in coverage.KINDS[1:]:
        by_name = {}
        for cell in kind(REPEATS):
            by_name.setdefault(cell.kind, []).append(cell)
        for name, cells in by_name.items():
            found = of(cells)
            noise = 3 * (0.93 * 0.07 / REPEATS) ** 0.5
            assert found.min() > 0.90 - noise, name
            assert (found < 0.93 - noise).mean() <= 0.05, name
            assert 0.93 <= found.mean() <= (1 if name in CONSERVATIVE else 0.99), name
