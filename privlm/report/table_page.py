"""The page of a filled table: one file that asks nothing of the network, with the table, its picture and its notes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from privlm.report.html_page import SCALES, data_uri, fill
from privlm.report.render import STATUS_STYLES
from privlm.report.table import Table

TONES = {"green": "good", "yellow": "warn", "red": "bad", "dim": "quiet"}
"""The terminal's colour of a status -> the class that has it on a page."""
VERDICTS = {"holds": "guarantee", "does not hold": "flag"}
COMMAND = "run: "
FIGURE = re.compile(r"([+-]?(?:\d[\d.,]*(?:e[+-]?\d+)?|inf|nan))(?: ([±\[(].*))?")
COUNT = re.compile(r"\d+ of \d+")


@dataclass(frozen=True)
class Cell:
    """What a cell shows. rest: spread and interval, smaller below the text. span: lines that share it, 0 for none."""

    text: str
    rest: str = ""
    classes: str = ""
    span: int = 1


def table_page(table: Table, picture: Path | None) -> str:
    """The page as text.

    picture: the PNG of privlm.report.table_plot, which becomes a part of the page; OSError where it cannot be read.
    """
    num_claims = len(table.claims)
    notes = table.notes[num_claims:]
    return fill(
        "table.html",
        title=table.title,
        name=table.name,
        banners=_banners(table),
        picture=None if picture is None else data_uri(picture),
        columns=list(zip(table.columns, _are_numbers(table), strict=True)),
        rows=_cells(table),
        claims=[_claim(claim, note) for claim, note in zip(table.claims, table.notes, strict=False)],
        notes=[note for note in notes if not note.startswith(COMMAND)],
        commands=[note.removeprefix(COMMAND) for note in notes if note.startswith(COMMAND)],
    )


def _banners(table: Table) -> list[str]:
    """What must be read before figures that are no reproduction."""
    words = [set(str(values.get("status", "")).split(", ")) for values in table.values]
    banners = []
    for scale, sentence in SCALES.items():
        number = sum(scale in some for some in words)
        measured = sum(not some & {"not run", "failed", ""} for some in words)
        if number:
            banners.append(sentence if number == measured else f"{number} of {measured} with a figure: {sentence}")
    return banners


def _are_numbers(table: Table) -> list[bool]:
    """Of each column, whether figures stand in it; the first one names the row, whatever it looks like."""

    def is_number(position: int) -> bool:
        cells = [row[position] for row in table.rows]
        return any(FIGURE.fullmatch(cell) or COUNT.fullmatch(cell) for cell in cells)

    return [position > 0 and is_number(position) for position in range(len(table.columns))]


def _cells(table: Table) -> list[list[Cell]]:
    """A line for each row; rows that follow each other under one name share its cell."""
    numbers = _are_numbers(table)
    lines = []
    for _, members in groupby(table.rows, key=lambda row: row[0]):
        group = list(members)
        for position, row in enumerate(group):
            first = Cell(row[0], classes="name", span=0 if position else len(group))
            others = [_cell(text, is_number) for text, is_number in zip(row[1:], numbers[1:], strict=True)]
            lines.append([first, *others])
    return lines


def _cell(text: str, is_number: bool) -> Cell:
    if not is_number:
        tone = TONES.get(STATUS_STYLES.get(text, ""), "")
        return Cell(text, classes=f"tone-{tone}" if tone else "")
    if (figure := FIGURE.fullmatch(text)) is not None:
        return Cell(figure[1], figure[2] or "", "number")
    return Cell(text, classes="number" if COUNT.fullmatch(text) else "number quiet")


def _claim(claim: dict[str, Any], note: str) -> tuple[str, str, str]:
    """Verdict, the class of its mark, and the sentence of the note without the verdict."""
    verdict = claim["verdict"]
    facts = note.removeprefix(f"claim: {claim['claim']}: {verdict}")
    return verdict, VERDICTS.get(verdict, "open"), f"{claim['claim']}{facts}"
