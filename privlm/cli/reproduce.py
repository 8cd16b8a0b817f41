"""`privlm reproduce TABLE`: runs what a paper's table still needs, then shows it, our figures beside the published."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from privlm import registry
from privlm.cli import sweep
from privlm.cli.arguments import ArgumentParser, default_runs_folder, relative
from privlm.cli.cells import cell_hasher, hash_of
from privlm.cli.compose import Composed, Words, compose
from privlm.errors import UsageError
from privlm.masking import held_in_words, mask_text
from privlm.report.cells import match
from privlm.report.render import FORMATS, console, print_table, to_json
from privlm.report.store import Store, find_runs, nearest
from privlm.report.table import Table
from privlm.report.table_file import TableFile, parse_table, read_yaml, select_tables
from privlm.report.tables import Resolve, build_table
from privlm.sweeps import reproduction
from privlm.sweeps.conduct import look
from privlm.sweeps.reproduction import Plan

EPILOG = """\
examples:
  privlm reproduce --list                                  every table: cells published, measured, missing
  privlm reproduce ewtune_small --dry-run                  the runs that are missing, hours, downloads
  privlm reproduce ewtune_small --seeds 2 sweep.workers=2  two seeds of each row, two runs at a time
  privlm reproduce ewtune_accuracy --scale small           the paper's rows with small models, no verdict
  privlm reproduce ewtune_accuracy --detach hydra/launcher=privlm_slurm hydra.launcher.gpus_per_node=1

Words KEY=VALUE go to every run: sweep.* and hydra.launcher.* as in privlm sweep, runs=FOLDER, model.path=FOLDER. The
same command goes on where it was stopped. Beside the runs, tables/ gets the table as Markdown, CSV, HTML and LaTeX,
and its plot. Exit status: 0 all runs are done (a figure that differs is no error), 1 some are not, 2 some cannot begin.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm reproduce", description=__doc__, epilog=EPILOG)
    parser.add_argument("table", nargs="?", help="its name (privlm tables lists them)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="words for every run")
    parser.add_argument("--list", action="store_true", help="every table, and what is missing of it")
    parser.add_argument("--scale", choices=["smoke", "small", "paper"], help="run the cells at this scale")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 of each cell (default: the table's)")
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help="only this row; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, begin nothing")
    parser.add_argument("--detach", action="store_true", help="leave the runs to a process of its own, or to SLURM")
    parser.add_argument("--format", choices=list(FORMATS), help="print the table in this format")
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="a folder of configs of your own")
    arguments = parser.parse_intermixed_args(argv)
    paths = registry.config_files("table", arguments.config_dir)
    if arguments.list:
        _print(_list(paths, arguments.config_dir), arguments)
        return 0
    file = _table_file(arguments.table, paths)
    return _reproduce(file, arguments, command=mask_text(" ".join(["privlm reproduce", *argv])))


def _table_file(name: str | None, paths: dict[str, Path]) -> TableFile:
    if name is None:
        raise UsageError("which table? privlm reproduce TABLE; privlm reproduce --list lists them")
    if (names := select_tables(name, paths)) != [name]:
        raise UsageError(f"'{name}' is a task with the tables {', '.join(names)}: name one of them")
    spec = read_yaml(paths[name])
    if spec["kind"] != "runs":
        raise UsageError(f"{name} is computed, not run: privlm tables {name} prints it")
    return parse_table(name, spec)


def _reproduce(file: TableFile, arguments: argparse.Namespace, *, command: str) -> int:
    for row in arguments.row:
        if row not in file.rows:
            raise UsageError(f"--row: {file.name} has no row '{row}'{nearest(row, file.rows)}")
    seeds = file.seeds if arguments.seeds is None else arguments.seeds
    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, not {seeds}")
    words = _words(arguments)
    root = _runs_folder(words)

    def composed(overrides: Sequence[str]) -> Composed:
        return compose(Words(tuple(overrides), tuple(arguments.config_dir)))

    plan = reproduction.plan(
        file,
        find_runs(root),
        composed,
        hash_of,
        seeds=seeds,
        words=words,
        rows=arguments.row,
        progress=_progress,
    )
    _print_plan(plan, sys.stdout if arguments.dry_run else sys.stderr)
    if plan.problems:
        raise UsageError(_not_begun(plan, has_rows=len(plan.problems) < len(file.rows)))
    if arguments.dry_run:
        return 0
    status = _run(plan, arguments, command) if plan.runs else 0
    if not arguments.detach:
        _show(file, root, arguments, words)
    return status


def _run(plan: Plan, arguments: argparse.Namespace, command: str) -> int:
    made = sweep.make(
        [run.composed for run in plan.runs],
        force=False,
        detach=arguments.detach,
        command=command,
        title=arguments.table,
    )
    print(f"sweep {relative(made.folder)}", file=sys.stderr, flush=True)
    status = sweep.work(made, detach=arguments.detach, as_json=False, shows=False)
    failed = [one for one in look(made).standings if not one.is_done]
    if not arguments.detach:
        for one in failed:
            print(f"privlm: {one.state}: {one.member.directory}: {one.reason}", file=sys.stderr)
    return status


def _words(arguments: argparse.Namespace) -> list[str]:
    """Raises UsageError for what the table decides itself, and for a word that holds a key."""
    for word in arguments.overrides:
        if word.startswith(("seed=", "scale=")):
            option = {"seed": "--seeds N", "scale": "--scale NAME"}[word.partition("=")[0]]
            raise UsageError(f"{word}: the table chooses the runs; use {option}")
    if problems := held_in_words(arguments.overrides):
        raise UsageError("\n".join(problems))
    return [*arguments.overrides, *([f"scale={arguments.scale}"] if arguments.scale else [])]


def _runs_folder(words: Sequence[str]) -> Path:
    given = [word.partition("=")[2] for word in words if word.startswith("runs=")]
    return Path(given[-1]).expanduser() if given else default_runs_folder()


def _print_plan(plan: Plan, file: TextIO) -> None:
    hours = plan.hours
    num_missing = len(plan.missing)
    lines = [f"{len(plan.runs)} runs, {len(plan.runs) - num_missing} done, {num_missing} missing"]
    if num_missing:
        lines.append(
            "about " + ("an unknown time" if hours is None else _duration(hours)) + ", one run after the other"
        )
    lines += [f"to download: {', '.join(plan.downloads)}"] if plan.downloads else []
    lines += [f"  {' '.join(run.words)}" for run in plan.missing]
    print("\n".join(lines), file=file, flush=True)


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


def _not_begun(plan: Plan, *, has_rows: bool) -> str:
    reasons: dict[str, list[str]] = {}
    for row, reason in plan.problems.items():
        reasons.setdefault(reason, []).append(row)
    lines = [f"{', '.join(rows)}: {reason}" for reason, rows in reasons.items()]
    hint = ["the other rows alone: --row NAME for each"] if has_rows else []
    return "\n".join(["not all rows of the table can be run:", *lines, *hint])


def _show(file: TableFile, root: Path, arguments: argparse.Namespace, words: Sequence[str]) -> None:
    hasher = cell_hasher(arguments.config_dir)
    own = [word for word in words if not word.startswith(("sweep.", "hydra", "runs=", "scale="))]
    table = build_table(
        _rows_alone(file, arguments.row),
        find_runs(root),
        lambda overrides: hasher([*overrides, *own]),
        scale=arguments.scale,
        progress=_progress,
    )
    folder = root / reproduction.FOLDER
    written = reproduction.write(table, folder)
    _print(table, arguments)
    print(f"written: {', '.join(relative(path) for path in written)}", file=sys.stderr)


def _rows_alone(file: TableFile, names: Sequence[str]) -> TableFile:
    """The table with these rows, and the claims about them; the whole without names."""
    if not names:
        return file
    rows = {name: cells for name, cells in file.rows.items() if name in names}
    return replace(
        file, rows=rows, claims=tuple(claim for claim in file.claims if {claim.higher, claim.than} <= rows.keys())
    )


def _list(paths: dict[str, Path], config_dirs: Sequence[Path]) -> Table:
    store = find_runs(default_runs_folder())
    hasher = cell_hasher(config_dirs)
    rows, values = [], []
    for name, path in paths.items():
        spec = read_yaml(path)
        if spec["kind"] != "runs":
            continue
        file = parse_table(name, spec)
        published, measured, num_cells = _counts(file, store, hasher)
        command = f"privlm reproduce {name}"
        numbers = {"cells": num_cells, "published": published, "measured": measured, "missing": num_cells - measured}
        rows.append([name, *map(str, numbers.values()), command])
        values.append({"table": name, **numbers, "command": command})
    columns = ["table", "cells", "published", "measured", "missing", "command"]
    notes = [
        "cells: those that we run; published: of these, those with a figure of the paper; measured: with all seeds "
        f"in {default_runs_folder()}, at any scale but smoke"
    ]
    return Table("reproduce", "tables", columns, rows, notes, values)


def _counts(file: TableFile, store: Store, hasher: Resolve) -> tuple[int, int, int]:
    """Published, measured and all of the cells that are run. A task without finished runs is not composed."""
    cells = [cell for cell in file.cells if cell.run is not None]
    published = sum(cell.published is not None for cell in cells)
    tasks = {run.task for run in store.runs if run.state == "done"}
    measured = 0
    hashes: dict[tuple[str, ...], bool] = {}
    for cell in cells:
        assert cell.run is not None
        if not any(f"task={task}" in cell.run for task in tasks):
            continue
        if cell.run not in hashes:
            found = match(cell.run, hasher(list(cell.run)), store, smoke=False)
            hashes[cell.run] = len(found.finished) >= file.seeds
        measured += hashes[cell.run]
    return published, measured, len(cells)


def _print(table: Table, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(to_json(vars(table)))
    elif arguments.format is not None:
        print(FORMATS[arguments.format](table), end="")
    else:
        print_table(table, console())


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} rows looked at", end="\n" if done == total else "", file=sys.stderr, flush=True)
