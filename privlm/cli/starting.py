"""Starts a composed experiment in its run directory, resumes it or skips it, and prints what came of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from privlm import files, launch, launchers, processes, registry
from privlm.cli.arguments import relative
from privlm.cli.compose import Composed, Words
from privlm.errors import UsageError
from privlm.masking import held_in_words
from privlm.report import store
from privlm.report.card import forced_text, privacy_card
from privlm.report.render import console, print_table
from privlm.report.run_results import results_tables


def words_of(arguments: argparse.Namespace) -> Words:
    """The words of the command line, with the world that an outer launcher was asked for.

    Raises UsageError for a word that holds a key: it would be written down.
    """
    if problems := held_in_words(arguments.overrides):
        raise UsageError("\n".join(problems))
    overrides = list(arguments.overrides)
    if (size := processes.asked_for()) is not None and not any(word.startswith("trainer=") for word in overrides):
        overrides += ["trainer=ddp"] if size > 1 else []
        if not any(word.startswith("trainer.processes=") for word in overrides):
            overrides += [f"trainer.processes={size}"]
    return Words(tuple(overrides), tuple(arguments.config_dir), arguments.config_name)


def start(composed: Composed, *, force: bool, as_json: bool, show: bool = True) -> int:
    """Runs a composed configuration (privlm.launch) and tells of it; returns the exit status.

    show: print the results on stdout at the end.
    """
    ended = launch.start(
        composed.config,
        composed.words.overrides,
        composed.roles,
        force=force,
        introduce=lambda directory, restarts: _introduce(composed, directory, restarts=restarts),
    )
    if processes.is_main():
        if ended.skipped:
            _say_skipped(ended.directory)
        if not (ended.skipped and (ended.directory / "report.html").exists()):
            launch.write_page(ended.directory)
        if ended.status == 0 and show:
            _print_results(ended.directory, as_json)
    return ended.status


def dry_run(composed: Composed, *, as_json: bool) -> int:
    """Prints what a run would do and cost; writes nothing."""
    config = composed.config
    plan = registry.entry_of(config).plan(config)
    directory = launch.directory_of(config, composed.roles)
    done = "finished" if launch.is_done(directory) else "started" if (directory / "status.json").exists() else "new"
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
    chosen = [f"{group}={choice}" for group, choice in composed.chosen_by.items()]
    if composed.lines is not None:
        chosen += [f"when {line}" for line in composed.lines] or ["when: no line of the recipe applies"]
    print(", ".join(chosen), file=sys.stderr)
    if composed.config.trainer.processes == 1 and (remark := launchers.alone_in_slurm()):
        print(remark, file=sys.stderr)
    print(f"{'resuming in' if restarts else 'run directory'} {relative(directory)}", file=sys.stderr, flush=True)


def _say_skipped(directory: Path) -> None:
    from privlm import environment

    made_with = (files.read_json(directory / "env.json") or {}).get("git_commit")
    now = environment.code_version()[0]
    versions = f" with code {(made_with or 'unknown')[:10]}, now {(now or 'unknown')[:10]}" if made_with != now else ""
    print(f"already done{versions}, skipped (--force runs it again): {relative(directory)}", file=sys.stderr)


def _print_results(directory: Path, as_json: bool) -> None:
    run = store.read_run(directory)
    if as_json:
        facts = {"directory": str(directory), "privacy": run.privacy, "reason": run.status.get("reason")}
        print(json.dumps((run.result or {}) | facts, indent=2))
        return
    out = console()
    for table in results_tables(run.results, out.width):
        print_table(table, out)
    if run.state != "done":
        out.print(_how_to_go_on(run.status["reason"]), markup=False)
    out.print(f"privacy  {privacy_card(run.privacy).headline}", markup=False)
    if "with_forced" in (run.privacy or {}):
        out.print(f"with what --force removed: {forced_text(run.privacy or {})}", markup=False)
    if run.marks:
        out.print(f"marks    {', '.join(run.marks)}", markup=False)
    for note in (run.result or {}).get("notes", ()):
        out.print(f"note     {note}", markup=False)
    out.print(f"report   {relative(directory / 'report.html')}", markup=False, soft_wrap=True)


def _how_to_go_on(reason: str) -> str:
    if reason.startswith("task.until"):
        return f"stopped by {reason}; the same command without it goes on"
    return f"{reason}; the same command goes on once it is raised"  # a budget of the language model
