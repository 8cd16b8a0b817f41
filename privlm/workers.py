"""Several processes of one run on one machine, started by us: watched, stopped together, and what came first told.

How long they may take to stop: they leave at the next step boundary, after a checkpoint, and nobody knows how long a
step or the writing of a large checkpoint takes. So no clock runs while the run directory changes, as it does with each
logged step, each release, each block of a checkpoint. Where nothing in it changes for SILENT_SECONDS, a worker hangs
and the others wait for it (NCCL itself waits no longer). Once one has left, the state is saved, and the others have
LEAVE_SECONDS. Whoever does not want to wait so long sends the signal again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from privlm import files, signals
from privlm.signals import EXIT_INTERRUPTED, end_with_parent

Work = Callable[[Path, int], int]
"""work(run directory, rank): one process of a run; its exit status."""

SILENT_SECONDS = 600.0
LEAVE_SECONDS = 60.0
AGAIN_SECONDS = 1.0  # a signal that follows sooner is the same request: shells, SLURM and timeout(1) may send it twice
SETTLE_SECONDS = 2.0  # for the others to end by themselves where one has failed: the cause may be among them
STACK_SECONDS = 2.0  # for workers that are to be killed to tell where they stand
SEEN_SECONDS = 0.5  # a death may have been so long ago when it is seen
POLL_SECONDS = 0.2
LOOK_SECONDS = 1.0  # between two looks for signs of life in the run directory

TRACKERS = ("wandb", "tensorboard")
"""Folders of a run directory in which threads write, whatever the run does."""

CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Of which faulthandler tells where they came."""

WAITING = re.compile(r"torch/distributed/|privlm/training/processes\.py")
"""In the stack of a process that waits for the others."""


@dataclass(frozen=True)
class Ending:
    """How the workers ended.

    status: exit status of the run. state: to be recorded, failed or interrupted, '' where the main worker has done so.
    message: why; to be printed too.
    """

    status: int
    state: str = ""
    message: str = ""


@dataclass(frozen=True)
class Left:
    """A worker that is gone. seen: when that was seen. code: its exit status, negative for a signal. was_killed: by us;
    was_waiting: for the others, when it was.
    """

    seen: float
    code: int
    was_killed: bool = False
    was_waiting: bool = False

    @property
    def is_bad(self) -> bool:
        return self.code not in (0, *EXIT_INTERRUPTED)


def spawn(work: Work, directory: Path, num_workers: int) -> Ending:
    """Does `work` in several processes. A request to stop is passed on; when one worker has failed, the others are
    ended.
    """
    _remove_notes(directory)
    context = multiprocessing.get_context("spawn")
    arguments = (work, directory, num_workers, _free_port(), os.getpid())
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(num_workers)]
    watch = _Watch(workers, directory)
    resource_tracker.ensure_running()  # of multiprocessing; started with the first worker, it lets SIGTERM through
    try:
        with signals.handled(watch.receive):
            with signals.held_back():
                for worker in workers:
                    worker.start()
            watch.until_all_have_left()
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
    _keep_stacks(directory, num_workers)
    notes = [files.read_json(path) for path in directory.glob(".failure-*.json")]
    ending = how_it_ended(watch.left, notes, [signum for signum, _ in watch.requests])
    _remove_notes(directory)
    return ending


def leave_failure(directory: Path, rank: int, message: str, *, status: int, lost_peer: bool) -> None:
    """What a worker that fails leaves for the process that started it. lost_peer: it has failed by another's fall."""
    note = {"rank": rank, "time": time.monotonic(), "message": message, "status": status, "lost_peer": lost_peer}
    files.write_json(directory / f".failure-{rank}.json", note)


class _Watch:
    """The process that started the workers, while they work. All times are of the monotonic clock, one for all."""

    def __init__(self, workers: Sequence[BaseProcess], directory: Path) -> None:
        self.workers = workers
        self.directory = directory
        self.left: dict[int, Left] = {}
        self.requests: list[tuple[int, float]] = []  # signals received, and when
        self._is_passed_on = False
        self._signs: object = None
        self._looked = self._alive = 0.0  # when signs of life were looked for, and when the last one was seen

    @property
    def remaining(self) -> list[int]:
        return [rank for rank in range(len(self.workers)) if rank not in self.left]

    def receive(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requests or now - self.requests[0][1] >= AGAIN_SECONDS:
            self.requests.append((signum, now))

    def until_all_have_left(self) -> None:
        while self.remaining:
            wait([self.workers[rank].sentinel for rank in self.remaining], timeout=POLL_SECONDS)
            self._see_who_left()
            self._pass_on()
            if self._has_failed():
                self._kill()
            elif len(self.requests) > 1 or self._is_silent():
                self._kill(waiting=self._find_waiting())

    def _see_who_left(self) -> None:
        for rank in self.remaining:
            if (code := self.workers[rank].exitcode) is not None:
                self._alive = time.monotonic()
                self.left[rank] = Left(self._alive, code)

    def _pass_on(self) -> None:
        if self.requests and not self._is_passed_on:
            self._is_passed_on = True
            self._signal(self.requests[0][0])
            self._signal(signal.SIGCONT)  # a stopped worker hears nothing

    def _signal(self, signum: int) -> None:
        for rank in self.remaining:
            pid = self.workers[rank].pid
            assert pid is not None
            os.kill(pid, signum)  # only `_see_who_left` waits for workers: the number is still its own

    def _has_failed(self) -> bool:
        """Long enough ago for the others to have fallen too."""
        failures = [left.seen for left in self.left.values() if left.is_bad]
        return bool(failures) and time.monotonic() - min(failures) >= SETTLE_SECONDS

    def _is_silent(self) -> bool:
        """Whether the workers do not leave, though they or one of them were asked to, or the main one is done."""
        if not (self.requests or 0 in self.left or any(left.code for left in self.left.values())):
            return False
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if (signs := _signs_of_life(self.directory)) != self._signs:
                self._signs, self._alive = signs, now
        return now - self._alive >= (LEAVE_SECONDS if self.left else SILENT_SECONDS)

    def _find_waiting(self) -> set[int]:
        """The remaining workers that wait for others. Each writes down where it stands, unless it is stopped."""
        self._signal(signal.SIGQUIT)
        end = time.monotonic() + STACK_SECONDS
        while True:
            time.sleep(0.05)
            stacks = {rank: _read_stack(self.directory, rank) for rank in self.remaining}
            if time.monotonic() > end or all(stack.endswith("in <module>\n") for stack in stacks.values()):
                return {rank for rank, stack in stacks.items() if WAITING.search(stack)}

    def _kill(self, waiting: Collection[int] = ()) -> None:
        self._see_who_left()
        killed = self.remaining
        for rank in killed:
            self.workers[rank].kill()
        for rank in killed:
            self.workers[rank].join()
            code = self.workers[rank].exitcode
            assert code is not None
            self.left[rank] = Left(time.monotonic(), code, was_killed=True, was_waiting=rank in waiting)


# --- what came of it ----------------------------------------------------------------------------------------------


def how_it_ended(left: Mapping[int, Left], notes: Sequence[Mapping[str, Any]], requests: Sequence[int]) -> Ending:
    """left: rank -> how it has gone. notes: what `leave_failure` has left. requests: signals received, in their order.

    What fell first is the cause of a failure: an error of a worker's own, or a worker that was killed.
    """
    is_done = left[0].code == 0
    causes = [(note["time"], _said(note, notes), note["status"]) for note in notes if not note["lost_peer"]]
    told = {note["rank"] for note in notes}
    for rank, gone in left.items():
        is_late = is_done and gone.seen >= left[0].seen
        if gone.is_bad and not gone.was_killed and rank not in told and not is_late:
            causes.append((gone.seen - SEEN_SECONDS, _fell(rank, gone.code), 1))
    if not causes and not requests and not is_done:  # else they have lost each other in leaving
        causes = [(note["time"], note["message"], note["status"]) for note in notes]
    if causes:
        _, message, status = min(causes)
        return Ending(status, "failed", message)
    killed = _killed(left)
    if is_done:
        return Ending(0, message=killed and f"the run is done, but {killed}")
    if killed or left[0].is_bad:
        statuses = [*map(signals.exit_status, requests), *(gone.code for gone in left.values() if not gone.is_bad)]
        asked = ", then ".join(signal.Signals(signum).name for signum in requests[:2])
        return Ending(statuses[0], "interrupted", "; ".join(filter(None, [asked, killed])))
    return Ending(left[0].code)


def _said(note: Mapping[str, Any], notes: Sequence[Mapping[str, Any]]) -> str:
    """The message of a worker, with its rank where the main one has not met the same."""
    rank, message = note["rank"], note["message"]
    is_of_main = any(each["rank"] == 0 and each["message"] == message for each in notes)
    return message if is_of_main else f"rank {rank}: {message}"


def _fell(rank: int, code: int) -> str:
    if code > 0:
        return f"rank {rank} ended with exit status {code} and no message"
    remark = "; where it stood is in run.log" if -code in CRASHES else ""
    if -code == signal.SIGKILL:
        remark = ", which the system sends where memory runs out"
    return f"rank {rank} was killed by signal {-code} ({signal.strsignal(-code)}){remark}"


def _killed(left: Mapping[int, Left]) -> str:
    """Which workers we had to kill, '' for none; those that only waited are none that did not answer."""
    killed = sorted(rank for rank, gone in left.items() if gone.was_killed)
    silent = [rank for rank in killed if not left[rank].was_waiting] or killed
    if not silent:
        return ""
    text = f"{_ranks(silent)} did not answer and {'was' if len(silent) == 1 else 'were'} killed"
    if waiting := [rank for rank in killed if rank not in silent]:
        text += f", and so {'was' if len(waiting) == 1 else 'were'} {_ranks(waiting)}, waiting for the others"
    return f"{text} (where each stood is in run.log)"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


# --- what lies in the run directory -------------------------------------------------------------------------------


def _signs_of_life(directory: Path) -> object:
    """Changes with every file of the run that is written."""
    signs = []
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if name not in TRACKERS]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(os.path.join(folder, name))
                signs.append((folder, name, found.st_size, found.st_mtime_ns))
    return signs


def _stack_file(directory: Path, rank: int) -> Path:
    return directory / f".stack-{rank}.tmp"


def _read_stack(directory: Path, rank: int) -> str:
    """Where a worker stands, as faulthandler has written it; '' while it has not."""
    try:
        return _stack_file(directory, rank).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _keep_stacks(directory: Path, num_workers: int) -> None:
    with contextlib.suppress(OSError):  # a full disk is no reason to keep silent about the rest
        for rank in range(num_workers):
            if stack := _read_stack(directory, rank):
                with open(directory / "run.log", "a", encoding="utf-8") as log:
                    log.write(f"rank {rank} stood at\n{stack}")


def _remove_notes(directory: Path) -> None:
    for pattern in (".failure-*.json", ".stack-*.tmp"):
        for path in directory.glob(pattern):
            path.unlink()


# --- the workers --------------------------------------------------------------------------------------------------


def _worker(rank: int, work: Work, directory: Path, num_workers: int, port: int, parent: int) -> None:
    end_with_parent(parent)
    os.setpgrp()  # Ctrl-C reaches the launching process alone, which passes it on once
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_workers),
        LOCAL_WORLD_SIZE=str(num_workers),
        PRIVLM_SPAWNED="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers))
    )  # before torch is imported
    with open(_stack_file(directory, rank), "w", encoding="utf-8") as stack:
        faulthandler.enable(stack, all_threads=False)
        faulthandler.register(signal.SIGQUIT, stack, all_threads=False)
        status = work(directory, rank)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # a peer may still be in a collective: no orderly shutdown to wait for


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
