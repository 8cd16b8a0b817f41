"""`privlm accountant ledger RUN...`: what runs have spent, recomputed from their ledgers under every accountant.

Several runs are composed, as if all had seen the same records, and so are the clients of a federated run; where its
clients are disjoint, one row more says what the one has spent that has spent most. pld, rdp and prv are guarantees; the
others are not. A ledger whose lines do not form its chain, or do not lead through what the run's files have recorded,
is refused by line; lines cut from its end after the last record cannot be seen, and it is said from where. Runs that
--force has removed are composed apart.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from privlm.cli import accountant_options as option
from privlm.cli.accountant_answers import number_text
from privlm.cli.arguments import add_runs_option, runs_folder
from privlm.errors import UsageError
from privlm.report.card import forced_text
from privlm.report.render import console, print_table, to_json
from privlm.report.store import RunRecord, find_run
from privlm.report.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from privlm.privacy.accounting import Segment
    from privlm.privacy.accounting.spending import LedgerSegment
    from privlm.privacy.run_account import RunAccount

_HEADINGS = {
    "pld": "pld",
    "rdp": "rdp",
    "prv": "prv",
    "gdp": "gdp (estimate)",
    "edgeworth": "edgeworth (estimate)",
    "contour": "contour (cross-check)",
}


def add_to(commands: Any) -> None:
    ledger = commands.add_parser("ledger", help="what runs have spent, from their ledgers", description=__doc__)
    ledger.set_defaults(command=_ledger)
    ledger.add_argument(
        "runs_asked", nargs="+", metavar="RUN", help="a path, a directory name, or a prefix of its hash"
    )
    ledger.add_argument("--delta", help="a number in (0, 1) (default: that of the runs)")
    ledger.add_argument("--adjacency", choices=option.ADJACENCIES, help="default: that of the runs")
    ledger.add_argument("--unit", help="only releases that protect this unit: record, client (default: all)")
    ledger.add_argument(
        "--json",
        action="store_true",
        help="one JSON object: delta, adjacency, segments, composed, largest_client, accounts",
    )
    add_runs_option(ledger)


def _ledger(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting
    from privlm.privacy.accounting.spending import check_composition, read_ledger
    from privlm.privacy.run_account import read_account

    runs = [find_run(word, runs_folder(options)) for word in options.runs_asked]
    delta = accounting.resolve_delta(options.delta or _common(runs, "delta"), None)
    adjacency = options.adjacency or _common(runs, "adjacency")
    accounts = [(run, read_account(run.path)) for run in runs]
    segments = [segment for run in runs for path in _ledgers_of(run) for segment in read_ledger(path)]
    if options.unit:
        segments = [segment for segment in segments if segment.setting.unit == options.unit]
        if not segments:
            raise UsageError(f"--unit: nothing was released that protects a {options.unit}")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("RUN: the same run is named twice")
    check_composition(segments)
    rows = [_row(segment) | _spent([segment.segment], delta, adjacency) for segment in segments]
    composed = _spent([segment.segment for segment in segments], delta, adjacency)
    unit = segments[0].setting.unit
    told = [_account(run, account, delta, adjacency, unit) for run, account in accounts if account is not None]
    largest = _largest_client(*accounts[0], delta, adjacency, unit) if len(accounts) == 1 else None
    if options.json:
        answer = {"delta": delta, "adjacency": adjacency, "segments": rows, "composed": composed}
        print(to_json(answer | {"largest_client": largest, "accounts": told}))
    else:
        _print(rows, composed, largest, told, delta, adjacency, unit)


def _ledgers_of(run: RunRecord) -> list[Path]:
    """The run's own ledger, and those of its clients that have released something; where there are none, its own."""
    from privlm.privacy.ledger_paths import LEDGER, client_ledgers

    own, clients = run.path / LEDGER, [path for path in client_ledgers(run.path) if path.stat().st_size]
    return [*([own] if own.exists() or not clients else []), *clients]


def _largest_client(
    run: RunRecord, account: RunAccount | None, delta: float, adjacency: str, unit: str
) -> dict[str, Any] | None:
    """By each accountant what the client has spent that has spent most; None where clients may share records."""
    if account is None or not (run.privacy or {}).get("are_disjoint"):
        return None
    groups = account.whole.groups(unit, disjoint=True)
    answers = [_spent(list(segments), delta, adjacency) for segments in dict.fromkeys(groups.values())]
    spent = {
        name: None
        if any(answer["epsilon"][name] is None for answer in answers)
        else max((answer["epsilon"][name] for answer in answers), key=float)
        for name in option.ACCOUNTANTS
    }
    return {"clients": len(groups), "epsilon": spent}


def _common(runs: list[RunRecord], field: str) -> Any:
    """The value of a field of privacy.json that all runs share."""
    values = {(run.privacy or {}).get(field) for run in runs}
    if len(values) > 1 or None in values:
        raise UsageError(f"--{field}: the runs do not name one {field}; give it")
    return values.pop()


def _account(run: RunRecord, account: RunAccount, delta: float, adjacency: str, unit: str) -> dict[str, Any]:
    """How far a ledger is known to be whole, and what it and the runs that --force removed have spent together."""
    told: dict[str, Any] = {
        "run": run.name,
        "releases": account.whole.num_releases,
        "recorded": account.num_recorded if account.last_of else None,
        "recorded_by": account.last.file if account.last else None,
        "whole": account.describe(),
    }
    if account.whole.clients:
        told["clients"] = {client: head.releases for client, head in account.whole.heads.items()}
    from privlm.privacy.ledger_paths import kept_accounts
    from privlm.privacy.price import price_with_forced

    if previous := kept_accounts(run.path):
        asked: dict[str, Any] = {"delta": delta, "adjacency": adjacency, "unit": unit}
        disjoint = bool((run.privacy or {}).get("are_disjoint"))
        told["with_forced"] = price_with_forced(account.whole, previous, **asked, disjoint=disjoint)
    return told


def _run_of(ledger: Path) -> str:
    from privlm.privacy.ledger_paths import is_of_client

    return (ledger.parent.parent if is_of_client(ledger) else ledger.parent).name


def _row(segment: LedgerSegment) -> dict[str, Any]:
    return {
        "run": _run_of(segment.ledger),
        "segment": segment.number,
        "stage": segment.stage,
        "population": segment.population,
        "releases": segment.num_releases,
        "distinct": len(segment.noise_ids),
        **vars(segment.setting),
    }


def _spent(segments: list[Segment], delta: float, adjacency: str) -> dict[str, Any]:
    """{"epsilon": by accountant, "notes"}; null where the contour accountant refuses."""
    from privlm.privacy import accounting

    spent: dict[str, Any] = {}
    notes: list[str] = []
    for accountant in option.ACCOUNTANTS:
        try:
            answer = accounting.epsilon(segments, delta, accountant=accountant, adjacency=adjacency).to_dict()
        except UsageError as refusal:
            if accountant not in accounting.CROSS_CHECKS:
                raise
            spent[accountant] = None
            notes.append(str(refusal))
        else:
            spent[accountant] = answer["epsilon"]
            notes += answer["notes"]
    return {"epsilon": spent, "notes": list(dict.fromkeys(notes))}


def _print(
    rows: list[dict[str, Any]],
    composed: dict[str, Any],
    largest: dict[str, Any] | None,
    accounts: list[dict[str, Any]],
    delta: float,
    adjacency: str,
    unit: str,
) -> None:
    texts = [
        [
            " ".join(filter(None, [row["run"], row["stage"], row["population"], f"segment {row['segment']}"])),
            str(row["distinct"]),
            f"{row['sampling_rate']:.6g}",
            f"{row['noise_multiplier']:.6g}",
            *_epsilons(row),
        ]
        for row in rows
    ]
    total = sum(row["distinct"] for row in rows)
    texts.append(["composed", str(total), "", "", *_epsilons(composed)])
    if largest is not None:
        name = f"the largest of {largest['clients']} clients, whose records are disjoint"
        texts.append([name, "", "", "", *_epsilons(largest)])
    repeated = sum(row["releases"] for row in rows) - total
    notes = [f"epsilon at delta {delta:.6g}, adjacency {adjacency}, unit {unit}"]
    if repeated:
        notes.append(f"{repeated} releases drew noise again that had been drawn before: they cost nothing more")
    notes += composed["notes"]
    for account in accounts:
        notes.append(f"{account['run']}: {account['whole']}")
        if "with_forced" in account:
            text = forced_text({"delta": delta, **account})
            notes.append(f"{account['run']}: with the runs that --force removed: {text}")
    columns = ["what", "steps", "sampling rate", "noise multiplier", *_HEADINGS.values()]
    print_table(Table("ledger", "Spent: epsilon by accountant", columns, texts, notes), console())


def _epsilons(row: dict[str, Any]) -> list[str]:
    return ["refused" if row["epsilon"][name] is None else number_text(row["epsilon"][name]) for name in _HEADINGS]
