"""`privlm sweep`: every combination of the given values, by workers of this machine or by SLURM.

All combinations are composed and checked before the first one starts. Each is a run like any other, in its own
directory: the same sweep again skips what is finished and resumes what was interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from privlm import launch
from privlm.cli import starting
from privlm.cli.arguments import default_runs_folder, relative
from privlm.cli.compose import Composed, compose_all, expand
from privlm.cli.run_options import EPILOG_SWEEP, parse
from privlm.errors import UsageError
from privlm.masking import mask_text
from privlm.report import store
from privlm.report.compare import compare
from privlm.report.render import console, print_table, to_json
from privlm.report.table import Table
from privlm.sweeps import conduct, folder, slurm
from privlm.sweeps.folder import Member, Sweep
from privlm.sweeps.standing import Standing, overview, write_page
from privlm.sweeps.stopping import Stopped


def main(argv: list[str]) -> int:
    """Runs `privlm sweep ARGV`; returns 0 when all runs are done, 1 when some are not, 130 and 143 after a signal."""
    arguments = parse(argv, "sweep", EPILOG_SWEEP)
    if arguments.resume is not None:
        sweep = _with_settings(folder.find(arguments.resume, default_runs_folder()), arguments.overrides)
        sweep.write()
    else:
        composed = compose_all(expand(starting.words_of(arguments)))
        if arguments.dry_run:
            return _list(_distinct(composed))
        sweep = make(
            composed,
            force=arguments.force,
            detach=arguments.detach,
            command=mask_text(" ".join(["privlm sweep", *argv])),
        )
    print(f"sweep {relative(sweep.folder)}", file=sys.stderr, flush=True)
    return work(sweep, detach=arguments.detach, as_json=arguments.json)


def make(composed: Sequence[Composed], *, force: bool, detach: bool, command: str, title: str = "") -> Sweep:
    """The sweep of these runs, their directories written. Combinations that make the same run are one.

    Raises UsageError where they do not agree on how a sweep is worked on, and for what is not at hand.
    """
    first = composed[0]
    assert first.sweep is not None
    if any((one.sweep, one.launcher) != (first.sweep, first.launcher) for one in composed):
        raise UsageError("sweep.* and hydra.launcher.* say how all runs are worked on: give each one value")
    distinct = _distinct(composed)
    if first.launcher is not None:
        slurm.require(first.launcher, [one.config.trainer.processes for one in distinct])
    typed = {tuple(one.words.overrides): one.typed for one in composed}
    members = [
        Member(one.directory, tuple(map(mask_text, typed[tuple(one.overrides)])), one.run_hash) for one in distinct
    ]
    sweep = folder.new(
        Path(first.config.runs), members, command, first.sweep, first.launcher, title or _title(composed)
    )
    if not (detach and sweep.holder()):  # it is at work already, and nobody waits for it
        conduct.write(sweep, distinct, force=force)
    return sweep


def _distinct(composed: Sequence[Composed]) -> list[launch.Prepared]:
    """Combinations that make the same run are one: run twice, it would count as two seeds."""
    prepared = [launch.Prepared.of(one.config, one.words.overrides, one.roles) for one in composed]
    distinct = list({one.directory: one for one in reversed(prepared)}.values())[::-1]
    if (num_equal := len(prepared) - len(distinct)) > 0:
        print(
            f"privlm: {num_equal} of {len(prepared)} combinations repeat a run of this sweep; each run counts once",
            file=sys.stderr,
        )
    return distinct


def work(sweep: Sweep, *, detach: bool, as_json: bool, shows: bool = True) -> int:
    """Has the runs done and, where it `shows`, prints what came of them; returns the exit status."""
    if detach:
        if (holder := sweep.holder()) is not None:
            print(f"at work already, by {holder}; privlm status {sweep.folder.name} shows how far it is")
            return 0
        if sweep.launcher is None:
            conduct.detach(sweep)
        elif sweep.settings.stop_on_failure:
            raise UsageError("sweep.stop_on_failure=true needs somebody who waits for the jobs: leave out --detach")
        else:
            conduct.conduct(sweep, waits=False)
        print(f"at work; privlm status {sweep.folder.name} shows how far it is, privlm cancel stops it")
        return 0
    try:
        found = conduct.conduct(sweep)
    except Stopped as stop:
        left = "the jobs go on" if sweep.launcher else "the state is saved; privlm sweep --resume goes on"
        print(f"{stop}: stopped, {left}: {sweep.folder.name}", file=sys.stderr)
        return stop.exit_code
    if shows:
        _show(sweep, found, as_json)
    if (page := write_page(sweep, found)) is not None:
        print(f"page  {relative(page)}", file=sys.stderr, flush=True)
    return 0 if all(one.is_done for one in found) else 1


def _show(sweep: Sweep, found: Sequence[Standing], as_json: bool) -> None:
    finished = [one.run for one in found if one.run is not None and one.run.finished]
    tables = compare(finished, by_cell=True) if finished else []
    summary = overview(sweep, list(found))
    if as_json:
        shown = [*tables, summary]
        print(to_json([{"title": table.title, "rows": table.values} for table in shown]))
        return
    out = console()
    for table in tables:
        print_table(table, out)
    if not all(one.is_done for one in found):
        print_table(_without_done(summary), out)


def _without_done(table: Table) -> Table:
    state = table.columns.index("state")
    return replace(table, title=f"{table.title}: what is not done", rows=[r for r in table.rows if r[state] != "done"])


def _with_settings(sweep: Sweep, words: Sequence[str]) -> Sweep:
    """A sweep that is there, with other values of `sweep.*`."""
    others = [word for word in words if not word.startswith("sweep.")]
    if others:
        raise UsageError(f"--resume takes the runs as they are, and sweep.KEY=VALUE, not {' '.join(others)}")
    try:
        merged = OmegaConf.merge({"sweep": OmegaConf.structured(sweep.settings)}, OmegaConf.from_dotlist(list(words)))
    except OmegaConfBaseException as error:
        raise UsageError(f"{' '.join(words)}: {str(error).splitlines()[0]}") from error
    settings: Any = OmegaConf.to_object(merged.sweep)
    return replace(sweep, settings=settings)


def _title(composed: Sequence[Composed]) -> str:
    """Task and the keys that are swept."""
    words = [set(one.words.overrides) for one in composed]
    swept = set[str]().union(*words) - words[0].intersection(*words)
    keys = dict.fromkeys(word.partition("=")[0].lstrip("+~") for word in composed[0].words.overrides if word in swept)
    return "-".join([composed[0].config.task.name, *keys])


def _list(prepared: Sequence[launch.Prepared]) -> int:
    for one in prepared:
        state = store.read_run(one.directory).state if one.directory.exists() else "new"
        print(f"{state:<12} {one.directory}")
    return 0
