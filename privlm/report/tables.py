"""Our own figures beside the published ones: matches the runs of a store to the cells of a table file.

A run belongs to a cell when their configurations agree but for the seed and for how the run was executed (the cell
hash); names of directories decide nothing. Only finished runs give figures, only runs at scale `paper` get a verdict,
and smoke runs enter no table but one that is headed SMOKE.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from privlm.errors import UsageError
from privlm.identity import Roles
from privlm.report.card import beside_the_plan
from privlm.report.claims import in_words, judge
from privlm.report.store import RunRecord, Store, nearest
from privlm.report.table import Table
from privlm.report.table_file import Cell, Column, TableFile
from privlm.results import Result

Resolve = Callable[[list[str]], str]
"""Overrides -> the cell hash of the configuration that they give."""

SPREAD_NOTE = (
    "± is the sample standard deviation over seeds; — where there is one seed, nothing where all seeds agree exactly; "
    "in brackets the 95 % interval that a single run reports"
)

TO_FRACTION = {"fraction": 1.0, "percent": 0.01}
"""Units that convert into each other. Any other unit must be the same in the table and in the run."""


@dataclass(frozen=True)
class CellRuns:
    """What the store holds for one list of overrides. finished: one run a seed, in the order of the seeds."""

    overrides: tuple[str, ...]
    cell_hash: str
    finished: list[RunRecord] = field(default_factory=list)
    unfinished: list[RunRecord] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """A cell of the printed table, at full precision. sd is the sample standard deviation, None for one run.

    marks: what must be said with the figure in a word (subset, public-overlap). by_seed: the values behind it.
    interval: the 95 % interval that the run itself reports, of a figure of one seed.
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
        if self.interval is None:
            text = spread_text(self.mean, self.sd, decimals)
        else:
            text = "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(self.mean, *self.interval, d=decimals)
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
    groups = {}
    for number, overrides in enumerate(lists, start=1):
        words = overrides if scale is None else (*overrides, f"scale={scale}")
        groups[overrides] = _match(words, resolve(list(words)), store, smoke=scale == "smoke")
        if progress is not None:
            progress(number, len(lists))
    figures = {
        row: {
            key: _figure(cell, None if cell.run is None else groups[cell.run], file.seeds)
            for key, cell in cells.items()
        }
        for row, cells in file.rows.items()
    }
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
        *_footer(file, list(groups.values()), store, shows_smoke=scale == "smoke"),
    ]
    return Table(name=file.name, title=title, columns=columns, rows=rows, notes=notes, values=values, claims=claims)


# --- matching --------------------------------------------------------------------------------------------


def _match(overrides: tuple[str, ...], cell_hash: str, store: Store, *, smoke: bool) -> CellRuns:
    group = CellRuns(overrides, cell_hash)
    by_seed: dict[Any, list[RunRecord]] = {}
    outdated = []
    for run in store.runs:
        if run.cell_hash != cell_hash:
            if _meaning(run.overrides, run.roles) == _meaning(overrides, run.roles):
                outdated.append(run)
        elif (run.scale == "smoke") != smoke:
            continue
        elif run.finished:
            by_seed.setdefault(run.seed, []).append(run)
        else:
            group.unfinished.append(run)
    for seed in sorted(by_seed):
        *older, newest = sorted(by_seed[seed], key=_finished_at)
        group.finished.append(newest)
        if older:
            group.remarks.append(f"seed {seed} was run {len(older) + 1} times; the newest, {newest.path}, counts")
    if outdated:
        cells = ", ".join(sorted({run.cell_hash[:8] for run in outdated}))
        group.remarks.append(
            f"not counted: {len(outdated)} runs with the overrides {' '.join(overrides)} but another configuration "
            f"(cell {cells}, now {cell_hash[:8]}), such as {outdated[0].name}"
        )
    group.remarks.extend(_mixed_inputs(group.finished))
    return group


def _meaning(overrides: Iterable[str], roles: Roles) -> set[str]:
    """Overrides without those that make another run of the same cell."""
    same_cell = tuple(f"{key}." for key in (*roles.same_run, *roles.same_cell))
    return {word for word in overrides if not f"{word.partition('=')[0]}.".startswith(same_cell)}


def _mixed_inputs(runs: list[RunRecord]) -> list[str]:
    """One remark for each input (data, weights) whose content is not the same in all runs."""
    remarks = []
    for name in sorted({name for run in runs for name in run.inputs}):
        contents = sorted({run.inputs.get(name, "none")[:12] for run in runs})
        if len(contents) > 1:
            remarks.append(f"MIXED: the seeds did not read the same {name} ({', '.join(contents)})")
    return remarks


def _finished_at(run: RunRecord) -> float:
    assert run.result is not None
    return run.result["finished"]


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


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter is None for one value and NaN if a value is not finite."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    if len(set(values)) == 1:  # all infinite included
        return values[0], 0.0
    return mean, statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def spread_text(mean: float, sd: float | None, decimals: int) -> str:
    """`0.976 ± 0.002`; `0.976 ± —` for one seed; `0.976` where all seeds agree exactly (SPREAD_NOTE says so)."""
    if sd == 0:
        return f"{mean:.{decimals}f}"
    return f"{mean:.{decimals}f} ± " + ("—" if sd is None else f"{sd:.{decimals}f}")


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
    if len(rows) > 1 or rows[0].ci_low is None or rows[0].ci_high is None:
        return None
    factor = _factor(rows[0], column)
    return rows[0].ci_low * factor, rows[0].ci_high * factor


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
            exact |= {key: figure.mean, f"{key}_sd": figure.sd}
        values.append(exact)
    return columns, rows, values


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
                (cell.note or "not published") if cell.published is None else f"{cell.published:.{decimals}f}",
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
                "seeds": figure.num_seeds,
                "delta": figure.delta,
                "tolerance": cell.tolerance,
                "status": figure.marked_status,
                "source": cell.source,
            }
        )
    return columns, rows, values


# --- footer ----------------------------------------------------------------------------------------------


def _footer(file: TableFile, groups: list[CellRuns], store: Store, *, shows_smoke: bool) -> list[str]:
    finished = [run for group in groups for run in group.finished]
    lines = []
    if file.paper is not None:
        lines.append(f"published: {', '.join(filter(None, (file.number, f'arXiv {file.paper}')))}")
    lines.append(SPREAD_NOTE)
    seeds = ",".join(str(seed) for seed in range(file.seeds))
    lines += [f"run: privlm sweep {' '.join(group.overrides)} seed={seeds}" for group in groups]
    if finished:
        lines += _provenance(finished)
    for group in groups:
        lines += group.remarks
        lines += [f"{run.name}: {run.state}{_because(run)}" for run in group.unfinished]
    task = file.name.partition("_")[0]
    smoke = sum(run.scale == "smoke" and run.task == task for run in store.runs if run.result)
    if smoke and not shows_smoke:
        lines.append(f"{smoke} smoke runs are not shown (--scale smoke shows them)")
    return lines + store.skipped


def _provenance(runs: list[RunRecord]) -> list[str]:
    """Code, data, hardware, privacy and dates of the runs that gave the figures."""
    dates = [datetime.fromtimestamp(_finished_at(run), UTC).date().isoformat() for run in runs]
    return [
        f"code: {_joined(_code(run) for run in runs)}",
        f"data: {_joined(_data(run) for run in runs)}",
        f"hardware: {_joined(_hardware(run) for run in runs)}",
        f"privacy: {_joined(_privacy(run) for run in runs)}",
        f"runs finished between {min(dates)} and {max(dates)}",
    ]


def _code(run: RunRecord) -> str:
    env = run.env or {}
    if env.get("git_commit") is None:
        return f"privlm {env.get('privlm', 'unknown')} (not a checkout)"
    return env["git_commit"][:12] + (" with uncommitted changes" if env["dirty"] else "")


def _data(run: RunRecord) -> str:
    digest = run.inputs.get("data")
    return run.config.get("data", {}).get("name", "unknown") + (f" ({digest[:12]})" if digest else "")


def _hardware(run: RunRecord) -> str:
    env = run.env or {}
    return f"{env.get('platform', 'unknown')}, {env.get('gpu') or 'no GPU'}"


def _privacy(run: RunRecord) -> str:
    privacy = run.privacy or {}
    if privacy.get("mechanism") != "dp_sgd":
        return privacy.get("mechanism", "unknown")
    return (
        f"dp_sgd, unit {privacy['unit']}, {privacy['adjacency']}, delta {privacy['delta']:g}, "
        f"{'certified' if privacy['guarantee'] else 'estimated'} by {privacy['accountant']}, {privacy['rng']} noise"
    )


def _because(run: RunRecord) -> str:
    reasons = "; ".join(filter(None, [run.status.get("reason"), *run.problems, _spent(run)]))
    return f" ({reasons})" if reasons else ""


def _spent(run: RunRecord) -> str:
    """What a run that is not done has spent of its privacy; what is wrong with its ledger."""
    try:
        return beside_the_plan(run.privacy)
    except UsageError as fault:
        return "" if str(fault) in run.problems else str(fault)


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(sorted(set(texts)))
