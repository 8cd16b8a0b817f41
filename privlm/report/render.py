"""Prints a Table as Markdown, LaTeX, CSV, HTML, JSON or on a terminal. The same table gives the same bytes."""

from __future__ import annotations

import csv
import html
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from privlm.files import finite
from privlm.report.table import Table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "—": "---",
        "≤": r"$\leq$",
        "ε": r"$\varepsilon$",
        "δ": r"$\delta$",
        "σ": r"$\sigma$",
    }
)
MARKDOWN_ESCAPES = str.maketrans({"|": r"\|", "<": "&lt;", "\\": r"\\", "*": r"\*", "`": r"\`", "\n": " "})


def markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.translate(MARKDOWN_ESCAPES) for cell in cells) + " |\n"

    rule = "|" + " --- |" * len(table.columns) + "\n"
    notes = "".join(f"- {note.translate(MARKDOWN_ESCAPES)}\n" for note in table.notes)
    body = line(table.columns) + rule + "".join(line(row) for row in table.rows)
    return f"### {table.title.translate(MARKDOWN_ESCAPES)}\n\n{body}\n{notes}"


def latex(table: Table) -> str:
    """A table environment for the package booktabs; the notes stand in it as small paragraphs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(LATEX_ESCAPES) for cell in cells) + r" \\" + "\n"

    notes = "".join(rf"\par\footnotesize {note.translate(LATEX_ESCAPES)}" + "\n" for note in table.notes)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{table.title.translate(LATEX_ESCAPES)}}}\n\\label{{tab:{table.name}}}\n"
        f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}\n\\toprule\n"
        f"{line(table.columns)}\\midrule\n{''.join(line(row) for row in table.rows)}"
        f"\\bottomrule\n\\end{{tabular}}\n{notes}\\end{{table}}\n"
    )


def csv_text(table: Table) -> str:
    """The printed columns, then every number behind them at full precision under its key and `(exact)`."""
    keys = list(
        dict.fromkeys(key for values in table.values for key, value in values.items() if isinstance(value, int | float))
    )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.columns, *(f"{key} (exact)" for key in keys)])
    for row, values in zip(table.rows, table.values, strict=True):
        exact = (values.get(key) for key in keys)
        writer.writerow([*row, *("" if value is None else repr(value) for value in exact)])
    return out.getvalue()


def html_text(table: Table) -> str:
    """A `<figure>` to put into a page of one's own."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"

    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in table.notes)
    return (
        f'<figure id="{html.escape(table.name)}">\n<table>\n<caption>{html.escape(table.title)}</caption>\n'
        f"<thead>\n{line('th', table.columns)}</thead>\n"
        f"<tbody>\n{''.join(line('td', row) for row in table.rows)}</tbody>\n"
        f"</table>\n<ul>\n{notes}</ul>\n</figure>\n"
    )


FORMATS = {"md": markdown, "latex": latex, "csv": csv_text, "html": html_text}


def to_json(value: Any) -> str:
    """Strict JSON: NaN and infinities are the strings nan, inf and -inf."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)


WHOLE_LINES = 400
READABLE = 20
"""Characters that a cell may need in one line; longer ones are broken between words, and lines of fewer are slivers."""


def print_table(table: Table, console: Console) -> None:
    """The table on a terminal, the notes below. Where it is too narrow for its columns, each row is a block of lines
    `column  value`.
    """
    from rich.text import Text

    if table.title:
        console.print(Text(f"\n{table.title}", style="bold"))
    if table.rows:
        widths = _column_widths(table, console.width)
        console.print(_stacked(table, console.width) if widths is None else _grid(table, widths))
    for note in table.notes:
        is_command = note.startswith("run: ")  # to be copied: only the terminal may break it
        console.print(Text(note, style="dim"), soft_wrap=is_command)


def fits(table: Table, width: int) -> bool:
    """Whether its columns are readable side by side in so many characters."""
    return not table.rows or _column_widths(table, width) is not None


def _column_widths(table: Table, width: int) -> list[int] | None:
    """Of the columns of a grid in so many characters; None where not each of them would be readable."""
    cells = list(zip(*table.rows, strict=True))
    heads = [_longest(text.split("\n")) for text in table.columns]
    bodies = [_longest(line for text in column for line in text.split("\n")) for column in cells]
    words = [max(map(_longest_word, column)) for column in zip(table.columns, *table.rows, strict=True)]
    widths = [max(word, min(body, READABLE)) for word, body in zip(words, bodies, strict=True)]
    spare = width - sum(widths) - 3 * (len(widths) - 1) - 2  # between columns, and at both edges
    if spare < 0 and any(table.columns):
        return None
    if spare < 0:  # facts, whose columns have no names to stand beside them: a word is broken
        widest = widths.index(max(widths))
        widths[widest] = max(1, widths[widest] + spare)
        return widths
    for column in sorted(range(len(widths)), key=lambda column: bodies[column] - widths[column]):
        given = min(max(0, bodies[column] - widths[column]), spare)
        widths[column], spare = widths[column] + given, spare - given
    for column in sorted(range(len(widths)), key=lambda column: heads[column] - widths[column]):
        if 0 < (given := heads[column] - widths[column]) <= spare:  # a head in two lines takes no more for it
            widths[column], spare = widths[column] + given, spare - given
    return widths


def _longest(lines: Iterable[str]) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, lines))


def _longest_word(text: str) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, text.split()), default=0)


def _grid(table: Table, widths: Sequence[int]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_header=any(table.columns))
    for column, width in zip(table.columns, widths, strict=True):
        grid.add_column(Text(column), overflow="fold", width=width)
    for row in table.rows:
        grid.add_row(*(Text(cell, style=STATUS_STYLES.get(cell, "")) for cell in row))
    return grid


def _stacked(table: Table, width: int) -> RenderableType:
    """A block of lines for each row; what is empty in it is left out."""
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    whole, word = (max(map(length, table.columns)) for length in (cell_len, _longest_word))
    names = max(1, min(whole, width // 2), min(word, width - READABLE - 2))
    blocks = RichTable.grid(padding=(0, 2, 0, 0))
    blocks.add_column(overflow="fold", width=names)
    blocks.add_column(overflow="fold")
    for row in table.rows:
        blocks.add_row()
        for number, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
            style = STATUS_STYLES.get(cell, "" if number else "bold")
            if cell:
                blocks.add_row(Text(column), Text(cell, style=style))
    blocks.add_row()
    return blocks


STATUS_STYLES = {"match": "green", "differs": "yellow", "failed": "red", "not run": "dim"}


def console() -> Console:
    """Standard output: colours only on a terminal and never with NO_COLOR."""
    from rich.console import Console

    return Console(highlight=False, width=line_width())


def line_width() -> int:
    """Of standard output: COLUMNS, or the width of the terminal; else, of a pipe, what lines need."""
    return shutil.get_terminal_size((WHOLE_LINES, 0)).columns
