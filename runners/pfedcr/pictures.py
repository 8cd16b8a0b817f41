"""Pictures of a run: who reads whose lines how well, and some lines with what was read of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from privlm.report.look import ON_WHITE

from .fonts import FONTS, find_font
from .line import Line

SHOWN = 6  # lines of a client


def draw_matrix(names: Sequence[str], accuracy: np.ndarray, title: str) -> Figure:
    """accuracy [K, K]: row k is the model of client k, column j the lines of client j."""
    side = 1.9 + 0.85 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained", dpi=120)
    axes = figure.subplots()
    axes.imshow(accuracy, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("test lines of", color=ON_WHITE.quiet)
    axes.set_ylabel("model of", color=ON_WHITE.quiet)
    axes.set_title(title, color=ON_WHITE.ink)
    for (row, column), value in np.ndenumerate(accuracy):
        colour = ON_WHITE.paper if value > 0.6 else ON_WHITE.ink
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    return figure


def draw_sheet(client: str, lines: Sequence[Line], readings: Sequence[str]) -> Figure | None:
    """The first lines with their readings, faults in another colour; None where no font can write them."""
    font = next((path for name in FONTS if (path := find_font(name)) is not None), None)
    if font is None:
        return None
    shown = list(zip(lines, readings, strict=True))[:SHOWN]
    figure = Figure(figsize=(7.2, 0.5 + 0.42 * len(shown)), layout="constrained", dpi=120)
    figure.suptitle(f"{client}: test lines and what is read of them", color=ON_WHITE.ink, fontsize=10)
    for axes_pair, (line, reading) in zip(figure.subplots(len(shown), 2, squeeze=False), shown, strict=True):
        picture, text = axes_pair
        picture.imshow(line.image, cmap="gray", vmin=0, vmax=255)
        colour = ON_WHITE.good if reading == line.text else ON_WHITE.warn
        text.text(0, 0.5, reading or "(nothing)", va="center", color=colour, fontproperties=FontProperties(fname=font))
        for axes in axes_pair:
            axes.axis("off")
    return figure
