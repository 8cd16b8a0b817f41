"""`privlm accountant curve`: epsilon against the steps and against the noise, by every accountant, as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm.cli import accountant_options as option
from privlm.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from privlm.privacy.accounting import Segment

_POINTS = 30
_LINES: dict[str, dict[str, Any]] = {
    "rdp": {"color": "#8c6d31", "label": "RDP"},
    "pld": {"color": "#1f5fa8", "linewidth": 2.4, "label": "PLD"},
    "contour": {"color": "black", "linestyle": "", "marker": ".", "markersize": 4, "label": "contour"},
    "edgeworth": {"color": "#c2410c", "linestyle": "--", "label": "Edgeworth"},
    "gdp": {"color": "#777777", "linestyle": ":", "label": "GDP"},
}


def add_to(commands: Any) -> None:
    curve = commands.add_parser("curve", help="a picture of epsilon against steps and noise", description=__doc__)
    curve.set_defaults(command=_curve)
    option.add_noise(curve)
    option.add_rate(curve)
    option.add_length(curve)
    option.add_data(curve)
    option.add_order(curve)
    curve.add_argument("--output", required=True, type=Path, metavar="FILE", help="where to draw: FILE.png or FILE.svg")


def _curve(options: argparse.Namespace) -> None:
    from privlm.privacy.accounting import Segment

    if options.output.suffix not in (".png", ".svg"):
        raise UsageError(f"--output: {options.output} must end in .png or .svg")
    if not options.output.parent.is_dir():
        raise UsageError(f"--output: no folder {options.output.parent}")
    if options.noise_multiplier == 0:
        raise UsageError("--noise-multiplier 0 costs an infinite epsilon: there is no curve to draw")
    rate, steps, sigma = option.rate_of(options), option.steps_of(options), options.noise_multiplier
    if steps == 0 or rate == 0:
        raise UsageError("--steps (or --epochs) and --sample-rate must be above 0: there is no curve to draw")
    delta, notes = option.delta_of(options)
    spread = [4 ** (2 * k / (_POINTS - 1) - 1) for k in range(_POINTS)]  # from a quarter to four times
    lengths = sorted({max(1, round(steps * factor**2)) for factor in spread})
    noises = [sigma * factor**0.5 for factor in spread]
    panels = [
        _Panel("steps", steps, lengths, [Segment(rate, sigma, length) for length in lengths]),
        _Panel("noise multiplier", sigma, noises, [Segment(rate, noise, steps) for noise in noises]),
    ]
    title = f"{steps} steps at noise multiplier {sigma:g}, sampling rate {rate:.4g}"
    _draw(panels, title, delta, options)
    print(options.output)
    for note in notes:
        print(f"note: {note}")


@dataclass(frozen=True)
class _Panel:
    """What varies, where the run that was asked for stands, and the runs around it."""

    quantity: str
    asked: float
    positions: Sequence[float]
    runs: Sequence[Segment]


def _draw(panels: Sequence[_Panel], title: str, delta: float, options: argparse.Namespace) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from privlm.privacy.accounting.curves import epsilon_curves, understated

    order = 2 if options.order is None else options.order
    with rc_context({"svg.hashsalt": "privlm", "font.size": 9}):
        figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=150)
        legend: dict[str, Any] = {}
        for axes, panel in zip(figure.subplots(1, 2), panels, strict=True):
            curves = epsilon_curves(panel.runs, delta, order=order, adjacency=options.adjacency)
            for name, style in _LINES.items():
                axes.plot(panel.positions, curves[name], **style | {"label": label_of(name, delta)})
            axes.axvline(panel.asked, color="black", linewidth=0.8, label="this run")
            _shade(axes, panel.positions, understated(curves))
            axes.set(xscale="log", yscale="log", xlabel=panel.quantity, ylabel="epsilon")
            axes.set_xticks([panel.positions[0], panel.asked, panel.positions[-1]])
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            handles, labels = axes.get_legend_handles_labels()
            legend |= dict(zip(labels, handles, strict=True))
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(
            f"{title}, delta {delta:.3g}, adjacency {options.adjacency}, Edgeworth order {order}", fontsize=9
        )
        figure.savefig(options.output, metadata={"Date": None} if options.output.suffix == ".svg" else {})


def label_of(accountant: str, delta: float) -> str:
    """The name of a line, and what its points are worth at `delta`."""
    from privlm.privacy import accounting

    worth = {"contour": "cross-check", "edgeworth": "estimate", "gdp": "estimate"}.get(accountant, "not certified")
    return f"{_LINES[accountant]['label']} ({'certified' if accounting.certifies(accountant, delta) else worth})"


def _shade(axes: Any, x: Sequence[float], where: np.ndarray) -> None:
    """Bands where the estimate promises too much; a point stands for half the way to its neighbours."""
    edges = [x[0], *((left * right) ** 0.5 for left, right in pairwise(x)), x[-1]]
    for (left, right), shaded in zip(pairwise(edges), where, strict=True):
        if shaded:
            axes.axvspan(left, right, color="#c2410c", alpha=0.12, linewidth=0, label="Edgeworth understates")
