"""sweep.html: the page of a sweep in one file that asks nothing of the network and quotes nothing of the data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from privlm.errors import UsageError
from privlm.masking import mask_text
from privlm.report import epsilon_plot, sweep_plots
from privlm.report.html_page import banners_of, fill
from privlm.report.page import REPORT
from privlm.report.store import RunRecord
from privlm.report.sweep_plots import Measured, values_of

PAGE = "sweep.html"
TONES = {
    "done": "good",
    "failed": "bad",
    "died": "bad",
    "damaged": "bad",
    "interrupted": "warn",
    "pending": "warn",
    "running": "busy",
}
LEDGERS = ("privacy_ledger.jsonl", "privacy_ledger/*.jsonl")
MAX_LEDGER_BYTES = 20_000_000
"""A price is told of a ledger that was read and adds up, which takes a second for every 7 MB."""


@dataclass(frozen=True)
class SweepRow:
    """A run of a sweep. words: the values that make it differ, `KEY=VALUE KEY=VALUE`. reason: why it stands so.

    seconds: that it took, or has taken by now. figure: the first that it reports, as it is printed. run: None where
    its directory cannot be read.
    """

    words: str
    state: str
    reason: str
    seconds: float | None
    figure: str
    run: RunRecord | None
    directory: Path

    @property
    def finished(self) -> RunRecord | None:
        """The run, where its results may be shown."""
        return self.run if self.run is not None and self.state == "done" and self.run.results else None


@dataclass(frozen=True)
class Line:
    """A row as it is printed. short: the end of its name, by which `privlm show` finds it too. values: one for each
    swept key. link: relative to the page; '' where there is nothing.
    """

    values: list[str]
    state: str
    number: int  # of the state, for the choice of the reader
    tone: str
    time: str
    figure: str
    interval: str
    reason: str
    name: str
    short: str
    link: str


def sweep_page(title: str, command: str, rows: Sequence[SweepRow], *, folder: Path) -> str:
    """The page as text.

    command: that made the sweep. folder: where the page will lie, for its links to the runs. The ledgers of private
    runs are read, up to MAX_LEDGER_BYTES, before their prices are drawn.
    """
    from markupsafe import Markup

    values = [values_of(mask_text(row.words)) for row in rows]
    keys = list(dict.fromkeys(key for some in values for key in some))
    states = Counter(row.state for row in rows)
    lines = [_line(row, some, keys, list(states), folder) for row, some in zip(rows, values, strict=True)]
    finished = [run for row in rows if (run := row.finished) is not None]
    measured = [
        Measured(some, row.finished.results[0])
        for row, some in zip(rows, values, strict=True)
        if row.finished is not None
    ]
    plots = [(plot.title, Markup(sweep_plots.svg(plot)), plot.remarks) for plot in sweep_plots.plots_of(measured)]
    panels, remark = _accuracy_by_epsilon(finished)
    return fill(
        PAGE,
        title=title,
        command=mask_text(command),
        banners=list(dict.fromkeys(banner for run in finished for banner in banners_of(run))),
        counts=[(state, number, TONES.get(state, "quiet")) for state, number in states.items()],
        num_runs=len(rows),
        num_done=states["done"],
        seconds=duration(sum(row.seconds or 0.0 for row in rows)),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        plots=plots,
        prices=Markup(epsilon_plot.svg(panels)) if panels else None,
        num_panels=len(panels),
        price_remark=remark,
        keys=[(key, all(map(_is_number, {some.get(key, "") for some in values}))) for key in keys],
        lines=lines,
        has_reasons=any(line.reason for line in lines),
        problems=_problems(rows),
    )


def _line(row: SweepRow, values: dict[str, str], keys: Sequence[str], states: Sequence[str], folder: Path) -> Line:
    run = row.finished
    return Line(
        values=[values.get(key, "") for key in keys],
        state=row.state,
        number=states.index(row.state),
        tone=TONES.get(row.state, "quiet"),
        time="" if row.seconds is None else duration(row.seconds),
        figure=row.figure,
        interval="" if run is None else run.results[0].interval(".4g"),
        reason=mask_text(row.reason),
        name=row.directory.name,
        short=row.directory.name.rpartition("-")[2],
        link=_link(row.directory, folder),
    )


def _link(directory: Path, folder: Path) -> str:
    """Of the run's report, else of its directory, as a relative URL; '' where there is none of the two."""
    if (directory / REPORT).is_file():
        target, end = directory / REPORT, ""
    elif directory.is_dir():
        target, end = directory, "/"
    else:
        return ""
    return quote(os.fsencode(os.path.relpath(target, folder))) + end


def _accuracy_by_epsilon(finished: Sequence[RunRecord]) -> tuple[list[epsilon_plot.Panel], str]:
    """What is drawn where two budgets were run; why nothing is, where something would be."""
    priced = [run for run in finished if any(row.metric == epsilon_plot.METRIC for row in run.results)]
    prices = {next((f"{row.value:.2g}" for row in run.results if row.metric == "epsilon"), "none") for run in priced}
    if len(prices) < 2:
        return [], ""
    size = sum(_size_of_ledgers(run.path) for run in priced)
    if size > MAX_LEDGER_BYTES:
        folder = os.path.commonpath([run.path.parent for run in priced])
        return [], f"privlm compare {folder} --plot FILE draws it, and reads {size / 1e6:.0f} MB of ledgers for that"
    try:
        return epsilon_plot.panels_of(priced), ""
    except UsageError:  # no ledger adds up; each says so itself
        return [], ""


def _size_of_ledgers(run: Path) -> int:
    """In bytes, of the run's own and of its clients'."""
    return sum(path.stat().st_size for pattern in LEDGERS for path in run.glob(pattern))


def _problems(rows: Sequence[SweepRow]) -> list[str]:
    """What could not be read of runs, in a sentence each."""
    return list(dict.fromkeys(mask_text(text) for row in rows if row.run is not None for text in row.run.problems))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
