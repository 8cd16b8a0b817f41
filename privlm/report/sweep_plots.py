"""The headline figure of a sweep against each value that was swept, as inline SVG for its page.

Runs that differ in the seed alone are repeated points, with their mean. Means are joined where the swept values are
numbers; names have no order, so that no line runs through them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privlm.metrics.estimate import Estimate
from privlm.metrics.seeds import mean_over_seeds
from privlm.report.look import ON_PAGE, page_drawing, page_svg, plain
from privlm.results import Result

SEED = "seed"
MAX_PLOTS = 8
MAX_NAMES = 24
MAX_TICKS = 8
LOG_FROM = 30.0  # the largest value over the smallest from which the axis is logarithmic
MAX_SERIES = len(ON_PAGE.series)
LABEL_LENGTH = 22
NO_VALUE = "—"
OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""


@dataclass(frozen=True)
class Measured:
    """A run that has a figure. values: key -> what it was swept to."""

    values: Mapping[str, str]
    result: Result


@dataclass(frozen=True)
class Spot:
    """The runs at one value of one series. x: the number, or the place of the name on the axis."""

    x: float
    values: list[float]
    mean: Estimate


@dataclass(frozen=True)
class SweptPlot:
    """names: labels of the places 0, 1, ... where the values are no numbers. series: values of `others` -> spots.

    has_means: False where there are more settings of the other keys than can be told apart: then `others` is one of
    them, if any, and only the runs are drawn.
    """

    key: str
    metric: str
    unit: str
    names: list[str] | None
    others: list[str]
    series: dict[str, list[Spot]]
    remarks: list[str]
    has_means: bool = True

    @property
    def title(self) -> str:
        return f"{self.metric} by {self.key}" if self.key else f"{self.metric}, all runs"


def values_of(words: str) -> dict[str, str]:
    """`privacy.epsilon=3 +x=[1, 2]` -> key -> value; a word without `=` (`~key`) is its own key."""
    pairs = [word.partition("=") for word in _split(words)]
    return {key.lstrip("+"): value for key, _, value in pairs}


def _split(words: str) -> Iterator[str]:
    """At spaces outside of brackets and quotes."""
    depth, quote, start = 0, "", 0
    for position, letter in enumerate(words):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        elif letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
        elif letter == " " and depth <= 0:
            if words[start:position].strip():
                yield words[start:position].strip()
            start = position
    if words[start:].strip():
        yield words[start:].strip()


# --- what is drawn ----------------------------------------------------------------------------------------------------


def plots_of(measured: Sequence[Measured]) -> list[SweptPlot]:
    """One plot for each key that the figures were measured at two values or more of; of seeds alone a single one.

    Runs that are told by another figure than most are left out, and counted.
    """
    kinds = Counter((one.result.metric, one.result.split, one.result.unit) for one in measured)
    if not kinds:
        return []
    kind, number = kinds.most_common(1)[0]
    of_kind = [one for one in measured if (one.result.metric, one.result.split, one.result.unit) == kind]
    usable = [one for one in of_kind if math.isfinite(one.result.value)]
    remarks = _left_out(len(measured) - number, "run", "told by another figure")
    remarks += _left_out(number - len(usable), "figure", "not finite")
    keys = [key for key in dict.fromkeys(key for one in usable for key in one.values) if key != SEED]
    keys = [key for key in keys if len({one.values.get(key) for one in usable}) > 1]
    if not keys and len(usable) > 1:
        keys = [""]
    plots = [_plot(key, [other for other in keys if other != key], usable, remarks) for key in keys[:MAX_PLOTS]]
    return [plot for plot in plots if plot.names is None or len(plot.names) <= MAX_NAMES]


def _left_out(number: int, what: str, why: str) -> list[str]:
    return [f"{number} {what}{'s are' if number > 1 else ' is'} {why}"] if number else []


def _plot(key: str, others: Sequence[str], measured: Sequence[Measured], remarks: Sequence[str]) -> SweptPlot:
    texts = list(dict.fromkeys(one.values.get(key, "") for one in measured))
    numbers = {text: number for text in texts if (number := _number(text)) is not None}
    has_numbers = len(numbers) == len(texts)
    place = numbers if has_numbers else {text: float(position) for position, text in enumerate(texts)}
    shown = list(others)
    has_means = len(_labels(measured, shown)) <= MAX_SERIES
    if not has_means:
        shown = [other for other in others if len(_labels(measured, [other])) <= MAX_SERIES][:1]
    groups: dict[str, dict[float, list[Measured]]] = {label: {} for label in _labels(measured, shown)}
    for one in measured:
        groups[_label(one, shown)].setdefault(place[one.values.get(key, "")], []).append(one)
    series = {
        label: [Spot(x, [one.result.value for one in spots[x]], _mean(spots[x])) for x in sorted(spots)]
        for label, spots in groups.items()
    }
    hidden = [other for other in others if other not in shown]
    facts = [*remarks, *(_explained(series) if has_means else [f"dots: runs, which differ in {', '.join(hidden)} too"])]
    result = measured[0].result
    unit = "" if result.unit in ("fraction", result.metric) else result.unit
    metric = result.metric.replace("_", " ") + (f" ({result.split})" if result.split else "")
    names = None if has_numbers else [_short(text) or (NO_VALUE if key else "") for text in texts]
    return SweptPlot(key, metric, unit, names, shown, series, facts, has_means)


def _label(one: Measured, keys: Sequence[str]) -> str:
    return ", ".join(one.values.get(key, "") or NO_VALUE for key in keys)


def _labels(measured: Sequence[Measured], keys: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(_label(one, keys) for one in measured))


def _explained(series: Mapping[str, Sequence[Spot]]) -> list[str]:
    """What the marks are, in a few words each."""
    spots = [spot for line in series.values() for spot in line]
    bars = {len(spot.values) > 1 for spot in spots if spot.mean.ci_low is not None}
    facts = ["small dots: runs"] if any(len(spot.values) > 1 for spot in spots) else []
    facts += ["bars: 95 % interval of a single run"] if False in bars else []
    return facts + (["bars: 95 % t interval over 3 and more seeds"] if True in bars else [])


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _mean(members: Sequence[Measured]) -> Estimate:
    """Of one run what it reports itself, of several the mean over seeds."""
    if len(members) > 1:
        return mean_over_seeds([one.result.value for one in members])
    result = members[0].result
    return Estimate(result.value, result.ci_low, result.ci_high, 1)


def _short(text: str) -> str:
    """The end tells paths apart, the beginning names."""
    if len(text) <= LABEL_LENGTH:
        return text
    half = LABEL_LENGTH // 2
    return f"{text[:half]}…{text[-half + 1 :]}"


# --- how ------------------------------------------------------------------------------------------------------------


def svg(plot: SweptPlot) -> str:
    """The plot as an `<svg>` element without fixed size."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with page_drawing(plot.title):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        is_log = _set_places(axes, plot)
        for number in range(len(plot.series)):
            _draw_series(axes, plot, number, is_log=is_log)
        axes.set_xlabel(plot.key, color=ON_PAGE.quiet)
        axes.set_ylabel(plot.unit, color=ON_PAGE.quiet)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        plain(axes, ON_PAGE, grid="y")
        axes.tick_params(colors=ON_PAGE.quiet)
        if plot.others:
            _explain(figure, plot)
        return page_svg(figure)


def _set_places(axes: Any, plot: SweptPlot) -> bool:
    """Puts the ticks where values lie; whether the axis is logarithmic."""
    if plot.names is not None:
        letters = sum(map(len, plot.names))
        slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if letters > 45 else {}
        axes.set_xticks(range(len(plot.names)), plot.names, **slanted)
        axes.set_xlim(-0.5, len(plot.names) - 0.5)
        return False
    values = sorted({spot.x for spots in plot.series.values() for spot in spots})
    is_log = values[0] > 0 and values[-1] / values[0] >= LOG_FROM
    if is_log:
        axes.set_xscale("log")
    axes.set_xticks(ticks := _ticks(values, is_log=is_log), [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    first, last = (math.log(values[0]), math.log(values[-1])) if is_log else (values[0], values[-1])
    ends = first - 0.08 * (last - first), last + 0.08 * (last - first)
    axes.set_xlim(*map(math.exp, ends) if is_log else ends)
    return is_log


def _ticks(values: Sequence[float], *, is_log: bool) -> list[float]:
    """Values that leave room for their labels."""
    places = [math.log(value) if is_log else value for value in values]
    room = (places[-1] - places[0]) / MAX_TICKS
    kept = [0]
    for position in range(1, len(places)):
        if places[position] - places[kept[-1]] >= room:
            kept.append(position)
    return [values[position] for position in kept]


def _explain(figure: Any, plot: SweptPlot) -> None:
    """The legend, headed by the keys whose values it names."""
    columns = max(1, min(MAX_SERIES, 72 // (max(map(len, plot.series)) + 7)))
    style: dict[str, Any] = {"labelcolor": ON_PAGE.quiet, "alignment": "left", "frameon": False, "borderpad": 0}
    legend = figure.legend(loc="outside upper left", ncols=columns, title=", ".join(plot.others), **style)
    legend.get_title().set_color(ON_PAGE.quiet)


def _draw_series(axes: Any, plot: SweptPlot, number: int, *, is_log: bool) -> None:
    label, spots = list(plot.series.items())[number]
    colour = ON_PAGE.series[number] if len(plot.series) > 1 or plot.has_means else ON_PAGE.quiet
    low, high = axes.get_xlim()
    width = math.log(high / low) if is_log else high - low
    step = width * (0.01 if plot.names is None else 0.06 / len(plot.names))
    shift = step * (number - (len(plot.series) - 1) / 2)  # intervals would hide each other

    def place(x: float, beside: float = 0.0) -> float:
        return x * math.exp(shift + beside) if is_log else x + shift + beside

    shown = [spot for spot in spots if len(spot.values) > 1 or not plot.has_means]
    beside = 0.011 * width if plot.has_means else 0.0  # not below the bar
    dots = [(place(spot.x, beside), value) for spot in shown for value in spot.values]
    if dots:
        style: dict[str, Any] = {"color": colour, "markersize": 4, "markeredgewidth": 0}
        style |= {"alpha": 0.5} if plot.has_means else {"alpha": 0.75, "label": label}
        axes.plot(*zip(*dots, strict=True), "o", **style)
    if not plot.has_means:
        return
    means = [spot.mean for spot in spots]
    bars = [
        [0.0 if mean.ci_low is None else max(0.0, mean.value - mean.ci_low) for mean in means],
        [0.0 if mean.ci_high is None else max(0.0, mean.ci_high - mean.value) for mean in means],
    ]
    style = {"color": colour, "markersize": 6, "linewidth": 1.8, "elinewidth": 1.2, "capsize": 3}
    shape = "o" if plot.names is not None else "o-"
    places = [place(spot.x) for spot in spots]
    axes.errorbar(places, [mean.value for mean in means], bars, fmt=shape, label=label, **style)
