"""Prints a Table as Markdown, LaTeX, CSV, HTML, JSON or on a terminal. The same table gives the same bytes."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from privlm.files import finite
from privlm.report.table import Table

if TYPE_CHECKING:
    from rich.console import Console

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


def print_table(table: Table, console: Console) -> None:
    """The table on a terminal; numbers keep their columns, the notes stand below."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_header=any(table.columns))
    for column in table.columns:
        grid.add_column(Text(column), overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(cell, style=STATUS_STYLES.get(cell, "")) for cell in row))
    if table.title:
        console.print(Text(f"\n{table.title}", style="bold"))
    if table.rows:
        console.print(grid)
    for note in table.notes:
        console.print(Text(note, style="dim"))


STATUS_STYLES = {"match": "green", "differs": "yellow", "failed": "red", "not run": "dim"}


def console() -> Console:
    """Standard output: colours only on a terminal and never with NO_COLOR; lines of a pipe are as long as they need."""
    from rich.console import Console

    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 400
    return out
