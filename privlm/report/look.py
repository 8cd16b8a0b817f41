"""How drawings look: one set of colours for files on white, and one that follows the page, light or dark."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Look:
    """Colours as matplotlib takes them. ink: what is read first; quiet: labels; paper: what lies below a mark.

    series: told apart in this order; good, warn: verdicts.
    """

    ink: str
    quiet: str
    grid: str
    paper: str
    good: str
    warn: str
    series: tuple[str, ...]


ON_WHITE = Look(
    ink="#16191f",
    quiet="#5c6573",
    grid="#e2e6ec",
    paper="#ffffff",
    good="#0b7a4b",
    warn="#8a5300",
    series=("#2563eb", "#d9730d", "#0d8f7f", "#a23bb5", "#b3261e", "#5c6573"),
)
ON_PAGE = Look(
    ink="#000012",
    quiet="#000010",
    grid="#000011",
    paper="#000013",
    good="#000014",
    warn="#000015",
    series=("#000001", "#000002", "#000003", "#000004", "#000005", "#000006"),
)
"""Colours that nobody would choose: `page_svg` replaces them by the names that the page gives to its own."""

PAGE_COLOURS = {
    ON_PAGE.ink: "var(--ink)",
    ON_PAGE.quiet: "var(--quiet)",
    ON_PAGE.grid: "var(--line)",
    ON_PAGE.paper: "var(--card)",
    ON_PAGE.good: "var(--good)",
    ON_PAGE.warn: "var(--warn)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(ON_PAGE.series[:4], start=1)},
    ON_PAGE.series[4]: "var(--bad)",
    ON_PAGE.series[5]: "var(--quiet)",
}


def plain(axes: Any, look: Look, *, grid: str) -> None:
    """Takes away all that carries no figure: ticks and frame. grid: the axis whose values get lines, x or y."""
    axes.tick_params(colors=look.ink, length=0)
    axes.grid(axis=grid, color=look.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(look.grid)


def drawing(salt: str) -> AbstractContextManager[None]:
    """What a figure for a file is made and saved under.

    salt: makes the ids within an SVG, so that the same drawing has the same bytes. Names are text, not formulas.
    """
    from matplotlib import rc_context

    return rc_context({"svg.hashsalt": salt, "font.size": 10, "text.parse_math": False})


def page_drawing(salt: str) -> AbstractContextManager[None]:
    """The same for a drawing on a page, whose letters are those of the page."""
    from matplotlib import rc_context

    return rc_context({"svg.hashsalt": salt, "font.size": 9, "text.parse_math": False, "svg.fonttype": "none"})


def save(figure: Any, path: Path, suffix: str) -> None:
    """Writes a drawing on white as .png, .svg or .pdf; of the first two the same drawing has the same bytes."""
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}}.get(suffix)
    figure.savefig(path, format=suffix[1:], dpi=160, facecolor="white", metadata=metadata)


def page_svg(figure: Any) -> str:
    """The figure as an `<svg>` element without fixed size, without a reference to anything outside it."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _for_page(out.getvalue())


def _for_page(drawing: str) -> str:
    """Leaves out the document type, the namespaces and the size, and names the colours of the page."""
    head, _, body = drawing[drawing.index("<svg") :].partition(">")
    view_box = head.partition('viewBox="')[2].partition('"')[0]
    for colour, name in PAGE_COLOURS.items():
        body = body.replace(colour, name)
    return f'<svg viewBox="{view_box}">{body}'
