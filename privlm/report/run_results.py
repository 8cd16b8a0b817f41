"""The results of a run as tables for a terminal: a list, and where metrics recur on many splits, a grid of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from privlm.report.card import figure
from privlm.report.render import fits
from privlm.report.table import Table
from privlm.results import Result

MANY = 3
"""Splits from which on a metric is a line of the grid instead of so many lines of the list."""
COLUMNS = ["metric", "value", "95 % interval", "unit", "measured on"]


def results_tables(results: Sequence[Result], width: int, title: str = "") -> list[Table]:
    """The list first, then the grid, unless so many characters cannot hold it side by side.

    title: of the first table.
    """
    splits = Counter(row.metric for row in results if row.split is not None)
    recurring = [row for row in results if row.split is not None and splits[row.metric] >= MANY]
    grids = [_grid(recurring)] if recurring else []
    if not all(fits(grid, width) for grid in grids):
        recurring, grids = [], []
    listed = [
        [row.metric, figure(row), row.interval(".4f"), row.unit, _measured_on(row)]
        for row in results
        if row not in recurring
    ]
    tables = [*([Table("results", "", COLUMNS, listed)] if listed else []), *grids]
    for table in tables[:1]:
        table.title = title
    return tables


def _measured_on(row: Result) -> str:
    return " ".join(filter(None, [row.split, f"n={row.n}" if row.n else ""]))


def _grid(rows: Sequence[Result]) -> Table:
    """A line for each metric, a column for each split with the n that most of its figures have."""
    splits = list(dict.fromkeys(row.split or "" for row in rows))
    common = {split: Counter(row.n for row in rows if row.split == split).most_common(1)[0][0] for split in splits}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        split = row.split or ""
        others = f"n={row.n}" if row.n and row.n != common[split] else ""
        form = ".2f" if row.unit == "fraction" else ".3g"
        text = "\n".join(filter(None, [figure(row), row.interval(form), others]))
        cells.setdefault((row.metric, row.unit), {})[split] = text
    titles = [f"{split}\nn={common[split]}" if common[split] else split for split in splits]
    lines = [
        [metric if unit == "fraction" else f"{metric}\n{unit}", *(by_split.get(split, "") for split in splits)]
        for (metric, unit), by_split in cells.items()
    ]
    return Table("results by split", "", ["metric", *titles], lines)
