"""`privlm show RUN`: one run at a glance: its state, results, privacy, stages and files; with --item ID, what a program
did with one item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.report.card import READING_COLUMNS, privacy_card
from privlm.report.render import console, print_table, to_json
from privlm.report.run_results import results_tables
from privlm.report.store import RunRecord, find_run, life_sign
from privlm.report.table import Table

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """\
examples:
  privlm show runs/ewtune/minilm-sms_spam-head-dp3-seed0-3f2a9c1e
  privlm show 3f2a                                  by the beginning of the hash, below --runs
  privlm show 3f2a --json | jq .privacy.epsilon
  privlm show 3f2a --item 2bc9c4f9c19c167187f2      the calls of a program about one item, as a tree
  privlm show 3f2a --item tree_delta/2bc9c4f9c19c167187f2 --json | jq .[].prompt

With --json: path, state, reason, config, result, privacy, stages, files ([path, bytes]) and problems, as the files
of the run directory hold them; privacy with what the ledger holds: of a run that is not done, epsilon is what it has
spent by now, guarantee is false, and planned_epsilon stands beside it. A ledger that does not add up is refused.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm show", description=__doc__, epilog=EPILOG)
    parser.add_argument("run", help="a path, a directory name, or a unique prefix of it or of the hash")
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.add_argument("--item", metavar="ID", help="only this item of a run that asked a language model by a program")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    run = find_run(arguments.run, runs_folder(arguments))
    if arguments.item is not None:
        _show_item(run, arguments.item, as_json=arguments.json)
    elif arguments.json:
        print(to_json(_content(run)))
    else:
        _print(run, console())
    return 0


def _show_item(run: RunRecord, item: str, *, as_json: bool) -> None:
    from privlm.cli.show_item import traces, tree

    found = traces(run.path, item)
    if as_json:
        print(to_json([line for lines in found.values() for line in lines]))
        return
    out = console()
    for name, lines in found.items():
        out.print(tree(name, lines))


def _content(run: RunRecord) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "state": run.state,
        "reason": run.status.get("reason"),
        "config": run.config,
        "result": run.result,
        "privacy": run.privacy,
        "stages": run.status.get("stages", {}),
        "files": run.files(),
        "problems": run.problems,
    }


def _print(run: RunRecord, out: Console) -> None:
    # A ledger that does not add up is refused here, before anything is printed.
    tables = (*_results(run, out.width), *_privacy(run), _stages(run), _files(run))
    out.print(str(run.path), style="bold", markup=False, soft_wrap=True)
    remarks = [run.status.get("reason"), life_sign(run.status)]
    out.print(": ".join([run.state, *filter(None, remarks)]), style=STATE_STYLES.get(run.state, ""), markup=False)
    if run.scale != "paper":
        out.print(f"scale {run.scale}: not the sizes of the paper", style="yellow")
    if run.marks:
        out.print(f"marks: {', '.join(run.marks)}", style="yellow", markup=False)
    for table in tables:
        if table.rows:
            print_table(table, out)
    for note in (*(run.result or {}).get("notes", ()), *run.problems):
        out.print(note, style="dim", markup=False)


STATE_STYLES = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


def _results(run: RunRecord, width: int) -> list[Table]:
    provenance = dict.fromkeys(row.provenance for row in run.results)
    return results_tables(run.results, width, f"results: {', '.join(provenance)}")


def _privacy(run: RunRecord) -> list[Table]:
    card = privacy_card(run.privacy, run.audit)
    readings = [reading.texts for reading in card.readings]
    facts = [*(list(fact) for fact in card.facts), *(["flag", flag] for flag in card.flags)]
    return [
        Table("accountants", f"privacy: {card.headline}", READING_COLUMNS, readings, [], []),
        Table("privacy", "how it was spent" if readings else f"privacy: {card.headline}", ["", ""], facts, [], []),
    ]


def _stages(run: RunRecord) -> Table:
    rows = [
        [
            name,
            stage["state"],
            "" if stage["seconds"] is None else f"{stage['seconds']:.1f} s",
            str(len(stage["outputs"])),
        ]
        for name, stage in run.status.get("stages", {}).items()
    ]
    return Table("stages", "stages", ["stage", "state", "time", "outputs"], rows, [], [])


def _files(run: RunRecord) -> Table:
    return Table("files", "files", ["path", "bytes"], [[path, f"{size:,}"] for path, size in run.files()], [], [])
