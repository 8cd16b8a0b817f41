"""The printed table that all tables share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """Rows of text under column titles, ready to print.

    notes: footer lines. values: one dictionary per row with the same facts at full precision.
    claims: what the table was asked to decide, one dictionary each; the notes begin with them in words.
    measures: the columns of figures by their key in `values`: title, and unit (None: as the runs report it).
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    measures: dict[str, dict[str, str | None]] = field(default_factory=dict)
