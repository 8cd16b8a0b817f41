"""Reads one file, or one saved `datasets` folder, into columns.

Texts are read exactly: no value changes its type (007, NA and an empty field stay text), and a quote is either part of
a text or a mark around it. That is why csv and json of the standard library read the text files: pyarrow and pandas
guess types (of a text that is a date, a number, NA) and repeat a broken row in their messages. Nothing is written, into
no library's cache either. Errors name file and line, never a value: the texts are private.

Quotes, where data.quoting is null:
  .csv    marks, as in RFC 4180. Fields are separated by commas; by semicolons where the header has only these.
  .tsv    part of the text (GLUE's files hold lone quotes), unless they can only be marks: where the lines do not have
          the header's number of fields but the rows of RFC 4180 do; or where each field that holds a quote is wholly
          quoted, and a writer put the marks there: a quote within one is doubled, or the whole header is quoted.
  others  (collections of lines: .txt, no ending) part of the text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm.data.table import Table
from privlm.errors import UsageError

if TYPE_CHECKING:
    import pyarrow

QUOTING = ("none", "rfc4180")
"""Options of data.quoting: quotes are part of the text, or marks around a field and the tabs and line breaks in it."""

BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
QUOTED_FIELD = re.compile(r'"(?:[^"]|"")*"')

Rows = Iterator[tuple[int, list[str]]]
"""The line on which a row begins, and the row's fields; the header comes first. A blank line is the row ['']."""


@dataclass(frozen=True)
class Source:
    """A file and how it is to be read: see `read_table`."""

    path: Path
    header: tuple[str, ...] | None = None
    encoding: str | None = None
    quoting: str | None = None


def read_table(
    path: Path, *, header: Sequence[str] | None = None, encoding: str | None = None, quoting: str | None = None
) -> Table:
    """The rows of a file, by the ending of its name (READERS; each also with .gz), or of a folder that `save_to_disk`
    of `datasets` made of one data set. A file with another ending holds tab-separated lines.

    header: names of the columns of a tab-separated file whose first line is already data.
    encoding: of text files; None: UTF-8, or what the byte order mark says.
    quoting: one of QUOTING, for csv and tsv; None: see above.

    Raises UsageError: not readable, not in this encoding, a malformed or ragged row, two columns of one name.
    """
    if quoting not in (None, *QUOTING):
        raise UsageError(f"data.quoting: '{quoting}' is not one of {', '.join(QUOTING)}")
    if path.is_dir():
        return _read_saved(path)
    read = READERS.get(Path(path.name.removesuffix(".gz")).suffix, _read_lines)
    return read(Source(path, None if header is None else tuple(header), encoding, quoting))


# --- separated by tabs or commas ------------------------------------------------------------------------------------


def _read_lines(source: Source) -> Table:
    return _table(source, _split(_text(source), "\t"), "tab-separated")


def _read_tsv(source: Source) -> Table:
    text = _text(source)
    if source.quoting == "rfc4180" or (source.quoting is None and _is_quoted(source, text)):
        return _table(source, _parse_quoted(source, text, "\t"), "tab-separated")
    guessed = source.quoting is None and '"' in text
    hint = "; data.quoting=rfc4180 if the file's quotes are marks around its fields" if guessed else ""
    return _table(source, _split(text, "\t"), "tab-separated", hint)


def _read_csv(source: Source) -> Table:
    source = replace(source, header=None)  # always in the file
    text = _text(source)
    first = text.partition("\n")[0]
    delimiter, kind = (";", "semicolon-separated") if ";" in first and "," not in first else (",", "comma-separated")
    if source.quoting == "none":
        return _table(source, _split(text, delimiter), kind)
    return _table(source, _parse_quoted(source, text, delimiter), kind)


def _split(text: str, delimiter: str) -> Rows:
    """Quotes are part of the text. Values are kept verbatim, trailing spaces too, as on the hub."""
    for number, line in enumerate(_lines(text), start=1):
        yield number, line.split(delimiter)


def _parse_quoted(source: Source, text: str, delimiter: str) -> Rows:
    """As RFC 4180 has it."""
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    number = 1
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for row in reader:
            yield number, row or [""]
            number = reader.line_num + 1
    except csv.Error as error:
        remedy = "data.quoting=none if the file's quotes are part of its texts"
        raise UsageError(f"{source.path} line {number}: malformed quotes ({error}); {remedy}") from None
    finally:
        csv.field_size_limit(limit)


def _is_quoted(source: Source, text: str) -> bool:
    """Whether the quotes of a tab-separated file can only be marks, by the rule above."""
    if '"' not in text:
        return False
    _, first = next(_split(text, "\t"))
    header_is_quoted = source.header is None and all(map(QUOTED_FIELD.fullmatch, first))
    are_rows = _fits(source, _split(text, "\t"))
    if header_is_quoted or not are_rows:  # tabs and line breaks in quotes may make lines of the right number of fields
        try:
            if _fits(source, _parse_quoted(source, text, "\t")):
                return True
        except UsageError:
            pass
    if not are_rows:
        return False
    holding = [value for _, row in _split(text, "\t") for value in row if '"' in value]
    has_doubled = any('""' in value[1:-1] for value in holding)
    return (header_is_quoted or has_doubled) and all(map(QUOTED_FIELD.fullmatch, holding))


def _fits(source: Source, rows: Rows) -> bool:
    """Whether each row has the header's number of fields."""
    header = source.header or next(rows)[1]
    return all(len(row) == len(header) or row == [""] for _, row in rows)


def _table(source: Source, rows: Rows, kind: str, hint: str = "") -> Table:
    """A blank line is no row, except in a file of one column, where it is an empty text."""
    header = source.header or _header(source.path, rows)
    width = len(header)
    values: list[str] = []  # of all rows in one list: a list of rows is slow, the garbage collector walks it
    numbers: list[int] = []
    for number, row in rows:
        if len(row) == width:
            values += row
            numbers.append(number)
        elif row != [""]:
            raise UsageError(f"{source.path} line {number}: {len(row)} {kind} fields instead of {width}{hint}")
    columns = {name: values[i::width] for i, name in enumerate(header)}
    return Table(source.path, columns, numbers, "line", has_header=source.header is None)


def _header(path: Path, rows: Rows) -> list[str]:
    """The first row. Equal names are not printed: a first line that repeats itself may be data."""
    _, header = next(rows, (0, []))
    if not header:
        raise UsageError(f"{path}: no examples, the file is empty")
    for place, name in enumerate(header, start=1):
        first = header.index(name) + 1
        if first != place:
            raise UsageError(f"{path} line 1: columns {first} and {place} have the same name; rename one of them")
    return header


# --- JSON -----------------------------------------------------------------------------------------------------------


def _read_json_lines(source: Source) -> Table:
    return _parse_json_lines(source.path, _text(source))


def _read_json(source: Source) -> Table:
    """A list of objects, an object with one list of them, or, as many .json files are, an object on each line."""
    text = _text(source)
    if _has_a_row_to_a_line(text):
        return _parse_json_lines(source.path, text)
    content = _parse_json(text, str(source.path)) if text.strip() else []
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list):
        raise UsageError(f"{source.path}: neither a list of JSON objects nor an object that holds one such list")
    return _from_objects(source.path, content, range(1, len(content) + 1), "row")


def _has_a_row_to_a_line(text: str) -> bool:
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _parse_json_lines(path: Path, text: str) -> Table:
    lines = [(number, line) for number, line in enumerate(_lines(text), start=1) if line.strip()]
    rows = [_parse_json(line, f"{path} line {number}") for number, line in lines]
    return _from_objects(path, rows, [number for number, _ in lines], "line")


def _parse_json(text: str, where: str) -> Any:
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} " if error.lineno > 1 else ""
        raise UsageError(f"{where}: not JSON ({place}column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, _EqualNamesError) else "a number too long, or too deeply nested"
        raise UsageError(f"{where}: {reason}") from None


class _EqualNamesError(ValueError):
    """A JSON object has two fields of one name, of which a parser would drop one."""


def _with_distinct_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _EqualNamesError("two fields of an object have the same name; rename one of them")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_with_distinct_names)


def _from_objects(path: Path, objects: list[Any], numbers: Sequence[int], unit: str) -> Table:
    for content, number in zip(objects, numbers, strict=True):
        if not isinstance(content, dict):
            raise UsageError(f"{path} {unit} {number}: not a JSON object")
    if not objects:
        raise UsageError(f"{path}: no examples, the file is empty")
    names = dict.fromkeys(name for row in objects for name in row)
    return Table(path, {name: [row.get(name) for row in objects] for name in names}, numbers, unit)


# --- Arrow ----------------------------------------------------------------------------------------------------------


def _read_parquet(source: Source) -> Table:
    import pyarrow.parquet
    from datasets import Features

    try:
        content = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(_content(source.path))).read()
        features = Features.from_arrow_schema(content.schema)
    except (pyarrow.ArrowException, ValueError) as error:
        raise UsageError(f"{source.path}: not a parquet file that can be read ({type(error).__name__})") from None
    return _from_arrow(source.path, content, features)


def _read_saved(path: Path) -> Table:
    """A folder that `Dataset.save_to_disk` made, read where it lies."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:  # of pyarrow too
        reason = type(error).__name__
        raise UsageError(f"{path}: not a folder of datasets.save_to_disk that can be read ({reason})") from None
    if not isinstance(saved, datasets.Dataset):
        raise UsageError(f"{path}: holds the splits {', '.join(saved)}; one of them is read at a time")
    return _from_arrow(path, saved.with_format("arrow")[:], saved.features)


def _from_arrow(path: Path, content: pyarrow.Table, features: Mapping[str, Any]) -> Table:
    """Class ids become the names that the features give them; an id without a name (-1: no label) becomes ''."""
    from datasets import ClassLabel

    columns = {name: content.column(name).to_pylist() for name in content.column_names}
    for name, feature in features.items():
        if isinstance(feature, ClassLabel):
            class_names = dict(enumerate(feature.names))
            columns[name] = [class_names.get(value, "") for value in columns[name]]
    return Table(path, columns, range(1, content.num_rows + 1), "row")


# --- bytes and text -------------------------------------------------------------------------------------------------


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UsageError(f"{path}: a broken compressed file (cut short, or not gzip)") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _text(source: Source) -> str:
    """The decoded file without its byte order mark."""
    content = _content(source.path)
    marked = (encoding for mark, encoding in BYTE_ORDER_MARKS.items() if content.startswith(mark))
    encoding = source.encoding or next(marked, "utf-8")
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise UsageError(f"data.encoding: '{encoding}' is no encoding of text, as latin-1, cp1252 are") from None
    except UnicodeDecodeError as error:
        number = content[: error.start].decode(encoding, "ignore").count("\n") + 1
        remedy = "name the file's own" if source.encoding else "name it by data.encoding, e.g. latin-1 or cp1252"
        raise UsageError(f"{source.path} line {number}: not {encoding.upper()}; {remedy}") from None


def _lines(text: str) -> list[str]:
    """Lines without their ends. Split at line feeds only: texts hold U+2028 and the like."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


READERS: dict[str, Callable[[Source], Table]] = {
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
"""Ending -> reader, also of the ending with .gz behind it. Where a folder holds a split twice, the first is read."""
