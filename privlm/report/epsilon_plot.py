"""Accuracy against epsilon: one panel for each data set, one line for each adapter, drawn to a file.

A point is what the runs of one budget reach at their certified epsilon, with its interval. Runs without privacy stand
in a place of their own at the right edge and as a dotted line, the share of the majority class as a dashed one. Nothing
is fitted or smoothed, and the axis need not begin at zero: the majority class is the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm import files
from privlm.content import own
from privlm.errors import UsageError
from privlm.metrics.seeds import mean_over_seeds
from privlm.report.look import ON_PAGE, ON_WHITE, Look, drawing, page_drawing, page_svg, plain, save
from privlm.report.store import RunRecord, one_a_seed, without_copies
from privlm.results import Result

METRIC = "accuracy"
SUFFIXES = (".png", ".svg", ".pdf")
MAX_COLUMNS = 3
NO_PRIVACY = "none"
DODGE = 1.06  # factor between neighbouring lines, whose intervals would hide each other


@dataclass(frozen=True)
class Point:
    """Runs of one line, one budget and one cell.

    epsilon: certified, their mean; None without privacy.
    low, high: the 95 % interval of a single run, or of the mean over seeds; the value twice where there is none.
    """

    epsilon: float | None
    value: float
    low: float
    high: float
    num_runs: int


@dataclass(frozen=True)
class Panel:
    """A data set. lines: adapter (or model and adapter) -> points by rising epsilon, the one without privacy last."""

    title: str
    marks: list[str]
    majority: float | None
    lines: dict[str, list[Point]]


def panels_of(runs: Sequence[RunRecord]) -> list[Panel]:
    """The panels of the finished runs that report an accuracy; of several splits the first is taken, and named.

    Audited runs are left out: their figures are no results. Raises UsageError where nothing is left to draw.
    """
    usable = [run for run in runs if run.finished and run.canaries == "none" and _row(run, METRIC) is not None]
    drawn = without_copies(usable)
    if not drawn:
        raise UsageError(f"nothing to draw: none of the runs is finished and reports '{METRIC}'")
    many_models = len({_identity(run, "model") for run in drawn}) > 1
    by_panel: dict[tuple[str, str], list[RunRecord]] = {}
    for run in drawn:
        by_panel.setdefault((f"{run.name_of('data')} ({_accuracy(run).split})", _own(run, "data")), []).append(run)
    titles = [title for title, _ in by_panel]
    return [
        _panel(title if titles.count(title) == 1 else f"{title} {own_data[:8]}", members, many_models)
        for (title, own_data), members in by_panel.items()
    ]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Writes the drawing whole or not at all. Raises UsageError for a suffix other than .png, .svg, .pdf."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}: the name must end in {', '.join(SUFFIXES)}")
    with drawing("epsilon"):
        figure = _figure(panels, ON_WHITE)
        files.write_file(path, lambda temporary: save(figure, temporary, path.suffix))


def svg(panels: Sequence[Panel]) -> str:
    """The drawing as an `<svg>` element of a page."""
    with page_drawing("epsilon"):
        return page_svg(_figure(panels, ON_PAGE))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _panel(title: str, runs: Sequence[RunRecord], many_models: bool) -> Panel:
    majority = _row(runs[0], "majority_class")
    marks = list(dict.fromkeys(mark for run in runs for mark in run.marks))
    by_line: dict[str, dict[tuple[float | None, str], list[RunRecord]]] = {}
    for run in runs:
        adapter = run.name_of("adapter")
        line = f"{_identity(run, 'model')}, {adapter}" if many_models else adapter
        by_line.setdefault(line, {}).setdefault((_budget(run), run.cell_hash), []).append(run)
    lines = {
        name: sorted(map(_point, by_cell.values()), key=lambda point: (point.epsilon is None, point.epsilon or 0.0))
        for name, by_cell in by_line.items()
    }
    return Panel(title, marks, None if majority is None else majority.value, lines)


def _point(members: Sequence[RunRecord]) -> Point:
    """Of the runs of one cell: other settings at the same budget are a point of their own."""
    runs = one_a_seed(members)
    epsilons = [row.value for run in runs if (row := _row(run, "epsilon"))]
    epsilon = sum(epsilons) / len(epsilons) if epsilons else None
    rows = [_accuracy(run) for run in runs]
    found = rows[0] if len(rows) == 1 else mean_over_seeds([row.value for row in rows])
    low, high = (found.value if bound is None else bound for bound in (found.ci_low, found.ci_high))
    return Point(epsilon, found.value, low, high, len(rows))


def _budget(run: RunRecord) -> float | None:
    """The target that runs of one point share; the certified epsilon where the noise was given instead."""
    row = _row(run, "epsilon")
    return None if row is None else (run.privacy or {}).get("target_epsilon") or row.value


def _row(run: RunRecord, metric: str) -> Result | None:
    return next((row for row in run.results if row.metric == metric), None)


def _accuracy(run: RunRecord) -> Result:
    row = _row(run, METRIC)
    assert row is not None
    return row


def _identity(run: RunRecord, group: str) -> str:
    """Its name, which two folders of own weights may share."""
    return " ".join(filter(None, [run.name_of(group), _own(run, group)[-8:]]))


def _own(run: RunRecord, group: str) -> str:
    return own(run.contents).get(group, "")


# --- how ------------------------------------------------------------------------------------------------------------


def _figure(panels: Sequence[Panel], look: Look) -> Any:
    from matplotlib.figure import Figure

    num_rows = -(-len(panels) // MAX_COLUMNS)
    num_columns = -(-len(panels) // num_rows)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: look.series[number % len(look.series)] for number, name in enumerate(names)}
    figure = Figure(figsize=(max(5.2, 4.0 * num_columns), 3.5 * num_rows + 0.5), layout="constrained")
    grid = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    handles: dict[str, Any] = {}
    for panel, axes in zip(panels, grid, strict=False):
        handles = _draw_panel(axes, panel, colours, look) | handles
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    labels = [*names, *(label for label in handles if label not in names)]
    explained = [handles[label] for label in labels]
    figure.legend(explained, labels, loc="outside upper left", ncols=6, frameon=False, labelcolor=look.ink)
    figure.supxlabel(_caption(panels), color=look.quiet, fontsize=8.5)
    return figure


def _draw_panel(axes: Any, panel: Panel, colours: dict[str, str], look: Look) -> dict[str, Any]:
    """Draws a panel and returns what the legend explains: label -> artist."""
    points = [point for line in panel.lines.values() for point in line]
    ticks = {float(f"{point.epsilon:.2g}") for point in points if point.epsilon is not None}
    edge = 2 * max(ticks, default=0.5)
    handles: dict[str, Any] = {}
    for number, (name, line) in enumerate(panel.lines.items()):
        shift = DODGE ** (number - (len(panel.lines) - 1) / 2)
        style: dict[str, Any] = {"color": colours[name], "linewidth": 2, "markersize": 6, "elinewidth": 1.2}
        private = [point for point in line if point.epsilon is not None]
        without = [point for point in line if point.epsilon is None]
        budgets = [f"{point.epsilon:.2g}" for point in private]
        joined = "o-" if len(set(budgets)) == len(budgets) else "o"  # no line leads from setting to setting
        for some, marker in ((private, joined), (without, "D")):
            if some:
                x = [shift * (point.epsilon or edge) for point in some]
                spread = [[p.value - p.low for p in some], [p.high - p.value for p in some]]
                drawn = axes.errorbar(x, [p.value for p in some], spread, fmt=marker, capsize=3, **style)
                handles.setdefault(name, drawn)
        for point in without:
            axes.axhline(point.value, color=colours[name], linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    if panel.majority is not None:
        handles["majority class"] = axes.axhline(panel.majority, color=look.quiet, linewidth=1.2, linestyle=(0, (5, 3)))
    labels = {tick: f"{tick:g}" for tick in sorted(ticks)}
    if any(point.epsilon is None for point in points):
        labels[edge] = NO_PRIVACY
    axes.set_xscale("log")
    axes.set_xticks(list(labels), list(labels.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(labels) / 1.5, max(labels) * 1.5)
    axes.set_title(panel.title, loc="left", color=look.ink, fontsize=11, fontweight="bold")
    axes.set_title(", ".join(panel.marks), loc="right", color=look.warn, fontsize=8.5)
    axes.set_xlabel("certified ε (log scale)", color=look.ink)
    axes.set_ylabel(METRIC, color=look.ink)
    plain(axes, look, grid="y")
    return handles


def _caption(panels: Sequence[Panel]) -> str:
    points = [point for panel in panels for line in panel.lines.values() for point in line]
    parts = ["bars: 95 % interval of a single run"] if any(point.num_runs == 1 for point in points) else []
    parts += ["bars: 95 % t interval over 3 and more seeds"] if any(point.num_runs > 1 for point in points) else []
    parts += ["dotted: without privacy"] if any(point.epsilon is None for point in points) else []
    return "; ".join(parts)
