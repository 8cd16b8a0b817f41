"""How the runs of a sweep stand, as their own directories say; a scheduler is asked for what these cannot know."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from privlm import files
from privlm.errors import UsageError
from privlm.report.card import figure
from privlm.report.store import RunRecord, life_sign, read_run
from privlm.report.sweep_page import PAGE, SweepRow, sweep_page
from privlm.report.table import Table
from privlm.sweeps.folder import Member, Sweep

ENDED = ("done", "failed", "interrupted", "died", "damaged", "gone")
"""States in which nobody works on a run, and none will by itself."""
AT_WORK = ("RUNNING", "COMPLETING")


@dataclass(frozen=True)
class Standing:
    """state: of the run directory; `died` where its process is gone, `damaged` where it cannot be read, `gone` where
    there is none, `pending` where a scheduler has its job waiting. reason: why it is so, '' if there is nothing to say.
    """

    member: Member
    state: str
    reason: str = ""
    seconds: float | None = None
    headline: str = ""
    run: RunRecord | None = None

    @property
    def is_done(self) -> bool:
        return self.state == "done"

    @property
    def is_open(self) -> bool:
        """Whether there is something to be done, and it can be."""
        return not self.is_done and self.member.problem is None and self.state != "gone"

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


def standings(sweep: Sweep, jobs: Mapping[str, str] | None = None) -> list[Standing]:
    """How all runs stand.

    jobs: name of a run -> what its scheduler says of its job, of jobs that are not over; None without a scheduler, or
    where it does not answer. It must have been asked before this: a run that has ended since then says so itself.
    """
    submitted = {run for batch in sweep.batches for run in batch.runs} if jobs is not None else set()
    return [
        _standing(member, (jobs or {}).get(member.name), lost=member.name in submitted.difference(jobs or {}))
        for member in sweep.members
    ]


def _standing(member: Member, job: str | None, *, lost: bool) -> Standing:
    """job: what its scheduler says of it; lost: it had one, and has none any more."""
    if member.problem is not None:
        return Standing(member, "damaged", member.problem)
    if not (member.directory / "status.json").exists():
        return Standing(member, "gone", job or "its directory is gone; the command that made the sweep makes it again")
    try:
        run = read_run(member.directory)
    except (UsageError, OSError) as fault:
        return Standing(member, "damaged", str(fault))
    state, reason = _state(run, job, lost=lost)
    seconds = run.status.get("seconds")
    if state == "done":
        return Standing(member, state, reason, (run.result or {}).get("seconds", seconds), figure_of(run), run)
    if state == "running":
        seconds = (
            (seconds or 0.0) + time.time() - run.status.get("begun", run.status["started"])
        )  # of earlier tries and of this one
    return Standing(member, state, reason, seconds, run=run)


def _state(run: RunRecord, job: str | None, *, lost: bool) -> tuple[str, str]:
    """State and reason."""
    state, sign = run.state, life_sign(run.status)
    is_silent = sign.startswith("no heartbeat")
    if state == "unknown":
        return "damaged", "; ".join(run.problems)
    if state == "done":
        return state, run.status.get("reason") or ""
    if job is not None and not (state == "running" and job.startswith(AT_WORK)):
        return "pending", job
    if state in ("queued", "running") and (lost or (job is None and sign and not is_silent)):
        return "died", "its job is gone" if lost else sign
    if state == "running":
        return state, sign if is_silent else _stage(run)
    return state, run.status.get("reason") or ""


def figure_of(run: RunRecord) -> str:
    """The figure that a run is told by: the first that it reports."""
    if not run.results:
        return ""
    row = run.results[0]
    return f"{row.metric} {figure(row)}"


def overview(sweep: Sweep, found: list[Standing]) -> Table:
    """A line for each run: what makes it differ from the others, state, seconds, headline figure and reason."""
    rows = [
        [
            words,
            one.state,
            "" if one.seconds is None else f"{one.seconds:.0f}",
            one.headline,
            one.reason,
            one.member.name,
        ]
        for one, words in zip(found, _all_swept(sweep, found), strict=True)
    ]
    values = [
        {
            "run": one.member.name,
            "directory": str(one.member.directory),
            "overrides": list(one.member.overrides),
            "state": one.state,
            "reason": one.reason or None,
            "seconds": one.seconds,
            "figure": one.headline or None,
            "log": str(one.member.directory / "run.log"),
        }
        for one in found
    ]
    columns = ["values", "state", "seconds", "figure", "reason", "run"]
    return Table("sweep", f"sweep {sweep.folder.name}", columns, rows, [counts(found)], values)


def counts(found: Iterable[Standing]) -> str:
    """`12 runs: 10 done, 1 failed, 1 running`."""
    by_state = Counter(one.state for one in found)
    total = sum(by_state.values())
    return f"{total} run{'s' * (total != 1)}: {', '.join(f'{number} {state}' for state, number in by_state.items())}"


def swept(sweep: Sweep, member: Member) -> str:
    """The words that not all runs of the sweep have."""
    common = common_words(sweep.members)
    return " ".join(word for word in member.overrides if word not in common)


def _all_swept(sweep: Sweep, found: Iterable[Standing]) -> list[str]:
    """The same for each run."""
    common = common_words(sweep.members)
    return [" ".join(word for word in one.member.overrides if word not in common) for one in found]


def common_words(members: list[Member]) -> set[str]:
    return set.intersection(*(set(member.overrides) for member in members))


def _stage(run: RunRecord) -> str:
    working = [name for name, record in run.status["stages"].items() if record["state"] == "running"]
    return f"stage {working[-1]}" if working else ""


def write_page(sweep: Sweep, found: Sequence[Standing]) -> Path | None:
    """Writes sweep.html into the folder of the sweep and returns its path.

    A page that cannot be written leaves the runs as they are, and is told; then None.
    """
    rows = [
        SweepRow(words, one.state, one.reason, one.seconds, one.headline, one.run, one.member.directory)
        for one, words in zip(found, _all_swept(sweep, found), strict=True)
    ]
    path = sweep.folder / PAGE
    try:
        files.write_text(path, sweep_page(sweep.folder.name, sweep.command, rows, folder=sweep.folder))
    except OSError as error:
        print(f"privlm: cannot write {path}: {error.strerror}", file=sys.stderr)
        return None
    except UsageError as error:  # of a run that is not what was written
        print(f"privlm: no {PAGE}: {error}", file=sys.stderr)
        return None
    return path
