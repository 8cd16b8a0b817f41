"""Workers of this machine: so many runs of a sweep at a time, each in a process of its own.

The processes are forked by a server that has imported the tasks once, so that a run costs little more than its own
work, and memory is given back with each. They end with the process that conducts them, however it goes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from privlm import files, launch, registry, rundir, signals
from privlm.errors import BusyError, PrivLMError
from privlm.masking import mask_text
from privlm.report.store import life_sign
from privlm.sweeps import gpus
from privlm.sweeps.folder import Member, Sweep
from privlm.sweeps.stopping import Stopped, stopping

BUSY = 75
"""Exit status of a worker whose run another process works on (EX_TEMPFAIL of sysexits.h)."""


@dataclass
class Worker:
    """gpus: those it sees, as CUDA_VISIBLE_DEVICES has them."""

    member: Member
    process: ForkServerProcess
    gpus: str | None


def work_off(
    sweep: Sweep, members: Iterable[Member], *, begun: Callable[[Member], None], ended: Callable[[Member], None]
) -> None:
    """Works on runs until each has ended, `sweep.settings.workers` at a time.

    A run that another process works on is waited for, and taken up if it is not done then. begun, ended: told of each.

    Raises Stopped after a signal, once the runs at work have saved their state.
    """
    if not (waiting := deque(members)):
        return
    num_workers = min(sweep.settings.workers, len(waiting))
    context = _server(waiting, num_workers)
    free_gpus = deque(gpus.shares(num_workers, gpus.visible()))
    workers: list[Worker] = []
    not_before: dict[str, float] = {}
    has_failed = False
    with stopping(partial(_tell, workers)) as stop:
        while waiting or workers:
            while waiting and len(workers) < num_workers and not stop.signum and not has_failed:
                if (member := _next(waiting, not_before)) is None:
                    break
                log = sweep.log_of(member) if num_workers > 1 else None
                seen = free_gpus.popleft()
                process = context.Process(
                    target=_work, args=(member.directory, log, sweep.settings.allow_changed_code, seen)
                )
                process.start()
                workers.append(Worker(member, process, seen))
                begun(member)
            if (stop.signum or has_failed) and not workers:
                break
            wait([worker.process.sentinel for worker in workers], timeout=rundir.LOOK_AGAIN)
            for worker in [worker for worker in workers if not worker.process.is_alive()]:
                workers.remove(worker)
                free_gpus.append(worker.gpus)
                status = worker.process.exitcode or 0
                if status == BUSY and not _is_stuck(worker.member):
                    not_before[worker.member.name] = time.monotonic() + rundir.LOOK_AGAIN
                    waiting.append(worker.member)
                    continue
                _record_end(worker.member, status, sweep)
                ended(worker.member)
                if status != 0 and sweep.settings.stop_on_failure and not has_failed:
                    has_failed = True
                    _tell(workers, signal.SIGTERM)
    if stop.signum:
        raise Stopped(stop.signum)


def _server(members: Iterable[Member], num_workers: int) -> multiprocessing.context.ForkServerContext:
    if num_workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))
    tasks = {member.directory.parent.name for member in members} & registry.tasks().keys()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["privlm.launch", *(f"{registry.tasks()[task].package}.run" for task in tasks)])
    return context


def _next(waiting: deque[Member], not_before: dict[str, float]) -> Member | None:
    """The first that may be begun now; those that were busy a moment ago are left for later."""
    for _ in range(len(waiting)):
        member = waiting.popleft()
        if time.monotonic() >= not_before.get(member.name, 0):
            return member
        waiting.append(member)
    return None


def _tell(workers: Iterable[Worker], signum: int) -> None:
    for worker in workers:
        if worker.process.is_alive() and worker.process.pid is not None:
            os.kill(worker.process.pid, signum)


def _record_end(member: Member, status: int, sweep: Sweep) -> None:
    """A worker that was killed, or never came to its run, leaves it to this process to say so."""
    try:
        with rundir.locked(member.directory):
            state = (files.read_intact_json(member.directory / "status.json") or {}).get("state")
            if status == -signal.SIGTERM and state == "queued":  # stopped before it came to its run
                return
            if state == "running" and status < 0:
                rundir.set_state(member.directory, "failed", f"it was killed by {signal.Signals(-status).name}")
            elif state in ("running", "queued") and status != 0:
                log = f"; see {sweep.log_of(member)}" if sweep.log_of(member).exists() else ""
                rundir.set_state(member.directory, "failed", f"its worker ended with exit status {status}{log}")
    except PrivLMError:  # somebody else has it by now
        return


def _is_stuck(member: Member) -> bool:
    """Whether the process that holds the run has given no sign for long."""
    status = files.read_intact_json(member.directory / "status.json") or {}
    return life_sign(status).startswith("no heartbeat")


def _work(directory: Path, log: Path | None, allow_changed_code: bool, seen: str | None) -> None:
    """In the process of a worker. A request to stop that comes before the run listens waits until it does."""
    if seen is not None:  # torch, imported already, looks at it when it first asks for a GPU
        os.environ[gpus.VARIABLE] = seen
    with signals.held_back():
        _take_up(directory, log, allow_changed_code)


def _take_up(directory: Path, log: Path | None, allow_changed_code: bool) -> None:
    signals.end_with_parent(os.getppid())
    os.setpgrp()  # Ctrl-C reaches the conductor alone, which passes it on once
    if log is not None:
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab", buffering=0) as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
    try:
        status = launch.take_up(directory, allow_changed_code=allow_changed_code).status
    except BusyError:
        status = BUSY
    except PrivLMError as error:
        print(f"privlm: {mask_text(str(error))}", file=sys.stderr)
        status = error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
