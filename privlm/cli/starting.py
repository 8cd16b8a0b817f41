"""Starts a composed experiment in its run directory, resumes it or skips it, and prints what came of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from privlm import files, identity, launch, rundir
from privlm.cli.compose import Composed, Words, task_entry
from privlm.errors import UsageError
from privlm.report import store
from privlm.report.card import figure, privacy_card
from privlm.report.page import write_report
from privlm.report.render import console, print_table
from privlm.report.table import Table


def words_of(arguments: argparse.Namespace) -> Words:
    overrides = list(arguments.overrides)
    if (size := launch.outer_world()) is not None and not any(word.startswith("trainer=") for word in overrides):
        overrides += ["trainer=ddp"] if size > 1 else []
        if not any(word.startswith("trainer.processes=") for word in overrides):
            overrides += [f"trainer.processes={size}"]
    return Words(tuple(overrides), tuple(arguments.config_dir), arguments.config_name)


def start(composed: Composed, *, force: bool, as_json: bool, show: bool = True) -> int:
    """Runs a composed configuration in its directory, or says that it is done; returns the exit status.

    show: print the results on stdout at the end.
    """
    config = composed.config
    _require_outer_world(config)
    fingerprints = inputs(config)
    run_hash = identity.run_hash(config, fingerprints)
    directory = identity.run_directory(config, run_hash)
    if not (directory / "status.json").exists():  # else all answers may be on record, and no key needed
        _require_key(config)
    with contextlib.ExitStack() as stack:

        def open_directory() -> str:
            """What the main process decides for all: `work`, or `skip` for a finished run."""
            stack.enter_context(rundir.locked(directory))
            if _is_done(directory) and not force:
                return "skip"
            if force:
                _clear(directory)
            status = rundir.create(
                directory,
                config,
                composed.words.overrides,
                run_hash=run_hash,
                cell_hash=identity.cell_hash(config),
                inputs=fingerprints,
            )
            _introduce(composed, directory, restarts=status["restarts"])
            return "work"

        decision = launch.decide(open_directory)
        if decision == "work":
            status = launch.execute(directory, config.trainer.processes)
        else:
            status = 0
            if launch.is_main():
                _say_skipped(directory)
    if launch.is_main():
        if status == 0 and (decision == "work" or not (directory / "report.html").exists()):
            _write_report(directory)
        if status == 0 and show:
            _print_results(directory, as_json)
    return status


def _write_report(directory: Path) -> None:
    try:
        write_report(directory)
    except OSError as error:  # the results stand; the same command writes the report when there is room again
        print(f"privlm: cannot write {directory / 'report.html'}: {error.strerror}", file=sys.stderr)


def inputs(config: DictConfig) -> Mapping[str, str]:
    """Fingerprints of what the run reads. Raises UsageError for what is not at hand, before anything is written."""
    function = getattr(task_entry(config).config_module(), "inputs", None)
    return function(config) if function else {}


def _require_key(config: DictConfig) -> None:
    """Raises UsageError, before anything is written, where a server is to be asked and its key is not set."""
    if (llm := config.get("llm")) is not None and llm.backend == "endpoint":
        from privlm.llm.endpoint.connection import api_key

        api_key(llm)


def dry_run(composed: Composed, *, as_json: bool) -> int:
    """Prints what a run would do and cost; writes nothing."""
    config = composed.config
    plan = task_entry(config).plan(config)
    directory = identity.run_directory(config, identity.run_hash(config, inputs(config)))
    done = "finished" if _is_done(directory) else "started" if (directory / "status.json").exists() else "new"
    plan |= {"directory": str(directory), "state": done}
    if as_json:
        print(json.dumps(files.finite(plan), indent=2))
    else:
        width = max(len(name) for name in plan)
        for name, value in plan.items():
            print(f"{name:<{width}}  {_readable(value)}")
    return 0


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return "; ".join(value) or "-"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _introduce(composed: Composed, directory: Path, *, restarts: int) -> None:
    print(", ".join(f"{group}={choice}" for group, choice in composed.chosen_by.items()), file=sys.stderr)
    print(f"{'resuming in' if restarts else 'run directory'} {_relative(directory)}", file=sys.stderr, flush=True)


def _say_skipped(directory: Path) -> None:
    from privlm import environment

    made_with = (files.read_json(directory / "env.json") or {}).get("git_commit")
    now = environment.code_version()[0]
    versions = f" with code {(made_with or 'unknown')[:10]}, now {(now or 'unknown')[:10]}" if made_with != now else ""
    print(f"already done{versions}, skipped (--force runs it again): {_relative(directory)}", file=sys.stderr)


def _print_results(directory: Path, as_json: bool) -> None:
    run = store.read_run(directory)
    if as_json:
        facts = {"directory": str(directory), "privacy": run.privacy, "reason": run.status.get("reason")}
        print(json.dumps((run.result or {}) | facts, indent=2))
        return
    rows = [
        [
            row.metric,
            figure(row),
            "" if row.ci_low is None else f"[{row.ci_low:.4f}, {row.ci_high:.4f}]",
            row.unit,
            " ".join(filter(None, [row.split, f"n={row.n}" if row.n else ""])),
        ]
        for row in run.results
    ]
    out = console()
    if rows:
        table = Table("results", "", ["metric", "value", "95 % interval", "unit", "measured on"], rows, [], [])
        print_table(table, out)
    if run.state != "done":  # a budget of the language model is spent
        out.print(f"{run.status.get('reason')}; the same command goes on once it is raised", markup=False)
    out.print(f"privacy  {privacy_card(run.privacy).headline}", markup=False)
    if run.marks:
        out.print(f"marks    {', '.join(run.marks)}", markup=False)
    for note in (run.result or {}).get("notes", ()):
        out.print(f"note     {note}", markup=False)
    out.print(f"report   {_relative(directory / 'report.html')}", markup=False, soft_wrap=True)


def _is_done(directory: Path) -> bool:
    status = files.read_json(directory / "status.json")
    return status is not None and status["state"] == "done" and (directory / "result.json").exists()


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _require_outer_world(config: Any) -> None:
    size = launch.outer_world()
    if size is not None and size != config.trainer.processes:
        raise UsageError(
            f"trainer.processes={config.trainer.processes}, but the outer launcher started {size}: leave "
            "trainer.processes out, or give it that number"
        )


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
