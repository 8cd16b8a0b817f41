"""Our own figures beside the published ones: the runs of a store in the cells of a table file (privlm.report.cells).

Only finished runs give figures, only runs at scale `paper` get a verdict, and smoke runs enter no table but one that is
headed SMOKE. What was measured on own data or own weights stands below the row, under the name of these.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from privlm.errors import UsageError
from privlm.metrics.seeds import mean_over_seeds
from privlm.report.cells import CellRuns, match
from privlm.report.claims import in_words, judge
from privlm.report.footer import footer
from privlm.report.store import RunRecord, Store, nearest
from privlm.report.table import Table
from privlm.report.table_file import Cell, Column, TableFile
from privlm.results import Result, interval_text

Resolve = Callable[[list[str]], str]
"""Overrides -> the cell hash of the configuration that they give."""

SPREAD_NOTE = (
    "± is the sample standard deviation over seeds; — where there is one seed, nothing where all seeds agree exactly; "
    "in brackets the 95 % interval: of one seed that of its run, over its items; of three and more the t interval of "
    "their mean, which is about other seeds on the same items; none of two"
)

TO_FRACTION = {"fraction": 1.0, "percent": 0.01}
"""Units that convert into each other. Any other unit must be the same in the table and in the run."""


@dataclass(frozen=True)
class Figure:
    """A cell of the printed table, at full precision. sd is the sample standard deviation, None for one run.

    marks: what must be said with the figure in a word (subset, public-overlap). by_seed: the values behind it.
    interval: of 95 %; of a figure of one seed the one that the run itself reports.
    """

    cell: Cell
    status: str
    mean: float | None = None
    sd: float | None = None
    replayed: bool = False
    marks: tuple[str, ...] = ()
    by_seed: dict[Any, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    @property
    def num_seeds(self) -> int:
        return len(self.by_seed)

    @property
    def has_runs(self) -> bool:
        return self.status not in ("failed", "not run")

    @property
    def marked_status(self) -> str:
        return ", ".join([self.status, *self.marks])

    @property
    def provenance(self) -> str | None:
        """measured or replayed; None without a figure."""
        return None if self.mean is None else "replayed" if self.replayed else "measured"

    @property
    def delta(self) -> float | None:
        """Ours minus published, where a verdict is due."""
        if self.status not in ("match", "differs", "partial") or self.cell.published is None:
            return None
        assert self.mean is not None
        return self.mean - self.cell.published

    @property
    def text(self) -> str:
        """`mean ± sd` in the decimals of the column; the sd of one run is unknown, not 0."""
        if self.mean is None:
            return self.cell.column.absent or "" if self.has_runs else ""
        decimals = self.cell.column.decimals
        text = spread_text(self.mean, self.sd, decimals, self.interval)
        return f"{text} (replayed)" if self.replayed else text


def build_table(
    file: TableFile,
    store: Store,
    resolve: Resolve,
    *,
    scale: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """The table of `file` filled with the runs of `store`.

    scale: fill the cells at this scale instead of the one that their overrides choose.
    progress: called with (configurations resolved, all of them).
    Raises UsageError for a metric that no run of a cell reports and for a unit that does not fit.
    """
    lists = list(dict.fromkeys(cell.run for cell in file.cells if cell.run is not None))
    groups: dict[tuple[str, ...] | None, CellRuns] = {}
    for number, overrides in enumerate(lists, start=1):
        words = overrides if scale is None else (*overrides, f"scale={scale}")
        groups[overrides] = match(words, resolve(list(words)), store, smoke=scale == "smoke")
        if progress is not None:
            progress(number, len(lists))
    figures: Figures = {}
    for row, cells in file.rows.items():
        figures[row] = {key: _figure(cell, groups.get(cell.run), file.seeds) for key, cell in cells.items()}
        figures |= _own_figures(row, cells, groups, file.seeds)
    layout = _own_layout if file.is_own else _published_layout
    columns, rows, values = layout(file, figures)
    title = f"SMOKE (proves the plumbing, no result): {file.title}" if scale == "smoke" else file.title
    claims, verdicts = [], []
    for claim in file.claims:
        higher, than = (figures[row][claim.column] for row in (claim.higher, claim.than))
        judgement = judge(higher.by_seed, than.by_seed)
        claims.append(asdict(claim) | asdict(judgement))
        verdicts.append(in_words(claim.claim, judgement, higher.cell.column.decimals + 1))
    notes = [
        *verdicts,
        *file.notes,
        SPREAD_NOTE,
        *footer(file, list(groups.values()), store, shows_smoke=scale == "smoke"),
    ]
    measures = {column.key: {"title": column.title, "unit": column.unit} for column in file.columns}
    return Table(file.name, title, columns, rows, notes, values, claims, measures)


# --- figures ---------------------------------------------------------------------------------------------


def _figure(cell: Cell, runs: CellRuns | None, seeds: int) -> Figure:
    if runs is None or not runs.finished:
        failed = runs is not None and any(run.state == "failed" for run in runs.unfinished)
        return Figure(cell, "failed" if failed else "not run")
    reported = {run.seed: _reported(run, cell) for run in runs.finished}
    rows = {seed: row for seed, row in reported.items() if row is not None}
    scale = runs.finished[0].scale
    marks = tuple(dict.fromkeys(mark for run in runs.finished for mark in run.marks))
    if not rows and cell.column.absent is not None:
        return Figure(cell, scale, marks=marks)
    if not rows:
        known = sorted({row.metric for run in runs.finished for row in run.results})
        raise UsageError(
            f"row '{cell.row}', column '{cell.column.key}': no run reports the metric "
            f"'{cell.column.metric}'{nearest(cell.column.metric, known)} (reported: {', '.join(known)})"
        )
    by_seed = {seed: row.value * _factor(row, cell.column) for seed, row in rows.items()}
    mean, sd = mean_and_sd(list(by_seed.values()))
    replayed = any(row.provenance == "replayed" for row in rows.values())
    status = _status(cell, mean, scale, marks, complete=len(rows) >= seeds)
    return Figure(cell, status, mean, sd, replayed, marks, by_seed, _interval(list(rows.values()), cell.column))


def _own_figures(
    row: str, cells: dict[str, Cell], groups: Mapping[tuple[str, ...] | None, CellRuns], seeds: int
) -> Figures:
    """What runs of the row have measured on own data or weights: name of the line -> its figures. The published figures
    are of other data, so that nothing stands beside them.
    """
    found: Figures = {}
    for key, cell in cells.items():
        for name, runs in (groups[cell.run].own if cell.run is not None else {}).items():
            line = f"{row} [{name}]"
            own_cell = replace(
                cell, row=line, published=None, source=None, tolerance=None, note="other data or weights"
            )
            found.setdefault(line, {})[key] = _figure(own_cell, runs, seeds)
    return found


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter is None for one value and NaN if a value is not finite."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    if len(set(values)) == 1:  # all infinite included
        return values[0], 0.0
    return mean, statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def spread_text(mean: float, sd: float | None, decimals: int, interval: tuple[float, float] | None = None) -> str:
    """`0.976 ± 0.002 [0.971, 0.981]`; `0.976 ± —` for one seed, or its run's interval; `0.976` where all seeds agree
    exactly (SPREAD_NOTE says so).
    """
    form = form_of(mean, decimals)
    text = f"{mean:{form}}"
    if sd is not None and sd != 0:
        text += f" ± {sd:{form}}"
    if interval is not None:
        return f"{text} {interval_text(*interval, form)}"
    return f"{text} ± —" if sd is None else text


def form_of(value: float, decimals: int) -> str:
    """The format of a figure: of large whole numbers with their thousands apart."""
    return f",.{decimals}f" if decimals == 0 and abs(value) >= 10_000 else f".{decimals}f"


def _status(cell: Cell, mean: float, scale: str, marks: Collection[str], *, complete: bool) -> str:
    if scale != "paper":
        return scale if complete else f"{scale}, partial"
    if "subset" in marks:  # the paper's figures are of the whole data set
        return "no verdict"
    if not complete:
        return "partial"
    if cell.published is None:
        return "not published"
    assert cell.tolerance is not None
    return "match" if abs(mean - cell.published) <= cell.tolerance else "differs"


def _reported(run: RunRecord, cell: Cell) -> Result | None:
    """The row of result.json that the cell asks for. Raises UsageError if several splits report the metric."""
    column = cell.column
    rows = [row for row in run.results if row.metric == column.metric and column.split in (None, row.split)]
    if len(rows) > 1:
        splits = ", ".join(str(row.split) for row in rows)
        raise UsageError(
            f"column '{column.key}': {run.name} reports '{column.metric}' for the splits {splits}; "
            "give the column a `split:`"
        )
    return rows[0] if rows else None


def _interval(rows: Sequence[Result], column: Column) -> tuple[float, float] | None:
    """In the unit of the column: the one that a single run reports, or that of the mean over seeds."""
    factors = [_factor(row, column) for row in rows]
    if len(rows) > 1:
        return seeds_interval([row.value * factor for row, factor in zip(rows, factors, strict=True)])
    if rows[0].ci_low is None or rows[0].ci_high is None:
        return None
    return rows[0].ci_low * factors[0], rows[0].ci_high * factors[0]


def seeds_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over seeds; None where they are too few, or all equal."""
    found = mean_over_seeds(values)
    return None if found.ci_low is None or found.ci_high is None else (found.ci_low, found.ci_high)


def _factor(row: Result, column: Column) -> float:
    """From the unit of the run to the unit of the column."""
    if column.unit in (None, row.unit):
        return 1.0
    if column.unit in TO_FRACTION and row.unit in TO_FRACTION:
        return TO_FRACTION[row.unit] / TO_FRACTION[column.unit]
    raise UsageError(
        f"column '{column.key}' is in {column.unit}, but the runs report '{column.metric}' in {row.unit or 'no unit'}"
    )


# --- layout ----------------------------------------------------------------------------------------------

Figures = dict[str, dict[str, Figure]]
Layout = tuple[list[str], list[list[str]], list[dict[str, Any]]]


def _own_layout(file: TableFile, figures: Figures) -> Layout:
    """One line a row: a table of our own runs has nothing to compare with."""
    columns = [file.row_title, *(column.title for column in file.columns), "seeds", "status"]
    rows, values = [], []
    for name, row in figures.items():
        expected = [figure for figure in row.values() if figure.cell.column.absent is None]
        num_seeds = min((figure.num_seeds for figure in expected), default=0)
        status = ", ".join(dict.fromkeys(figure.marked_status for figure in expected))
        texts = [row[column.key].text if column.key in row else "" for column in file.columns]
        rows.append([name, *texts, f"{num_seeds} of {file.seeds}", status])
        exact: dict[str, Any] = {"row": name, "seeds": num_seeds, "status": status}
        for key, figure in row.items():
            exact |= {key: figure.mean, f"{key}_sd": figure.sd, f"{key}_interval": figure.interval}
            exact |= {f"{key}_provenance": figure.provenance} if figure.replayed else {}
        values.append(exact)
    return columns, rows, values


def _published(cell: Cell) -> str:
    if cell.published is None:
        return cell.note or "not published"
    return f"{cell.published:{form_of(cell.published, cell.column.decimals)}}"


def _published_layout(file: TableFile, figures: Figures) -> Layout:
    """One line a cell: published | ours | delta | status, so that a wide table stays readable."""
    cells = [figure for row in figures.values() for figure in row.values()]
    any_match = any(figure.status == "match" for figure in cells)
    published = "published" if any_match else "published, not reproduced"
    columns = [file.row_title, "column", published, "ours", "seeds", "delta", "status", "source"]
    rows, values = [], []
    for figure in cells:
        cell, decimals = figure.cell, figure.cell.column.decimals
        rows.append(
            [
                cell.row,
                cell.column.title,
                (cell.note or "not published")
                if cell.published is None
                else f"{cell.published:{form_of(cell.published, decimals)}}",
                figure.text,
                f"{figure.num_seeds} of {file.seeds}",
                "" if figure.delta is None else f"{figure.delta:+.{decimals}f}",
                figure.marked_status,
                cell.source or "",
            ]
        )
        values.append(
            {
                "row": cell.row,
                "column": cell.column.key,
                "published": cell.published,
                "ours": figure.mean,
                "sd": figure.sd,
                "interval": figure.interval,
                "provenance": figure.provenance,
                "seeds": figure.num_seeds,
                "delta": figure.delta,
                "tolerance": cell.tolerance,
                "status": figure.marked_status,
                "source": cell.source,
            }
        )
    return columns, rows, values
