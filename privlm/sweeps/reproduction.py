"""Which runs a table still needs, what they will take, and the folder in which the filled table lies."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from privlm import files, hub, launch, registry
from privlm.errors import UsageError
from privlm.report.cells import CellRuns, match
from privlm.report.render import FORMATS
from privlm.report.store import RunRecord, Store
from privlm.report.table import Table
from privlm.report.table_file import TableFile
from privlm.report.table_page import table_page
from privlm.report.table_plot import draw

FOLDER = "tables"
SUFFIXES = {"md": "md", "latex": "tex", "csv": "csv", "html": "html"}

Compose = Callable[[Sequence[str]], Any]
"""Words -> a composed run (privlm.cli.compose.Composed)."""


@dataclass(frozen=True)
class Planned:
    """A run that a table needs. words: that choose it. rows: of the table, that it serves. seconds: it is about to
    take; None if unknown.
    """

    composed: Any
    words: tuple[str, ...]
    rows: tuple[str, ...]
    is_done: bool
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """problems: row -> why its runs cannot be begun. downloads: repositories of the hub that are not in its cache."""

    runs: list[Planned]
    problems: dict[str, str]
    downloads: list[str]

    @property
    def missing(self) -> list[Planned]:
        return [run for run in self.runs if not run.is_done]

    @property
    def hours(self) -> float | None:
        """Of the missing runs one after the other; None where nothing is known of some."""
        seconds = [run.seconds for run in self.missing]
        return None if any(one is None for one in seconds) else sum(filter(None, seconds)) / 3600


def plan(
    file: TableFile,
    store: Store,
    compose: Compose,
    hash_of: Callable[[Any], str],
    *,
    seeds: int,
    words: Sequence[str] = (),
    rows: Iterable[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """The runs of all cells, `seeds` of each, in the order of the table; those that another directory has are left out.

    hash_of: the cell hash of a composed run. words: of the user, for every run. rows: those of the table; all if none.
    """
    by_run: dict[tuple[str, ...], list[str]] = {}
    for row in rows or file.rows:
        for cell in file.rows[row].values():
            if cell.run is not None:
                by_run.setdefault(cell.run, []).append(row)
    runs: list[Planned] = []
    problems: dict[str, str] = {}
    downloads: dict[str, None] = {}
    for number, (overrides, served) in enumerate(by_run.items(), start=1):
        try:
            first = compose([*overrides, *words])
            there = match(tuple(overrides), hash_of(first), store, smoke=first.config.scale == "smoke")
            seconds: float | None = None
            for seed in range(seeds):
                one = first.with_seed(seed)
                directory = launch.directory_of(one.config, one.roles)
                is_done = launch.is_done(directory)
                if not is_done and any(run.seed == seed for run in there.finished):
                    continue
                if not is_done and seconds is None:
                    seconds = _seconds(one.config, there, store)
                runs.append(
                    Planned(one, (*overrides, *words, f"seed={seed}"), tuple(dict.fromkeys(served)), is_done, seconds)
                )
            downloads |= dict.fromkeys(_downloads(first.config))
        except UsageError as error:
            problems |= dict.fromkeys(served, str(error))
        progress(number, len(by_run))
    return Plan(runs, problems, list(downloads))


def _seconds(config: Any, cell: CellRuns, store: Store) -> float | None:
    """What finished runs of the cell took; else those of the task, the model and the scale, by their steps; else what
    the task's own plan says.
    """
    if cell.finished:
        return statistics.mean(_took(run) for run in cell.finished)
    model = config.model.name if config.model is not None else None
    alike = [
        run
        for run in store.runs
        if run.finished
        and (run.task, run.scale) == (config.task.name, config.scale)
        and (run.config.get("model") or {}).get("name") == model
    ]
    return statistics.mean(_took(run) for run in alike) if alike else _planned_seconds(config)


def _took(run: RunRecord) -> float:
    assert run.result is not None
    return run.result["seconds"]


def _planned_seconds(config: Any) -> float | None:
    try:
        return registry.entry_of(config).plan(config).get("seconds")
    except UsageError:  # a task without a plan.py
        return None


def _downloads(config: DictConfig) -> list[str]:
    found = []
    for group, repo_type in (("model", "model"), ("data", "dataset")):
        repo = OmegaConf.select(config, f"{group}.hub_id")
        local = [OmegaConf.select(config, f"{group}.{key}") for key in ("path", "package", "random")]
        if repo is not None and not any(local) and not hub.is_cached(repo, repo_type):
            found.append(f"{repo} ({group})")
    return found


def write(table: Table, folder: Path) -> list[Path]:
    """The table as Markdown, CSV, HTML and LaTeX, and its plot where it has figures; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    plot = draw(table, folder / f"{table.name}.png")
    for name, form in FORMATS.items():
        path = folder / f"{table.name}.{SUFFIXES[name]}"
        files.write_text(path, table_page(table, plot) if name == "html" else form(table))
        written.append(path)
    return written + ([plot] if plot else [])
