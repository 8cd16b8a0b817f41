"""From a run directory to processes that work on it, and back to an exit status.

One process works in place. Several are spawned here, or were started by torchrun or accelerate launch, whose world is
then joined. Workers know nothing of Hydra: they read config.yaml.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from privlm import files, registry
from privlm.errors import BudgetExhausted, PrivLMError
from privlm.job import Job
from privlm.signals import EXIT_INTERRUPTED, Interrupted
from privlm.tracking import open_tracker

logger = logging.getLogger("privlm")

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def outer_world() -> int | None:
    """Number of processes of an outer launcher (torchrun, accelerate launch), None when there is none."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return None


def _spawned() -> bool:
    """Whether this process is a worker that `_spawn` started."""
    return "PRIVLM_SPAWNED" in os.environ


def outer_rank() -> int:
    return int(os.environ.get("RANK", "0")) if outer_world() else 0


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


def execute(directory: Path, processes: int) -> int:
    """Works on a run directory made by privlm.rundir and returns the exit status of the run."""
    if outer_world() is not None:
        return work(directory, outer_rank())
    if processes == 1:
        return work(directory, 0)
    return _spawn(directory, processes)


def work(directory: Path, rank: int) -> int:
    """One process of a run, from config.yaml to its exit status. Every failure is in status.json and run.log."""
    job = Job(directory, rank)
    with _logging(directory, rank), job.stop.listening():
        try:
            entry = registry.tasks()[job.config.task.name]
            tracker = open_tracker(job.config, job.run_hash, directory) if job.is_main else None
            if tracker is not None:
                job.listeners.append(tracker.log)
            try:
                entry.run_function()(job.config, job)
            finally:
                if tracker is not None:
                    tracker.close()
        except Interrupted as stop:
            job.pause("interrupted", str(stop))
            return stop.exit_code
        except BudgetExhausted as stop:
            job.pause("interrupted", f"budget_exhausted: {stop}")
        except Exception as error:
            return _failed(job, error)
        finally:
            job.close()
    return 0


def _failed(job: Job, error: Exception) -> int:
    """Records a failure; the launching process, or this one if it is alone, tells it as the last line of its output."""
    if isinstance(error, PrivLMError):
        message, status = str(error), error.exit_code
    elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
        message, status = f"cannot write {error.filename or job.directory}: {error.strerror}; the last state is kept", 1
    else:
        message, status = f"{type(error).__name__}: {error} (traceback in {job.directory / 'run.log'})", 1
    with contextlib.suppress(OSError):  # the disk may be what failed: the message below must come out all the same
        if not isinstance(error, PrivLMError):
            with open(job.directory / "run.log", "a", encoding="utf-8") as log:
                log.write(f"process {job.rank}\n{traceback.format_exc()}")
        if _spawned():
            files.write_json(job.directory / f".failure-{job.rank}.json", {"time": time.time(), "message": message})
        else:
            job.pause("failed", message)
    if not _spawned():
        print(f"privlm: {message}", file=sys.stderr, flush=True)
    return status


@contextlib.contextmanager
def _logging(directory: Path, rank: int) -> Iterator[None]:
    """Messages of the main process go to run.log and stderr, warnings of libraries to run.log alone."""
    handlers: list[tuple[logging.Logger, logging.Handler]] = [
        (logger, logging.NullHandler()),
        (logging.getLogger("py.warnings"), logging.NullHandler()),
    ]
    if rank == 0:
        file = logging.FileHandler(directory / "run.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers = [(source, file) for source, _ in handlers] + [(logger, logging.StreamHandler(sys.stderr))]
    for source, handler in handlers:
        source.addHandler(handler)
        source.propagate = False
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for source, handler in handlers:
            source.removeHandler(handler)
            handler.close()


# --- several processes of our own -----------------------------------------------------------------------------------


def _spawn(directory: Path, processes: int) -> int:
    from torch import multiprocessing

    for old in directory.glob(".failure-*.json"):
        old.unlink()
    context = multiprocessing.get_context("spawn")
    arguments = (directory, processes, _free_port(), os.getpid())
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
    if status not in (0, *EXIT_INTERRUPTED):
        _tell_first_failure(directory, workers)
    return status


def _tell_first_failure(directory: Path, workers: list[Any]) -> None:
    """The failure that came first is the cause; the others lost their peer."""
    failures = [files.read_json(path) for path in directory.glob(".failure-*.json")]
    if failures:
        message = min(failures, key=lambda failure: failure["time"])["message"]
    else:
        killed = [
            f"process {rank} by signal {-worker.exitcode}" for rank, worker in enumerate(workers) if worker.exitcode < 0
        ]
        message = f"the run was killed: {', '.join(killed)}"
    Job(directory).pause("failed", message)
    print(f"privlm: {message}", file=sys.stderr, flush=True)


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


def _worker(rank: int, directory: Path, processes: int, port: int, parent: int) -> None:
    _die_with_parent(parent)
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


def _die_with_parent(parent: int) -> None:
    """Has the kernel end this process when the launching one is gone, however it went."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
