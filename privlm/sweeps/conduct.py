"""Has the runs of a sweep done, by workers of this machine or by SLURM, and tells what became of each."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from privlm import launch, rundir
from privlm.errors import BusyError, PrivLMError, ServiceError, UsageError
from privlm.masking import mask_text
from privlm.sweeps import local, slurm
from privlm.sweeps.folder import Member, Sweep
from privlm.sweeps.standing import Standing, standings, swept
from privlm.sweeps.stopping import Stopped, stopping

POLL_SECONDS = 1.0, 10.0
"""Between two questions to SLURM, at first and of a sweep that takes long."""
SETTLE_SECONDS = 10.0
CANCEL_SECONDS = 120.0


def write(sweep: Sweep, prepared: Sequence[launch.Prepared], *, force: bool) -> None:
    """Writes the directories of the runs, and sweep.json. A run that cannot be is named, and the others go on; one
    whose job waits or runs stays as it is.

    Raises ServiceError where SLURM has the runs and does not answer.
    """
    with sweep.held(_Waits()):
        jobs = slurm.alive(sweep) if sweep.batches else {}
        for number, one in enumerate(prepared):
            if one.directory.name not in jobs:
                try:
                    launch.queue(one, force=force)
                except PrivLMError as error:
                    sweep.members[number] = replace(sweep.members[number], problem=mask_text(str(error)))
        sweep.write()


def conduct(sweep: Sweep, *, waits: bool = True) -> list[Standing]:
    """Works on what is not done, or has SLURM do it; how all runs stand in the end.

    waits: for the end of jobs.

    Raises Stopped after a signal; ServiceError where SLURM does not answer, UsageError where it refuses.
    """
    with sweep.held(_Waits()):
        jobs = None if sweep.launcher is None else slurm.alive(sweep)
        found = standings(sweep, jobs)
        todo = [one.member for one in found if one.is_open and one.member.name not in (jobs or {})]
        tell = Teller(sweep, num_done=sum(one.is_done for one in found))
        if sweep.launcher is None:
            local.work_off(sweep, todo, begun=tell.begun, ended=lambda member: tell.ended(_one(sweep, member)))
            return standings(sweep)
        if todo:
            _submit(sweep, todo)
    return watch(sweep, tell) if waits else look(sweep).standings


def _one(sweep: Sweep, member: Member) -> Standing:
    return next(one for one in standings(sweep) if one.member is member)


def _submit(sweep: Sweep, todo: Sequence[Member]) -> None:
    """Where SLURM refuses, no run is left queued."""
    for member in todo:
        with contextlib.suppress(PrivLMError), rundir.locked(member.directory):
            rundir.queue_again(member.directory)
    for first in range(0, len(todo), slurm.MAX_ARRAY):
        members = todo[first : first + slurm.MAX_ARRAY]
        try:
            batch = slurm.submit(sweep, members, num_processes=_num_processes(members[0]))
        except PrivLMError:
            for member in todo[first:]:
                with contextlib.suppress(PrivLMError), rundir.locked(member.directory):
                    rundir.leave_queue(member.directory, "it could not be submitted")
            raise
        print(f"submitted {len(members)} runs as job {batch.job} ({batch.name})", file=sys.stderr, flush=True)


def _num_processes(member: Member) -> int:
    config: Any = OmegaConf.load(member.directory / "config.yaml")
    return config.trainer.processes


def watch(sweep: Sweep, tell: Teller) -> list[Standing]:
    """Waits until no run of a sweep on SLURM is at work or waits any more.

    Raises Stopped after a signal; the jobs go on then.
    """
    told = {one.member.name for one in standings(sweep) if one.is_done}
    since: dict[str, float] = {}
    answers, begun = True, time.monotonic()
    with stopping() as stop:
        while not stop.signum:
            try:
                jobs = slurm.alive(sweep)
                answers = True
            except ServiceError as silence:
                if answers:
                    print(f"{silence}; asking again", file=sys.stderr, flush=True)
                answers = False
            found = standings(sweep, jobs if answers else None)
            settled = [one for one in found if one.has_ended and (answers or one.is_done) and _is_settled(one, since)]
            for one in settled:
                if one.member.name not in told:
                    tell.ended(one)
                    told.add(one.member.name)
            if len(settled) == len(found):
                return found
            if sweep.settings.stop_on_failure and any(one.state == "failed" for one in settled):
                return cancel(sweep, timeout=CANCEL_SECONDS)
            shortest, longest = POLL_SECONDS
            stop.wait(min(longest, shortest + (time.monotonic() - begun) / 20))
    raise Stopped(stop.signum)


def _is_settled(one: Standing, since: dict[str, float]) -> bool:
    """A run that is preempted looks for a moment as if its job were gone, until SLURM has queued it again."""
    if one.state not in ("interrupted", "died"):
        since.pop(one.member.name, None)
        return True
    return time.monotonic() - since.setdefault(one.member.name, time.monotonic()) > SETTLE_SECONDS


def detach(sweep: Sweep) -> int:
    """Leaves the sweep to a process of its own, which outlives this terminal; its process id."""
    log = open(sweep.folder / "sweep.log", "ab")  # noqa: SIM115 (the process below holds it)
    words = [sys.executable, "-m", "privlm", "sweep", "--resume", str(sweep.folder)]
    with log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )
    return process.pid


@dataclass(frozen=True)
class Seen:
    """How the runs stand, and what is to be said with it."""

    standings: list[Standing]
    remarks: list[str]


def look(sweep: Sweep) -> Seen:
    """How a sweep stands now, without a hand laid on it."""
    holder = sweep.holder()
    remarks = [f"worked on by {holder}"] if holder else []
    jobs = None
    if sweep.batches:
        try:
            jobs = slurm.alive(sweep)
        except ServiceError as silence:
            remarks.append(f"{silence}; what the runs say of themselves is shown")
    found = standings(sweep, jobs)
    if holder is None and not jobs and any(not one.is_done for one in found):
        remarks.append(f"nobody works on it; privlm sweep --resume {sweep.folder.name} goes on")
    return Seen(found, remarks)


def cancel(sweep: Sweep, *, timeout: float) -> list[Standing]:
    """Stops what is at work and what waits, and waits for it, at most `timeout` seconds; how the runs stand then.

    Raises UsageError where another machine works on the sweep, ServiceError where SLURM has it and does not answer.
    """
    end = time.monotonic() + timeout
    _stop_holder(sweep)
    if sweep.batches:
        slurm.cancel(sweep)
    while (sweep.holder() is not None or (sweep.batches and slurm.alive(sweep))) and time.monotonic() < end:
        time.sleep(POLL_SECONDS[0])
    if sweep.batches:
        slurm.kill(sweep)
    found = look(sweep).standings
    for one in found:
        if one.state in ("queued", "died"):
            with contextlib.suppress(PrivLMError), rundir.locked(one.member.directory):
                rundir.set_state(one.member.directory, "interrupted", "cancelled")
    return look(sweep).standings


def _stop_holder(sweep: Sweep) -> None:
    if (holder := sweep.holder()) is None:
        return
    _, pid, _, host = holder.split(" ", 3)
    if host != socket.gethostname():
        raise UsageError(f"{holder} works on the sweep: cancel it there, or send that process SIGTERM")
    os.kill(int(pid), signal.SIGTERM)


def rewrite(sweep: Sweep) -> None:
    """Writes sweep.json with other settings."""
    with sweep.held(_Waits()):
        sweep.write()


class Teller:
    """A line for each run that begins or ends, on stderr."""

    def __init__(self, sweep: Sweep, num_done: int) -> None:
        self._sweep = sweep
        self._num_ended = num_done
        if num_done:
            self._say(f"{num_done} of {len(sweep.members)} runs are done already")

    def begun(self, member: Member) -> None:
        self._say(f"begun  {self._words(member)}")

    def ended(self, one: Standing) -> None:
        self._num_ended += 1
        facts = [one.state, "" if one.seconds is None else f"{one.seconds:.0f} s", one.headline, one.reason]
        place = f"[{self._num_ended}/{len(self._sweep.members)}]"
        self._say(f"{place} {self._words(one.member)}: {', '.join(filter(None, facts))}")

    def _words(self, member: Member) -> str:
        return swept(self._sweep, member) or member.name

    def _say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


class _Waits:
    """Says once that another process works on the sweep."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, busy: BusyError) -> None:
        if not self._said:
            print(f"waiting: {busy}; what it leaves is done here", file=sys.stderr, flush=True)
        self._said = True
