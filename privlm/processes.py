"""The processes of a run: those that an outer launcher started, and those that we start ourselves."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from privlm import files, launchers
from privlm.errors import PrivLMError
from privlm.signals import EXIT_INTERRUPTED

Work = Callable[[Path, int], int]
"""work(run directory, rank): one process of a run; its exit status."""


def outer_world() -> int | None:
    """Number of processes of an outer launcher (torchrun, say), None when there is none.

    Raises UsageError where one has started several processes that are no world (privlm.launchers).
    """
    world = launchers.outer_world()
    return None if world is None else world[1]


def asked_for() -> int | None:
    """Number of processes that an outer launcher was asked for, whether it started them or they are ours to start."""
    return outer_world() or launchers.accelerate_processes()


def is_spawned() -> bool:
    """Whether this process is a worker that `spawn` started."""
    return "PRIVLM_SPAWNED" in os.environ


def outer_rank() -> int:
    world = launchers.outer_world()
    return 0 if world is None else world[0]


def is_main() -> bool:
    return outer_rank() == 0


def decide(function: Callable[[], str]) -> str:
    """What `function` returns in the main process, told to all processes of an outer launcher.

    When it raises there, the others end quietly with the same exit status.
    """
    if outer_world() is None:
        return function()
    from accelerate.utils import broadcast_object_list

    from privlm.training.accelerator import join_world

    join_world()
    message: list[Any] = [None]
    error: PrivLMError | None = None
    if is_main():
        try:
            message = [function()]
        except PrivLMError as raised:
            error, message = raised, [raised.exit_code]
    decision = broadcast_object_list(message)[0]
    if error is not None:
        raise error
    if isinstance(decision, int):
        sys.exit(decision)
    return decision


def spawn(work: Work, directory: Path, processes: int) -> tuple[int, str]:
    """Does `work` in several processes of our own; returns the exit status and, for a failure, what came first.

    Signals are passed on; when one worker has failed, the others are ended.
    """
    from torch import multiprocessing

    for old in directory.glob(".failure-*.json"):
        old.unlink()
    context = multiprocessing.get_context("spawn")
    arguments = (work, directory, processes, _free_port(), os.getpid())
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(processes)]
    for worker in workers:
        worker.start()

    def forward(signum: int, frame: object) -> None:
        for worker in workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, signum)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = _wait(workers)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status, "" if status in (0, *EXIT_INTERRUPTED) else _first_failure(directory, workers)


def leave_failure(directory: Path, rank: int, message: str) -> None:
    """What a worker that fails leaves for the process that started it."""
    files.write_json(directory / f".failure-{rank}.json", {"time": time.time(), "message": message})


def _first_failure(directory: Path, workers: Sequence[BaseProcess]) -> str:
    """The failure that came first is the cause; the others lost their peer."""
    failures = [files.read_json(path) for path in directory.glob(".failure-*.json")]
    if failures:
        return min(failures, key=lambda failure: failure["time"])["message"]
    codes = [worker.exitcode or 0 for worker in workers]
    killed = [f"process {rank} by signal {-code}" for rank, code in enumerate(codes) if code < 0]
    return f"the run was killed: {', '.join(killed)}"


def _wait(workers: list[Any]) -> int:
    """The first exit status that is not 0, or 0; the others are ended when one has failed."""
    from multiprocessing.connection import wait

    waiting = list(workers)
    status = 0
    while waiting:
        ready = wait([worker.sentinel for worker in waiting])
        for worker in [worker for worker in waiting if worker.sentinel in ready]:
            waiting.remove(worker)
            worker.join()
            status = status or _exit_status(worker.exitcode)
        if status not in (0, *EXIT_INTERRUPTED):
            for worker in waiting:
                worker.kill()
    return status


def _exit_status(code: int) -> int:
    return code if code >= 0 else 128 - code


def _worker(rank: int, work: Work, directory: Path, processes: int, port: int, parent: int) -> None:
    end_with_parent(parent)
    os.setpgrp()  # Ctrl-C reaches the launching process alone, which passes it on once
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        PRIVLM_SPAWNED="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))
    )  # before torch is imported
    status = work(directory, rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a peer may still be in a collective: no orderly shutdown to wait for


def end_with_parent(parent: int) -> None:
    """Has the kernel end this process when the launching one is gone, however it went."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
