"""Reads the rows of one file of texts. Errors name file, line and field, never a value: the texts are private."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from privlm.errors import UsageError

Rows = Iterator[tuple[int, dict[str, Any]]]
"""(number of the line, or of the row in a parquet file, counted from 1; field -> value)."""


def read_rows(path: Path, header: Sequence[str] | None = None) -> Rows:
    """The rows of a .jsonl, .parquet or (any other name) tab-separated file.

    Args:
        header: fields of a tab-separated file whose first line is already data.

    Raises:
        UsageError: not UTF-8, or a malformed line.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    return _read_tsv(path, header)


def _read_tsv(path: Path, header: Sequence[str] | None) -> Rows:
    """No quoting (GLUE's fields hold lone quotes); values are kept verbatim, trailing spaces too, as on the hub."""
    lines = _lines(path)
    if header is None:
        header = next(lines, (1, ""))[1].split("\t")
    for number, line in lines:
        values = line.split("\t")
        if len(values) != len(header):
            raise UsageError(f"{path} line {number}: {len(values)} tab-separated fields instead of {len(header)}")
        yield number, dict(zip(header, values, strict=True))


def _read_jsonl(path: Path) -> Rows:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path} line {number}: not JSON (column {error.colno})") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path} line {number}: not a JSON object")
        yield number, row


def _read_parquet(path: Path) -> Rows:
    """Class ids become the names in the schema of the file; an id without a name (-1: no label) becomes ''."""
    import pyarrow.parquet
    from datasets import ClassLabel, Features

    table = pyarrow.parquet.read_table(path)
    features = Features.from_arrow_schema(table.schema)
    class_names = {
        field: dict(enumerate(feature.names)) for field, feature in features.items() if isinstance(feature, ClassLabel)
    }
    for number, row in enumerate(table.to_pylist(), start=1):
        row |= {field: names.get(row[field], "") for field, names in class_names.items()}
        yield number, row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends. Split at line feeds only: texts hold U+2028 and the like."""
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path} line {number}: not UTF-8") from None
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")
