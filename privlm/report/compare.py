"""Runs side by side: their results, and what differs in their configurations and environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from privlm.content import own
from privlm.identity import MENUS
from privlm.report.card import beside_the_plan, figure
from privlm.report.store import RunRecord, one_a_seed, without_copies
from privlm.report.table import Table
from privlm.report.tables import SPREAD_NOTE, mean_and_sd, seeds_interval, spread_text
from privlm.results import Result

NOT_A_DIFFERENCE = ("command", *MENUS)
"""Keys of env.json and config.yaml that may differ and explain nothing."""

FEW = 4
"""So many runs stand side by side however many lines there are."""

INTERVAL_NOTE = "[low, high] is the 95 % interval of the run itself, where it reports one"


@dataclass(frozen=True)
class Group:
    """A column of the comparison: one run, or the runs of one cell (equal but for the seed)."""

    name: str
    runs: list[RunRecord]


def compare(runs: Sequence[RunRecord], *, by_cell: bool = False) -> list[Table]:
    """Three tables: results, configuration, environment; the last two hold only keys that differ.

    by_cell: runs of one cell become one column, mean ± sample sd over them and its interval; the newest run of each
        seed counts.

    A run of which there are copies counts once.
    """
    distinct = without_copies(runs)
    groups = _cells(distinct) if by_cell else _one_by_one(distinct)
    results = _results(groups)
    results.notes += _left_out(runs, distinct, groups)
    return [
        results,
        _differences("config", "configuration: keys that differ", groups, lambda run: run.config),
        _differences("environment", "environment: keys that differ", groups, lambda run: run.env or {}),
    ]


def _one_by_one(runs: Sequence[RunRecord]) -> list[Group]:
    """By the names of their directories; two of one name, a run and its repetition elsewhere, by their paths."""
    names = [run.name for run in runs]
    return [Group(run.name if names.count(run.name) == 1 else str(run.path), [run]) for run in runs]


def _cells(runs: Sequence[RunRecord]) -> list[Group]:
    by_hash: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_hash.setdefault(run.cell_hash or run.name, []).append(run)
    groups = [one_a_seed(members) for members in by_hash.values()]
    names = [f"{_stem(members[0])} ({len(members)} runs)" for members in groups]
    return [
        Group(name if names.count(name) == 1 else f"{name} {cell[:8]}", members)
        for name, cell, members in zip(names, by_hash, groups, strict=True)
    ]


def _stem(run: RunRecord) -> str:
    """The name of a run's directory without the hash and the seed."""
    return run.name.rpartition("-")[0].removesuffix(f"-seed{run.seed}") or run.name


def _left_out(given: Sequence[RunRecord], distinct: Sequence[RunRecord], groups: Sequence[Group]) -> list[str]:
    """What stands in no column, in a sentence each."""
    num_copies = len(given) - len(distinct)
    num_repeated = len(distinct) - sum(len(group.runs) for group in groups)
    notes = [f"copies of the same run count once: {num_copies} left out"] if num_copies else []
    return notes + (
        [f"of runs of one seed the newest finished one counts: {num_repeated} left out"] if num_repeated else []
    )


def _results(groups: Sequence[Group]) -> Table:
    keys = list(
        dict.fromkeys(
            (row.metric, row.split, row.unit) for group in groups for run in group.runs for row in run.results
        )
    )
    table = Table("results", "results", ["metric", "split", *(group.name for group in groups)], [], [], [])
    for metric, split, unit in keys:
        texts: list[str] = []
        values: dict[str, Any] = {"metric": metric, "split": split, "unit": unit}
        for group in groups:
            rows = [
                row
                for run in group.runs
                for row in run.results
                if (row.metric, row.split, row.unit) == (metric, split, unit)
            ]
            texts.append(_figure(rows))
            values[group.name] = [row.value for row in rows]
        table.rows.append([f"{metric} ({unit})" if unit else metric, split or "", *texts])
        table.values.append(values)
    for group_name, title in (("data", "data"), ("model", "weights"), ("llm", "llm")):
        if any(group_name in own(run.contents) for group in groups for run in group.runs):
            names = [", ".join(dict.fromkeys(run.name_of(group_name) for run in group.runs)) for group in groups]
            table.rows.append([title, "", *names])
            table.values.append({"metric": title} | dict(zip([group.name for group in groups], names, strict=True)))
    if any(run.marks for group in groups for run in group.runs):
        marks = [", ".join(dict.fromkeys(mark for run in group.runs for mark in run.marks)) for group in groups]
        table.rows.append(["marks", "", *marks])
        table.values.append({"metric": "marks"} | {group.name: text for group, text in zip(groups, marks, strict=True)})
    states = [
        f"{run.name}: {'; '.join(filter(None, [run.state, beside_the_plan(run.privacy)]))}"
        for group in groups
        for run in group.runs
        if not run.finished
    ]
    spread = [SPREAD_NOTE] if any(len(group.runs) > 1 for group in groups) else [INTERVAL_NOTE]
    table.notes = [*spread, *states]
    return table


def _figure(rows: Sequence[Result]) -> str:
    if not rows:
        return ""
    if len(rows) > 1 and len({row.value for row in rows}) == 1:
        return f"{figure(rows[0])} ({len(rows)} seeds)"
    if len(rows) > 1:
        numbers = [row.value for row in rows]
        mean, sd = mean_and_sd(numbers)
        return f"{spread_text(mean, sd, 4, seeds_interval(numbers))} ({len(rows)} seeds)"
    row = rows[0]
    return f"{figure(row)} {row.interval('.4g')}".rstrip()


def _differences(
    name: str, title: str, groups: Sequence[Group], content: Callable[[RunRecord], dict[str, Any]]
) -> Table:
    flat = [[flatten(content(run)) for run in group.runs] for group in groups]
    keys = sorted({key for group in flat for run in group for key in run if not _explains_nothing(key)})
    table = Table(name, title, ["key", *(group.name for group in groups)], [], [], [])
    for key in keys:
        texts = [sorted({_text(run.get(key)) for run in group}) for group in flat]
        if len({text for group in texts for text in group}) > 1:
            table.rows.append([key, *(", ".join(group) for group in texts)])
            table.values.append({"key": key} | {group.name: text for group, text in zip(groups, texts, strict=True)})
    if not table.rows:
        table.notes.append("no difference")
    return table


def readable(table: Table) -> Table:
    """A table of `compare` as it is printed: columns are called by what their runs' names differ in, which the notes of
    the results explain; a line for each run where there are more runs than lines.
    """
    num_heads = table.columns.index("split") + 1 if "split" in table.columns else 1
    runs = table.columns[num_heads:]
    if len(runs) > max(FEW, len(table.rows)):
        heads = [" ".join(filter(None, row[:num_heads])) for row in table.rows]
        lines = [[run, *(row[num_heads + number] for row in table.rows)] for number, run in enumerate(runs)]
        return replace(table, columns=["run", *heads], rows=lines)
    short = short_names(runs)
    names = [f"{short[run]}: {run}" for run in runs if short[run] != run] if table.name == "results" else []
    columns = [*table.columns[:num_heads], *(short[run] for run in runs)]
    return replace(table, columns=columns, notes=[*names, *table.notes])


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name -> the parts between dashes that are not the same in all, without the hash where the others tell them
    apart. Names of different numbers of parts stay whole.
    """
    parts = [name.split("-") for name in names]
    if len({len(of_one) for of_one in parts}) != 1 or len(names) < 2:
        return {name: name for name in names}
    differing = [place for place, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    for places in (differing[:-1], differing):
        short = [" ".join(of_one[place] for place in places) for of_one in parts]
        if len(set(short)) == len(names):
            return dict(zip(names, short, strict=True))
    return {name: name for name in names}


def _explains_nothing(key: str) -> bool:
    return any(f"{key}.".startswith(f"{known}.") for known in NOT_A_DIFFERENCE)


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    return "—" if value is None else str(value)
