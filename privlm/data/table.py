"""Rows as columns, and where each came from. Errors name file, line and field, never a value: the texts are private."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm.errors import UsageError

NUM_NAMED = 20  # columns that a message lists


@dataclass(frozen=True)
class Table:
    """N rows.

    columns: name -> N values. Those of csv and tsv are all text; JSON and Arrow keep their types, and what a row lacks
        is None.
    path: the file or folder that was read.
    numbers: of each row, counted from 1, the line on which it begins, or its place where there are no lines.
    unit: what `numbers` count, line or row.
    has_header: the names stood in the first line of the file, and not with each value or in a schema.
    """

    path: Path
    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    unit: str
    has_header: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, row: int) -> str:
        """For messages: the file, and the line of its row with this index."""
        return f"{self.path} {self.unit} {self.numbers[row]}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row as name -> value."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def name_of(self, names: Sequence[str]) -> str | None:
        """The first of `names` that is a column."""
        return next((name for name in names if name in self.columns), None)

    def column(self, names: Sequence[str], setting: str) -> list[Any]:
        """The values of the first of `names` that is a column.

        setting: the field of the configuration that chose the names, for the message.

        Raises UsageError, listing the columns that are there.
        """
        name = self.name_of(names)
        if name is None:
            others = f" or {', '.join(names[1:])}" if names[1:] else ""
            where = f"{self.path} line 1" if self.has_header else str(self.path)
            raise UsageError(f"{where}: no column '{names[0]}'{others} ({setting}); {self._what_is_there()}")
        return self.columns[name]

    def texts(self, names: Sequence[str], setting: str, null: str | None = None) -> list[str]:
        """A column of which each value is text, an empty one too. null: what stands for a null, if it may be there.

        Raises UsageError for a missing column, or a value that is no text.
        """
        values: list[Any] = [null if value is None else value for value in self.column(names, setting)]
        for row, value in enumerate(values):
            if not is_text(value):
                raise UsageError(f"{self.where(row)}: no text in field '{names[0]}' ({setting})")
        return values

    def _what_is_there(self) -> str:
        """The names of the columns, unless the first line may be a row of private texts instead of a header."""
        if self.has_header and not all(self._is_name(name) for name in self.columns):
            return "its first line does not look like names of columns, which it must hold"
        more = " ..." if len(self.columns) > NUM_NAMED else ""
        return f"its columns are {', '.join(list(self.columns)[:NUM_NAMED])}{more}"

    def _is_name(self, name: str) -> bool:
        """A single word that no row repeats: a label in a first line of data comes again."""
        return re.fullmatch(r"[^\W\d][\w.-]{0,39}", name) is not None and name not in self.columns[name]


def is_text(value: Any) -> bool:
    """Whether it is text that can be written: JSON can also hold one half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def names_in_files(field: str, aliases: Mapping[str, str]) -> list[str]:
    """The names that a field has in the files: its own, then those of data.aliases (name in a file -> field)."""
    return [field, *(name for name, known in aliases.items() if known == field)]
