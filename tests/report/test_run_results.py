"""Results of a run on a terminal: a list, and a grid where metrics recur on many splits."""

from __future__ import annotations

import pytest

from privlm.report.render import fits
from privlm.report.run_results import results_tables
from privlm.results import Result

pytestmark = pytest.mark.torch_free

SPLITS = ("gsm8k", "AQuA", "SVAMP")


def result(metric, split=None, value=0.5, unit="fraction", n=None, ci=(None, None)):
    return Result(metric, value, unit, n=n, ci_low=ci[0], ci_high=ci[1], split=split)


def many():
    rows = [result("accuracy", split, 0.25, n=25, ci=(0.1, 0.4)) for split in SPLITS]
    rows += [result("truncated", split, 3, unit="answers") for split in SPLITS[:2]]
    rows += [result("truncated", SPLITS[2], 4, unit="answers", n=9)]
    return [*rows, result("accuracy_best", "gsm8k"), result("parameters", value=12, unit="parameters")]


def test_what_recurs_on_three_splits_is_a_line_of_the_grid():
    listed, grid = results_tables(many(), 120, "results")
    assert (listed.title, grid.title) == ("results", "")
    assert [row[0] for row in listed.rows] == ["accuracy_best", "parameters"]
    assert grid.columns == ["metric", "gsm8k\nn=25", "AQuA\nn=25", "SVAMP\nn=25"]
    assert grid.rows == [
        ["accuracy", *["0.25\n[0.10, 0.40]"] * 3],
        ["truncated\nanswers", "3", "3", "4\nn=9"],
    ]


def test_where_it_would_not_fit_all_is_listed():
    _, grid = results_tables(many(), 120)
    width = next(width for width in range(20, 120) if fits(grid, width))
    assert len(results_tables(many(), width)) == 2
    (listed,) = results_tables(many(), width - 1)
    assert len(listed.rows) == len(many())


def test_two_splits_stay_a_list():
    (listed,) = results_tables([result("accuracy", split, n=25) for split in SPLITS[:2]], 120)
    assert [row[4] for row in listed.rows] == ["gsm8k n=25", "AQuA n=25"]
    assert results_tables([], 120) == []
