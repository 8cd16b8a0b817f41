"""The picture of a filled table: a panel for each column of figures, published beside ours with its 95 % interval.

Of a table of our own runs the columns that are shares, or have an interval, are drawn. The axes need not begin at zero.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm import files
from privlm.report.look import ON_WHITE, drawing, plain, save
from privlm.report.table import Table

MAX_PANELS = 6
MAX_COLUMNS = 3
SHARES = ("fraction", "percent")
LABEL_WIDTH = 30  # characters of a line
BAND = "tolerance of the verdict"
PUBLISHED = "published"


@dataclass(frozen=True)
class Mark:
    """A cell of the table. ours: None where there is no figure. tolerance: only where it has decided a verdict."""

    row: str
    status: str
    published: float | None = None
    ours: float | None = None
    interval: tuple[float, float] | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Panel:
    """A column of the table, its cells in the order of the rows."""

    title: str
    unit: str | None
    marks: list[Mark]

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Smaller where the column says more: both figures in one cell, any of ours, a share."""
        pairs = [mark for mark in self.marks if None not in (mark.ours, mark.published)]
        return not pairs, all(mark.ours is None for mark in self.marks), self.unit not in SHARES


def draw(table: Table, path: Path) -> Path | None:
    """Writes the picture as PNG, whole or not at all, and returns its path.

    None, and nothing is written, where no cell has a figure of ours. Raises OSError where `path` cannot be written.
    """
    panels = panels_of(table)
    if not any(mark.ours is not None for panel in panels for mark in panel.marks):
        return None
    chosen = sorted(panels, key=lambda panel: panel.rank)[:MAX_PANELS]
    drawn = [panel for panel in panels if panel in chosen]
    remarks = ["bars: 95 % interval"] if any(mark.interval for panel in drawn for mark in panel.marks) else []
    remarks += [f"{len(drawn)} of {len(panels)} columns are drawn"] if len(drawn) < len(panels) else []
    found = {mark.row for panel in drawn for mark in panel.marks}
    rows = [row for row in dict.fromkeys(values["row"] for values in table.values) if row in found]
    with drawing(table.name):
        figure = _figure(table.title, rows, drawn, "; ".join(remarks))
        files.write_file(path, lambda temporary: save(figure, temporary, ".png"))
    return path


# --- what is drawn ----------------------------------------------------------------------------------------------------


def panels_of(table: Table) -> list[Panel]:
    """The columns with anything to draw, published or ours; none of a table that is not of runs."""
    has_published = any("published" in values for values in table.values)
    panels = []
    for key, measure in table.measures.items():
        marks = list(_beside_published(table, key) if has_published else _own(table, key))
        panel = Panel(measure["title"] or key, measure["unit"], [mark for mark in marks if _is_drawn(mark)])
        shown = any(mark.interval is not None or mark.published is not None for mark in panel.marks)
        if panel.marks and (shown or panel.unit in SHARES):
            panels.append(panel)
    return panels


def _beside_published(table: Table, key: str) -> Iterator[Mark]:
    for values in table.values:
        if values["column"] == key:
            yield Mark(
                values["row"],
                _status(values["status"], values.get("provenance")),
                _finite(values["published"]),
                _finite(values["ours"]),
                _interval(values["interval"]),
                None if values["delta"] is None else values["tolerance"],
            )


def _own(table: Table, key: str) -> Iterator[Mark]:
    for values in table.values:
        status = _status(values["status"], values.get(f"{key}_provenance"))
        ours, interval = values.get(key), values.get(f"{key}_interval")
        yield Mark(values["row"], status, None, _finite(ours), _interval(interval))


def _status(status: str, provenance: str | None) -> str:
    return f"{status}, replayed" if provenance == "replayed" else status


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _interval(ends: Sequence[float] | None) -> tuple[float, float] | None:
    return None if ends is None or not all(map(math.isfinite, ends)) else (ends[0], ends[1])


def _is_drawn(mark: Mark) -> bool:
    return mark.published is not None or mark.ours is not None


# --- how ------------------------------------------------------------------------------------------------------------


def _figure(title: str, rows: Sequence[str], panels: Sequence[Panel], remark: str) -> Any:
    from matplotlib.figure import Figure

    labels = [textwrap.fill(row, LABEL_WIDTH) for row in rows]
    lines = [line for label in labels for line in label.split("\n")]
    num_columns = min(MAX_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    width = max(7.0, 0.08 * max(map(len, lines)) + 3.0 * num_columns)
    height = num_rows * (0.2 * len(lines) + 0.18 * len(rows) + 0.9) + 0.9
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for panel, axes in zip(panels, grid.flat, strict=False):
        handles = _draw_panel(axes, panel, rows) | handles
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    colour = ON_WHITE.warn if title.startswith("SMOKE") else ON_WHITE.ink
    text = textwrap.fill(title, int(10 * width))
    figure.suptitle(text, x=0.01, ha="left", color=colour, fontweight="bold", fontsize=11)
    order = sorted(handles, key=lambda label: (label != PUBLISHED, label == BAND))
    explained = [handles[label] for label in order]
    style: dict[str, Any] = {"frameon": False, "labelcolor": ON_WHITE.ink, "alignment": "left", "title_fontsize": 8.5}
    num_legends = max(1, int(11 * width / (8 + max(map(len, order)))))
    legend = figure.legend(explained, order, loc="outside lower left", ncols=num_legends, title=remark, **style)
    legend.get_title().set_color(ON_WHITE.quiet)
    return figure


def _draw_panel(axes: Any, panel: Panel, rows: Sequence[str]) -> dict[str, Any]:
    """Draws a panel and returns what the legend explains: label -> artist."""
    from matplotlib.ticker import MaxNLocator

    handles: dict[str, Any] = {}
    for mark in panel.marks:
        y = rows.index(mark.row)
        if mark.published is not None:
            if mark.tolerance is not None:
                ends = (mark.published - mark.tolerance, mark.published + mark.tolerance)
                style: Mapping[str, Any] = {"color": ON_WHITE.grid, "linewidth": 9, "solid_capstyle": "butt"}
                (handles[BAND],) = axes.plot(ends, (y, y), zorder=1, **style)
            style = {"markerfacecolor": ON_WHITE.paper, "markeredgecolor": ON_WHITE.ink, "markeredgewidth": 1.4}
            (handles[PUBLISHED],) = axes.plot(mark.published, y, "o", markersize=9, linestyle="none", zorder=2, **style)
        if mark.ours is not None:
            low, high = mark.interval or (mark.ours, mark.ours)
            spread = [[max(0.0, mark.ours - low)], [max(0.0, high - mark.ours)]]
            colour, shape = _verdict(mark.status)
            handles[f"ours: {mark.status}"] = axes.errorbar(
                mark.ours, y, xerr=spread, fmt=shape, color=colour, markersize=5.5, elinewidth=1.6, capsize=3, zorder=3
            )
    axes.set_title(
        textwrap.fill(panel.title, LABEL_WIDTH), loc="left", color=ON_WHITE.ink, fontsize=10.5, fontweight="bold"
    )
    axes.set_xlabel(panel.unit or "", color=ON_WHITE.quiet)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.12)
    plain(axes, ON_WHITE, grid="both")
    return handles


def _verdict(status: str) -> tuple[str, str]:
    """Colour and shape: what may be compared with the published mark is told apart from what may not."""
    word = status.partition(",")[0]
    if word == "match":
        return ON_WHITE.good, "o"
    if word == "differs":
        return ON_WHITE.series[1], "s"
    return (ON_WHITE.quiet if word == "smoke" else ON_WHITE.series[0]), "D"
