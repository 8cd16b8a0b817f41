"""The notes below a table of runs: its source, the commands that fill it, and where its figures came from."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from privlm.errors import UsageError
from privlm.report.card import beside_the_plan
from privlm.report.cells import CellRuns
from privlm.report.store import RunRecord, Store, finished_at
from privlm.report.table_file import TableFile


def footer(file: TableFile, groups: list[CellRuns], store: Store, *, shows_smoke: bool) -> list[str]:
    """The notes below a table: its source, the commands that fill it, and what its figures came from."""
    finished = [run for group in groups for run in group.finished]
    lines = []
    if file.paper is not None:
        lines.append(f"published: {', '.join(filter(None, (file.number, f'arXiv {file.paper}')))}")
    seeds = ",".join(str(seed) for seed in range(file.seeds))
    lines += [f"run: privlm sweep {' '.join(group.overrides)} seed={seeds}" for group in groups]
    if finished:
        lines += _provenance(finished)
    for group in groups:
        lines += group.remarks
        lines += [f"{run.name}: {run.state}{_because(run)}" for run in group.unfinished]
    task = file.name.partition("_")[0]
    smoke = sum(run.scale == "smoke" and run.task == task for run in store.runs if run.result)
    if smoke and not shows_smoke:
        lines.append(f"{smoke} smoke runs are not shown (--scale smoke shows them)")
    return lines + store.skipped


def _provenance(runs: list[RunRecord]) -> list[str]:
    """Code, data, hardware, privacy and dates of the runs that gave the figures."""
    dates = [datetime.fromtimestamp(finished_at(run), UTC).date().isoformat() for run in runs]
    return [
        f"code: {_joined(_code(run) for run in runs)}",
        f"data: {_joined(_data(run) for run in runs)}",
        f"hardware: {_joined(_hardware(run) for run in runs)}",
        f"privacy: {_joined(_privacy(run) for run in runs)}",
        f"runs finished between {min(dates)} and {max(dates)}",
    ]


def _code(run: RunRecord) -> str:
    env = run.env or {}
    if env.get("git_commit") is None:
        return f"privlm {env.get('privlm', 'unknown')} (not a checkout)"
    return env["git_commit"][:12] + (" with uncommitted changes" if env["dirty"] else "")


def _data(run: RunRecord) -> str:
    digest = run.inputs.get("data")
    return run.name_of("data") + (f" ({digest[:12]})" if digest else "")


def _hardware(run: RunRecord) -> str:
    env = run.env or {}
    return f"{env.get('platform', 'unknown')}, {env.get('gpu') or 'no GPU'}"


def _privacy(run: RunRecord) -> str:
    privacy = run.privacy or {}
    if privacy.get("mechanism", "none") == "none":
        return privacy.get("mechanism", "unknown")
    return (
        f"{privacy['mechanism']}, unit {privacy['unit']}, {privacy['adjacency']}, delta {privacy['delta']:g}, "
        f"{'certified' if privacy['guarantee'] else 'estimated'} by {privacy['accountant']}, {privacy['rng']} noise"
    )


def _because(run: RunRecord) -> str:
    reasons = "; ".join(filter(None, [run.status.get("reason"), *run.problems, _spent(run)]))
    return f" ({reasons})" if reasons else ""


def _spent(run: RunRecord) -> str:
    """What a run that is not done has spent of its privacy; what is wrong with its ledger."""
    try:
        return beside_the_plan(run.privacy)
    except UsageError as fault:
        return "" if str(fault) in run.problems else str(fault)


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(sorted(set(texts)))
