"""`privlm status [SWEEP]`: how far a sweep is, run by run; without a name, all sweeps there are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from privlm.cli.arguments import ArgumentParser, add_runs_option, relative, runs_folder
from privlm.errors import UsageError
from privlm.report.render import console, print_table, to_json
from privlm.report.table import Table
from privlm.sweeps import folder
from privlm.sweeps.conduct import look
from privlm.sweeps.folder import Sweep
from privlm.sweeps.standing import Standing, counts, overview, write_page

EPILOG = """\
examples:
  privlm status                       the sweeps, the newest last
  privlm status ewtune-seed           one of them, by a part of its name or by its path; writes its page anew
  privlm status ewtune-seed --json    for machines: one object for each run, its directory and its log among them

state of a run: queued (nobody has begun it), pending (its job waits, and why), running, done, failed, interrupted
(its state is saved), died (its process is gone), damaged (its directory cannot be read), gone (there is none). What a
run says of itself counts: SLURM is asked for what waits, and not needed. Exit status: 0, however the runs stand.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm status", description=__doc__, epilog=EPILOG)
    parser.add_argument("sweep", nargs="?", help="a path, or a unique part of the name of a sweep")
    parser.add_argument("--json", action="store_true", help="print for machines")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    root = runs_folder(arguments)
    if arguments.sweep is None:
        _print(_all(root), arguments.json)
        return 0
    sweep = folder.find(arguments.sweep, root)
    seen = look(sweep)
    table = overview(sweep, seen.standings)
    table.notes += seen.remarks
    _print(table, arguments.json)
    if not arguments.json:  # whoever asks every few seconds wants no drawings
        _write_page(sweep, seen.standings)
    return 0


def _print(table: Table, as_json: bool) -> None:
    if as_json:
        print(to_json({"title": table.title, "runs": table.values, "notes": table.notes}))
    else:
        print_table(table, console())


def _write_page(sweep: Sweep, found: Sequence[Standing]) -> None:
    """After the table, which is there at once."""
    from rich.text import Text

    sys.stdout.flush()
    if (page := write_page(sweep, found)) is not None:
        console().print(Text(f"page  {relative(page)}", style="dim"), soft_wrap=True)


def _all(root: Path) -> Table:
    rows: list[list[str]] = []
    values: list[dict[str, Any]] = []
    for path in folder.folders(root):
        try:
            sweep = folder.read(path)
        except UsageError as fault:
            rows.append([path.name, "", f"damaged: {fault}"])
            values.append({"sweep": path.name, "created": None, "runs": None, "problem": str(fault)})
            continue
        created = datetime.fromtimestamp(sweep.created).isoformat(" ", "minutes")
        summary = counts(look(sweep).standings)
        rows.append([path.name, created, summary])
        values.append({"sweep": path.name, "created": sweep.created, "runs": summary, "problem": None})
    notes = ["one of them: privlm status NAME"] if rows else [f"none in {root / folder.FOLDER}; privlm sweep makes one"]
    return Table("sweeps", "sweeps", ["sweep", "created", "runs"], rows, notes, values)
