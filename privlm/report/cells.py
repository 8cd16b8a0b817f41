"""Which runs of a store fill a cell of a table, and which stand beside it.

A run belongs to a cell when its configuration agrees but for the seed and for how it was executed, and when data and
weights are what their names promise (privlm.content). The same on own data or own weights gets a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from privlm.identity import Roles
from privlm.report.store import RunRecord, Store, one_a_seed


@dataclass(frozen=True)
class CellRuns:
    """What the store holds for one list of overrides. finished: one run a seed, in the order of the seeds.

    own: the same configuration on own data or own weights, by the name of these.
    """

    overrides: tuple[str, ...]
    cell_hash: str
    finished: list[RunRecord] = field(default_factory=list)
    unfinished: list[RunRecord] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    own: dict[str, CellRuns] = field(default_factory=dict)


def match(overrides: tuple[str, ...], cell_hash: str, store: Store, *, smoke: bool) -> CellRuns:
    """The runs of a cell. smoke: those at scale smoke, instead of all others."""
    group = _sorted(overrides, cell_hash, [run for run in store.runs if run.cell_hash == cell_hash], smoke)
    others = [run for run in store.runs if run.cell_hash != cell_hash]
    group.own.update(_own(overrides, [run for run in others if run.named_cell_hash == cell_hash], smoke))
    outdated = [
        run
        for run in others
        if run.named_cell_hash != cell_hash and _meaning(run.overrides, run.roles) == _meaning(overrides, run.roles)
    ]
    if outdated:
        cells = ", ".join(sorted({run.cell_hash[:8] for run in outdated}))
        group.remarks.append(
            f"not counted: {len(outdated)} runs with the overrides {' '.join(overrides)} but another configuration "
            f"(cell {cells}, now {cell_hash[:8]}), such as {outdated[0].name}"
        )
    group.remarks.extend(_mixed_inputs(group.finished))
    return group


def _sorted(overrides: tuple[str, ...], cell_hash: str, runs: Sequence[RunRecord], smoke: bool) -> CellRuns:
    group = CellRuns(overrides, cell_hash)
    wanted = [run for run in runs if (run.scale == "smoke") == smoke]
    group.unfinished.extend(run for run in wanted if not run.finished)
    finished = [run for run in wanted if run.finished]
    group.finished.extend(one_a_seed(finished))
    for newest in group.finished:
        num_runs = sum(run.seed == newest.seed for run in finished)
        if num_runs > 1:
            group.remarks.append(f"seed {newest.seed} was run {num_runs} times; the newest, {newest.path}, counts")
    return group


def _own(overrides: tuple[str, ...], runs: Sequence[RunRecord], smoke: bool) -> dict[str, CellRuns]:
    by_cell: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_cell.setdefault(run.cell_hash, []).append(run)
    groups = [_sorted(overrides, cell_hash, members, smoke) for cell_hash, members in by_cell.items()]
    groups = [group for group in groups if group.finished]
    names = [group.finished[0].own_name for group in groups]
    return {
        name if names.count(name) == 1 else f"{name} {group.cell_hash[:8]}": group
        for name, group in zip(names, groups, strict=True)
    }


def _meaning(overrides: Iterable[str], roles: Roles) -> set[str]:
    """Overrides without those that make another run of the same cell."""
    same_cell = tuple(f"{key}." for key in (*roles.same_run, *roles.same_cell))
    return {word for word in overrides if not f"{word.partition('=')[0]}.".startswith(same_cell)}


def _mixed_inputs(runs: list[RunRecord]) -> list[str]:
    """One remark for each input (data, weights) whose content is not the same in all runs.

    Where all runs have compared it with its name, it is the same by that, wherever it was read from.
    """
    remarks = []
    for name in sorted({name for run in runs for name in run.inputs}):
        contents = sorted({run.inputs.get(name, "none")[:12] for run in runs})
        if len(contents) > 1 and not all(name in run.contents for run in runs):
            remarks.append(f"MIXED: the seeds did not read the same {name} ({', '.join(contents)})")
    return remarks
