"""Table files of `kind: runs`: one table of a paper, or of our own, as data (configs/table/<task>_<name>.yaml).

    kind: runs
    title: what the table shows
    paper: "2210.15042"         # arXiv id, or null for a table of our own
    number: Table 2             # in that paper
    seeds: 3                    # runs a cell needs
    row_title: model            # heading of the first column
    metric: accuracy            # metric, split, unit, decimals, tolerance: of every column unless it says otherwise
    unit: percent
    decimals: 1
    columns:
      sst2: {title: SST-2}
      f1: {title: F1, metric: f1}
    rows:
      - name: RGP, roberta-base
        run: [task=ewtune, model=roberta]          # overrides of all cells of the row; its source likewise
        columns: [sst2]                            # those that have a cell in this row; left out: all
        cells:
          sst2: {published: 91.6, source: Table 2, tolerance: 0.5, run: [task=ewtune, model=roberta, data=sst2]}
          f1: null                                 # no such cell
      - {name: full, split: dev, run: [...]}       # split: of the row's cells whose column says none, not even null
    claims:
      - {claim: what the paper says, column: sst2, higher: RGP, than: full}   # two rows
    notes: [printed below the table]

A cell may hold published, source, tolerance (absolute, in the column's unit), run (null: we do not run it) and note. A
column may say `absent`: what it prints where no run reports its metric. A table none of whose cells says `published` is
one of our own runs and has no published column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privlm.errors import UsageError
from privlm.report.store import nearest

COLUMN_KEYS = ("metric", "split", "unit", "decimals", "tolerance")
CLAIM_KEYS = ("claim", "column", "higher", "than")
CELL_KEYS = ("published", "source", "tolerance", "run", "note")
HEADER_KEYS = (
    "kind",
    "title",
    "paper",
    "number",
    "seeds",
    "row_title",
    "columns",
    "rows",
    "claims",
    "notes",
    *COLUMN_KEYS,
)


@dataclass(frozen=True)
class Column:
    """What a column prints: a metric of one split (None: the run reports it for one split only), in `unit`."""

    key: str
    title: str
    metric: str
    split: str | None
    unit: str | None  # None: as the runs report it
    decimals: int
    tolerance: float | None
    absent: str | None = None  # printed where no run reports the metric; None: that is an error


@dataclass(frozen=True)
class Cell:
    """A published figure, where there is one, and the overrides whose runs stand beside it."""

    row: str
    column: Column
    run: tuple[str, ...] | None
    published: float | None = None
    source: str | None = None
    tolerance: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper: in `column`, the row `higher` stands above the row `than`."""

    claim: str
    column: str
    higher: str
    than: str


@dataclass(frozen=True)
class TableFile:
    """A checked table file. `rows` maps a row's name to its cells by column key; an absent cell stays blank."""

    name: str
    title: str
    paper: str | None
    number: str | None
    seeds: int
    row_title: str
    columns: tuple[Column, ...]
    rows: dict[str, dict[str, Cell]]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    is_own: bool  # no cell speaks of a published figure

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows.values() for cell in row.values()]


def select_tables(word: str, paths: dict[str, Path]) -> list[str]:
    """The names of the tables that `word` asks for: one table, or all tables of a task."""
    names = [word] if word in paths else [name for name in paths if name.startswith(f"{word}_")]
    if not names:
        raise UsageError(f"no table or task '{word}'{nearest(word, paths)} (`privlm tables` lists them)")
    return names


def read_yaml(path: Path) -> dict[str, Any]:
    """A table file of any kind as plain data. Raises UsageError if it is not YAML (a repeated key included)."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        spec = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{path}: {error}") from error
    if not isinstance(spec, dict) or "kind" not in spec or "title" not in spec:
        raise UsageError(f"{path}: a table file needs at least `kind:` and `title:`")
    return {str(key): value for key, value in spec.items()}


def parse_table(name: str, spec: dict[str, Any]) -> TableFile:
    """Checks the data of a table file of `kind: runs`. Raises UsageError naming the row and column at fault."""
    where = f"table {name}"
    _refuse_unknown(spec, HEADER_KEYS, where)
    _require(spec, ("title", "seeds", "columns", "rows"), where)
    columns = {key: _column(key, column or {}, spec, where) for key, column in spec["columns"].items()}
    told = {key for key, column in spec["columns"].items() if "split" in (column or {})}
    rows: dict[str, dict[str, Cell]] = {}
    for row in spec["rows"]:
        _refuse_unknown(row, ("name", "run", "source", "split", "columns", "cells"), where)
        _require(row, ("name",), where)
        if row["name"] in rows:
            raise UsageError(f"{where}: row '{row['name']}' stands twice; give each row its own name")
        read = {
            key: column if key in told else replace(column, split=row.get("split", column.split))
            for key, column in columns.items()
        }
        rows[row["name"]] = _cells(row, read, f"{where}, row '{row['name']}'")
    return TableFile(
        name=name,
        title=spec["title"],
        paper=spec.get("paper"),
        number=spec.get("number"),
        seeds=spec["seeds"],
        row_title=spec.get("row_title", ""),
        columns=tuple(columns.values()),
        rows=rows,
        claims=tuple(_claim(claim, rows, where) for claim in spec.get("claims") or ()),
        notes=tuple(spec.get("notes") or ()),
        is_own=not any("published" in (cell or {}) for row in spec["rows"] for cell in row.get("cells", {}).values()),
    )


def _column(key: str, column: dict[str, Any], header: dict[str, Any], where: str) -> Column:
    where = f"{where}, column '{key}'"
    _refuse_unknown(column, ("title", "absent", *COLUMN_KEYS), where)
    settings: dict[str, Any] = {name: column.get(name, header.get(name)) for name in COLUMN_KEYS}
    for name in ("metric", "decimals"):
        if settings[name] is None:
            raise UsageError(f"{where}: no {name}; give one here or for the whole table")
    return Column(key=key, title=column.get("title", key), absent=column.get("absent"), **settings)


def _cells(row: dict[str, Any], columns: dict[str, Column], where: str) -> dict[str, Cell]:
    given = row.get("cells") or {}
    chosen = row.get("columns") or list(columns)
    _refuse_unknown(chosen, columns, where)
    _refuse_unknown(given, chosen, where)
    cells = {}
    for key, column in columns.items():
        if key not in chosen or (key in given and given[key] is None):
            continue
        settings = {
            "run": row.get("run"),
            "source": row.get("source"),
            "tolerance": column.tolerance,
            **given.get(key, {}),
        }
        cells[key] = _cell(row["name"], column, settings, f"{where}, column '{key}'")
    return cells


def _cell(row: str, column: Column, settings: dict[str, Any], where: str) -> Cell:
    _refuse_unknown(settings, CELL_KEYS, where)
    if settings.get("published") is not None:
        if not settings.get("source"):
            raise UsageError(f"{where}: a published value needs its source, such as `source: Table 2`")
        if settings["tolerance"] is None:
            raise UsageError(f"{where}: a published value needs a tolerance, absolute, in the unit of the column")
        if column.unit is None:
            raise UsageError(f"{where}: a published value needs the unit of its column, such as `unit: percent`")
    run = settings.pop("run")
    return Cell(row=row, column=column, run=None if run is None else tuple(run), **settings)


def _claim(claim: dict[str, Any], rows: dict[str, dict[str, Cell]], where: str) -> Claim:
    where = f"{where}, claim '{claim.get('claim', '')}'"
    _refuse_unknown(claim, CLAIM_KEYS, where)
    _require(claim, CLAIM_KEYS, where)
    for row in (claim["higher"], claim["than"]):
        if row not in rows:
            raise UsageError(f"{where}: no row '{row}'{nearest(row, rows)}")
        if claim["column"] not in rows[row]:
            raise UsageError(f"{where}: row '{row}' has no cell in column '{claim['column']}'")
    return Claim(**claim)


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            raise UsageError(f"{where}: unknown '{key}'{nearest(key, known)} (known: {', '.join(known)})")


def _require(given: dict[str, Any], keys: Iterable[str], where: str) -> None:
    missing = [key for key in keys if given.get(key) is None]
    if missing:
        raise UsageError(f"{where}: missing {', '.join(missing)}")
