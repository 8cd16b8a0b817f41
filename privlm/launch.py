"""The life of a run: its directory is made, resumed, skipped or made anew; processes work on it; its result is kept.

One process works in place, several in privlm.workers. Workers know nothing of Hydra: they read config.yaml.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from privlm import content, files, identity, leftovers, processes, registry, rundir, workers
from privlm.errors import BudgetExhausted, PrivLMError, UsageError
from privlm.job import Job, StoppedAfter
from privlm.masking import MaskedFormatter, mask_text
from privlm.privacy.run_account import kept_accounts, put_aside, read_account, resumable
from privlm.report.page import REPORT
from privlm.signals import Interrupted
from privlm.tracking import open_tracker

logger = logging.getLogger("privlm")

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


@dataclass(frozen=True)
class Ended:
    """How a start ended. status: exit status; skipped: the run was finished before."""

    directory: Path
    status: int
    skipped: bool


def start(
    config: DictConfig,
    overrides: Sequence[str],
    roles: identity.Roles,
    *,
    force: bool,
    introduce: Callable[[Path, int], None],
) -> Ended:
    """Runs a composed configuration in its directory: a new run, an interrupted one taken up, a finished one skipped.

    overrides: the words that gave the configuration. roles: of its keys in the hashes.
    force: a run that is there is removed first, but for the account of its releases.
    introduce: told the directory and the number of restarts before the work begins.

    Raises UsageError for what is not at hand and for a privacy ledger that does not add up, before anything is written.
    """
    _require_outer_world(config)
    fingerprints = registry.entry_of(config).inputs(config)
    contents = registry.entry_of(config).contents(config, fingerprints)
    run_hash = identity.run_hash(config, fingerprints, roles)
    directory = identity.run_directory(config, run_hash, contents)
    if not (directory / "status.json").exists():  # else all answers may be on record, and no key needed
        _require_key(config)
    with contextlib.ExitStack() as stack:

        def open_directory() -> str:
            """What the main process decides for all: `work`, or `skip` for a finished run."""
            stack.enter_context(rundir.locked(directory))
            if force or rundir.is_cleared(directory):
                _clear(directory, run_hash)
            elif _has_ended(directory):
                return "skip"
            status = rundir.create(
                directory,
                config,
                overrides,
                run_hash=run_hash,
                cell_hash=identity.cell_hash(config, roles, content.own(contents)),
                roles=roles,
                inputs=fingerprints,
                contents=contents,
            )
            introduce(directory, status["restarts"])
            return "work"

        if processes.decide(open_directory) == "skip":
            return Ended(directory, 0, skipped=True)
        return Ended(directory, _execute(directory, config.trainer.processes), skipped=False)


def directory_of(config: DictConfig, roles: identity.Roles) -> Path:
    """Where the run of a configuration is, or would be. Raises UsageError for what is not at hand."""
    entry = registry.entry_of(config)
    fingerprints = entry.inputs(config)
    run_hash = identity.run_hash(config, fingerprints, roles)
    return identity.run_directory(config, run_hash, entry.contents(config, fingerprints))


def is_done(directory: Path) -> bool:
    """Whether the run is done and its result is as it was written; a damaged one can be written again.

    Raises UsageError where status.json is damaged.
    """
    status = files.read_json(directory / "status.json")
    if status is None or status["state"] != "done":
        return False
    try:
        return files.read_json(directory / "result.json") is not None
    except files.DamagedFileError as damage:
        logger.warning("result.json is written again: %s", damage.reason)
        return False


def _has_ended(directory: Path) -> bool:
    """Whether the run is done; what is not to outlive its state, of a done or of a stopped run, goes on the way.

    Raises UsageError where its ledger does not add up, or is of an older version and would have to go on.
    """
    if is_done(directory):
        read_account(directory)
        leftovers.remove(directory, files.read_json(directory / "status.json"))
        return True
    resumable(directory)
    files.remove(directory / REPORT)  # it tells of a run that had stopped
    return False


def _execute(directory: Path, num_processes: int) -> int:
    """Works on a run directory made by privlm.rundir and returns the exit status of the run."""
    if processes.outer_world() is not None:
        processes.stop_with_launcher()
        return work(directory, processes.outer_rank())
    if num_processes == 1:
        return work(directory, 0)
    ending = workers.spawn(work, directory, num_processes)
    if ending.state:
        with contextlib.suppress(OSError):  # the disk may be what failed: the message comes out all the same
            Job(directory).pause(ending.state, ending.message)
    if ending.message:
        print(f"privlm: {ending.message}", file=sys.stderr, flush=True)
    return ending.status


def work(directory: Path, rank: int) -> int:
    """One process of a run, from config.yaml to its exit status. Every failure is in status.json and run.log."""
    job = Job(directory, rank)
    with _logging(directory, rank), job.stop.listening():
        try:
            with _tracked(job):
                registry.entry_of(job.config).run_function()(job.config, job)
            job.finish()
        except StoppedAfter as stage:
            job.pause("interrupted", f"task.until={stage}")
        except Interrupted as stop:
            job.pause("interrupted", str(stop))
            return stop.exit_code
        except BudgetExhausted as stop:
            job.pause("interrupted", f"budget_exhausted: {stop}")
        except Exception as error:
            if (signum := job.stop.signum) and processes.is_lost_peer(error):  # which has left before this one
                job.pause("interrupted", f"{Interrupted(signum)}, and another process had gone before the checkpoint")
                return Interrupted(signum).exit_code
            return _failed(job, error)
        finally:
            job.close()
            job.world.leave()
    return 0


@contextlib.contextmanager
def _tracked(job: Job) -> Iterator[None]:
    """The run's tracker hears every metrics row of the main process."""
    if not job.is_main:
        yield
        return
    tracker = open_tracker(job.config, job.run_hash, job.directory)
    job.listeners.append(tracker.log)
    try:
        yield
    finally:
        tracker.close()


def _failed(job: Job, error: Exception) -> int:
    """Records a failure; the launching process, or this one if it is alone, tells it as the last line of its output."""
    if isinstance(error, PrivLMError):
        message, status = str(error), error.exit_code
    elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
        message, status = f"cannot write {error.filename or job.directory}: {error.strerror}; the last state is kept", 1
    else:
        message, status = f"{type(error).__name__}: {error} (traceback in {job.directory / 'run.log'})", 1
        if processes.is_lost_peer(error):
            message = f"another process of the run has gone, whose own last lines say why: {message}"
    message = mask_text(message)
    with contextlib.suppress(OSError):  # the disk may be what failed: the message below must come out all the same
        if not isinstance(error, PrivLMError):
            with open(job.directory / "run.log", "a", encoding="utf-8") as log:
                log.write(f"rank {job.rank} has failed\n{mask_text(traceback.format_exc())}")
        if processes.is_spawned():
            lost_peer = processes.is_lost_peer(error)
            workers.leave_failure(job.directory, job.rank, message, status=status, lost_peer=lost_peer)
        else:
            job.pause("failed", message)
    if not processes.is_spawned():
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
        file.setFormatter(MaskedFormatter("%(asctime)s %(levelname)s %(message)s"))
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setFormatter(MaskedFormatter("%(message)s"))
        handlers = [(source, file) for source, _ in handlers] + [(logger, terminal)]
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


def _clear(directory: Path, run_hash: str) -> None:
    """Removes a run but for the account of its releases. Where it was killed half way, the next start does the rest."""
    if not rundir.mark_cleared(directory, run_hash):
        return
    if (kept := put_aside(directory)) is not None:
        print(f"kept the account of the removed run: {kept.name}", file=sys.stderr, flush=True)
    rundir.empty(directory, keep={path.name for path in kept_accounts(directory)})


def _require_key(config: DictConfig) -> None:
    """Raises UsageError, before anything is written, where a server is to be asked and its key is not set."""
    if (llm := config.get("llm")) is not None and llm.backend == "endpoint":
        from privlm.llm.endpoint.connection import api_key

        api_key(llm)


def _require_outer_world(config: Any) -> None:
    size = processes.asked_for()
    if size is not None and size != config.trainer.processes:
        did = "started" if processes.outer_world() else "was asked for"
        raise UsageError(
            f"trainer.processes={config.trainer.processes}, but the outer launcher {did} {size}: leave "
            "trainer.processes out, or give it that number"
        )
