"""`privlm compare RUN... | DIR`: results side by side, and what differs in configuration and environment."""

from __future__ import annotations

from pathlib import Path

from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.errors import UsageError
from privlm.report.compare import compare, readable
from privlm.report.epsilon_plot import draw, panels_of
from privlm.report.render import console, print_table, to_json
from privlm.report.store import RUN_MARKERS, RunRecord, find_run, find_runs

EPILOG = """\
examples:
  privlm compare runs/ewtune                        all runs below a folder
  privlm compare 3f2a 9c1e                          two runs, by the beginning of their hashes
  privlm compare runs/ewtune --by-cell              seeds of one configuration as mean ± sd
  privlm compare runs/ewtune --plot accuracy.png    also draws accuracy against epsilon, a line for each adapter

With --json: {"results": [...], "config": [...], "environment": [...]}, one object for each metric or key, the figures
of each run at full precision.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm compare", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "run", nargs="+", help="a path, a directory name, a unique prefix of it or of the hash, or a folder"
    )
    parser.add_argument("--by-cell", action="store_true", help="put the seeds of one configuration into one column")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy against epsilon: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print for machines")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    root = runs_folder(arguments)
    runs = {run.path.resolve(): run for word in arguments.run for run in _runs(word, root)}
    if len(runs) < 2:
        raise UsageError(f"compare needs two runs or more; {' '.join(arguments.run)} names {len(runs)}")
    for run in runs.values():
        _ = run.privacy  # raises for a ledger that does not add up: no price stands beside others unchecked
    tables = compare(list(runs.values()), by_cell=arguments.by_cell)
    if arguments.plot is not None:
        draw(panels_of(list(runs.values())), arguments.plot)
    if arguments.json:
        print(to_json({table.name: table.values for table in tables}))
    else:
        for table in tables:
            print_table(readable(table), console())
    return 0


def _runs(word: str, root: Path) -> list[RunRecord]:
    """One run, or all runs below a folder that is not itself a run directory."""
    folder = Path(word)
    if folder.is_dir() and not any((folder / marker).exists() for marker in RUN_MARKERS):
        return find_runs(folder).runs
    return [find_run(word, root)]
