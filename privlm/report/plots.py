"""The curves of a run as inline SVG that takes its colours from the page, so that one drawing serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from privlm.report.look import ON_PAGE, page_drawing, page_svg
from privlm.report.store import Metric, RunRecord

INK, GRID, SERIES = ON_PAGE.quiet, ON_PAGE.grid, ON_PAGE.series[:4]
MAX_PLOTS = 6


@dataclass(frozen=True)
class Curve:
    label: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Plot:
    """A panel. reference: a horizontal line with its label."""

    title: str
    curves: list[Curve]
    reference: tuple[str, float] | None = None
    starts_at_zero: bool = False


def plots_of(run: RunRecord) -> list[Plot]:
    """Up to six panels: the reported fractions together, the privacy spent, then every other metric by itself.

    A metric that was told once, at the end, is a result and no curve. Those of the split `run` (speed, memory) tell of
    the machine.
    """
    points = [point for point in run.metrics() if not point.series and point.split != "run"]
    fractions = {row.metric for row in run.results if row.unit == "fraction"}
    evaluation = _curves([point for point in points if point.name in fractions])
    spent = _curves([point for point in points if point.name == "epsilon"])
    others = dict.fromkeys(point.name for point in points if point.name not in fractions | {"epsilon"})
    plots = [
        Plot("Evaluation", evaluation, _baseline(run)),
        Plot("Privacy spent: certified ε", _spent(spent), _target(run), starts_at_zero=True),
        *(Plot(name, _curves([point for point in points if point.name == name])) for name in others),
    ]
    return [plot for plot in plots if any(len(curve.steps) > 1 for curve in plot.curves)][:MAX_PLOTS]


def _curves(points: Sequence[Metric]) -> list[Curve]:
    """One curve for each stage, split and name; the label says only what tells them apart."""
    groups: dict[tuple[str, str, str], list[Metric]] = {}
    for point in points:
        groups.setdefault((point.stage, point.split, point.name), []).append(point)
    varying = [position for position in range(3) if len({key[position] for key in groups}) > 1] or [1]
    curves = []
    for key, members in groups.items():
        members.sort(key=lambda point: point.step)
        values = [point.value if math.isfinite(point.value) else math.nan for point in members]
        if not all(map(math.isnan, values)):
            label = " ".join(key[position] for position in varying)
            curves.append(Curve(label, [point.step for point in members], values))
    return curves[: len(SERIES)]


def _spent(curves: list[Curve]) -> list[Curve]:
    """Each from what is spent before its first step: nothing, or what earlier stages have spent."""
    before = [0.0, *(curve.values[-1] for curve in curves)]
    return [
        Curve(curve.label if len(curves) > 1 else "spent", [0, *curve.steps], [start, *curve.values])
        for start, curve in zip(before, curves, strict=False)
    ]


def _baseline(run: RunRecord) -> tuple[str, float] | None:
    shares = [row.value for row in run.results if row.metric == "majority_class"]
    return ("accuracy of the majority class", shares[0]) if shares else None


def _target(run: RunRecord) -> tuple[str, float] | None:
    target = (run.privacy or {}).get("target_epsilon")
    return None if target is None else (f"budget {float(target):g}", float(target))


def svg(plot: Plot) -> str:
    """The panel as an `<svg>` element without fixed size, without a reference to anything outside it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with page_drawing(plot.title):
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.subplots()
        for colour, curve in zip(SERIES, plot.curves, strict=False):
            axes.plot(
                curve.steps, curve.values, color=colour, linewidth=2, marker="o", markersize=3.5, label=curve.label
            )
        if plot.reference is not None:
            label, level = plot.reference
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=label)
        if plot.starts_at_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axes.tick_params(colors=INK, length=0)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, borderpad=0, handlelength=1.4)
        return page_svg(figure)
