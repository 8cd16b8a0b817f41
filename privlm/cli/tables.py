"""`privlm tables [TASK | TABLE]...`: papers' tables, our figures beside the published; without a name, the list."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privlm import registry
from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.cli.cells import cell_hasher
from privlm.errors import UsageError
from privlm.report.render import FORMATS, console, print_table, to_json
from privlm.report.store import Store, find_runs
from privlm.report.table import Table
from privlm.report.table_file import parse_table, read_yaml, select_tables
from privlm.report.tables import build_table

EPILOG = """\
examples:
  privlm tables                                     the tables there are
  privlm tables ewtune_small                        one table, or several
  privlm tables ewtune --format latex > t.tex       all tables of a task, for a paper
  privlm tables ewtune_small --scale smoke          the smoke runs, under the heading SMOKE

status of a cell:
  match, differs    at the paper's scale, all seeds done: inside the tolerance of the table file, or not
  partial           fewer seeds than the table asks for
  small, smoke      a figure at that scale, no verdict (with "partial" while seeds are missing)
  failed, not run   no finished run
  not published     there is nothing to compare with
  no verdict        the runs read only a subset of the data set
Marks follow the status: subset (fewer examples than the data set has), public-overlap (the model's public training
data hold these texts), own data, own weights (not those that the row's configuration names: a line of their own below
the row, `ROW [FILE]`).

With --json: [{"name", "title", "columns", "rows", "values", "notes", "claims", "measures"}]; values repeats each row at
full precision, claims holds what the table decides, with "verdict", "num_seeds", "difference", "ci_low", "ci_high",
and "p" where all differences are equal; measures names the columns of figures by their key in values, with their unit.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm tables", description=__doc__, epilog=EPILOG)
    parser.add_argument("name", nargs="*", help="a table, or a task for all of its tables")
    parser.add_argument("--format", choices=list(FORMATS), help="print in this format instead of for the terminal")
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.add_argument("--scale", choices=["smoke", "small", "paper"], help="fill the cells with runs of this scale")
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="a folder of configs of your own")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    if arguments.json and arguments.format:
        raise UsageError("give --json or --format, not both")
    paths = registry.config_files("table", arguments.config_dir)
    if not arguments.name:
        tables = [_list(paths)]
    else:
        store = find_runs(runs_folder(arguments))
        names = dict.fromkeys(table for name in arguments.name for table in select_tables(name, paths))
        tables = [_table(name, paths[name], store, arguments.scale, arguments.config_dir) for name in names]
    _print(tables, arguments.format, arguments.json)
    return 0


def _list(paths: dict[str, Path]) -> Table:
    rows = [[name, str(read_yaml(path)["title"])] for name, path in paths.items()]
    values: list[dict[str, Any]] = [{"table": name, "title": title} for name, title in rows]
    return Table("tables", "tables", ["table", "title"], rows, ["print one: privlm tables NAME"], values)


def _table(name: str, path: Path, store: Store, scale: str | None, config_dirs: Sequence[Path]) -> Table:
    spec = read_yaml(path)
    if spec["kind"] == "noise_multipliers":
        from privlm.report.noise_table import noise_table

        return noise_table({"name": name, **spec}, progress=_progress)
    if spec["kind"] != "runs":
        raise UsageError(f"{path}: kind must be runs or noise_multipliers, not '{spec['kind']}'")
    return build_table(parse_table(name, spec), store, cell_hasher(config_dirs), scale=scale, progress=_progress)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} rows", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print(tables: Sequence[Table], output_format: str | None, as_json: bool) -> None:
    if as_json:
        print(to_json([vars(table) for table in tables]))
    elif output_format is not None:
        print("\n".join(FORMATS[output_format](table) for table in tables), end="")
    else:
        for table in tables:
            print_table(table, console())
