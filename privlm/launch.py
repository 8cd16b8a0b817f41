"""The life of a run: its directory is made, resumed, skipped or made anew; processes work on it; its result is kept.

One process works in place, several in privlm.workers. Workers know nothing of Hydra: they read config.yaml.
`python -m privlm.launch RUN_DIR` works on a directory that is there: on one that a sweep has queued, as the job of a
scheduler does, or on an interrupted one; `torchrun ... -m privlm.launch RUN_DIR` in several processes.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from privlm import content, files, flower_launch, identity, leftovers, processes, registry, rundir, workers
from privlm.errors import BudgetExhausted, BusyError, PrivLMError, UsageError
from privlm.job import Job, StoppedAfter
from privlm.masking import MaskedFormatter, mask_text
from privlm.privacy.ledger_paths import kept_accounts, put_aside
from privlm.privacy.run_account import read_account, resumable
from privlm.report.page import REPORT, write_report
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

    Raises UsageError for what is not at hand and for a privacy ledger that does not add up, before anything is written;
    ServiceError where a SuperLink (federated.engine=flower) does not answer.
    """
    _require_outer_world(config)
    prepared = Prepared.of(config, overrides, roles)
    if flower_launch.is_to_be_submitted(config):
        return _submit(prepared, force, introduce)
    directory = prepared.directory
    if not (directory / "status.json").exists():  # else all answers may be on record, and no key needed
        _require_key(config)

    def make() -> int | None:
        if force or rundir.is_cleared(directory):
            _clear(directory, prepared.run_hash)
        elif _has_ended(directory):
            return None
        return prepared.create()["restarts"]

    return _work_on(directory, make, lambda restarts: introduce(directory, restarts))


def _submit(prepared: Prepared, force: bool, introduce: Callable[[Path, int], None]) -> Ended:
    """Has a network take the run; where its directory is on this machine, one that is done is skipped here."""
    flower_launch.require()
    directory = prepared.directory
    if not force and is_done(directory):
        return Ended(directory, 0, skipped=True)
    of_run = prepared.config, prepared.overrides, prepared.roles
    status = flower_launch.submit(*of_run, force=force, begun=lambda: introduce(directory, 0))
    return Ended(directory, status, skipped=False)


def queue(prepared: Prepared, *, force: bool = False) -> None:
    """Writes the directory of a run that `take_up` begins later, in another process, from what stands there alone.

    A run that is done, or that another process works on, stays as it is.

    Raises UsageError as `start` does.
    """
    with contextlib.suppress(BusyError), rundir.locked(prepared.directory):
        if force or rundir.is_cleared(prepared.directory):
            _clear(prepared.directory, prepared.run_hash)
        elif _has_ended(prepared.directory):
            return
        _require_key(prepared.config)
        prepared.create(is_queued=True)


def take_up(directory: Path, *, allow_changed_code: bool = False, waits: bool = False) -> Ended:
    """Works on a queued or an interrupted run as its directory has it, and writes its page.

    waits: for another process that works on it; what that leaves is done then.

    Raises UsageError for what is no run directory, for other code than that which queued it, and for a privacy ledger
    that does not add up; BusyError where another process works on it.
    """
    if not (directory / "config.yaml").exists():
        raise UsageError(f"{directory} is no run directory: it holds no config.yaml")
    _require_outer_world(OmegaConf.load(directory / "config.yaml"))

    def begin() -> int | None:
        try:
            if _has_ended(directory):
                return None
            return rundir.begin(directory, allow_changed_code=allow_changed_code)["restarts"]
        except UsageError as error:  # whoever looks at the directory learns why nothing came of it
            rundir.set_state(directory, "failed", mask_text(str(error)))
            raise

    ended = _work_on(directory, begin, lambda restarts: None, on_busy=_say if waits else None)
    if processes.is_main() and not ended.skipped:
        write_page(directory)
    return ended


def _work_on(
    directory: Path,
    open_directory: Callable[[], int | None],
    introduce: Callable[[int], None],
    on_busy: Callable[[BusyError], None] | None = None,
) -> Ended:
    """Holds the directory and works on it. open_directory: its number of restarts, None for a finished run."""
    with contextlib.ExitStack() as stack:

        def decide() -> str:
            """What the main process decides for all: `work`, or `skip` for a finished run."""
            stack.enter_context(rundir.locked(directory, on_busy))
            restarts = open_directory()
            if restarts is None:
                return "skip"
            introduce(restarts)
            return "work"

        if processes.decide(decide) == "skip":
            return Ended(directory, 0, skipped=True)
        config: Any = OmegaConf.load(directory / "config.yaml")
        return Ended(directory, _execute(directory, config.trainer.processes), skipped=False)


def _say(busy: BusyError) -> None:
    print(f"waiting: {busy}", file=sys.stderr, flush=True)


def write_page(directory: Path) -> None:
    """Writes report.html; a page that cannot be written leaves the results as they are, and is told."""
    try:
        write_report(directory)
    except OSError as error:  # the same command writes it when there is room again
        print(f"privlm: cannot write {directory / REPORT}: {error.strerror}", file=sys.stderr)
    except UsageError as error:  # of a run that has failed
        print(f"privlm: no {REPORT}: {error}", file=sys.stderr)


@dataclass(frozen=True)
class Prepared:
    """A run before it begins: what it reads is at hand, and its directory is known.

    fingerprints, contents: see privlm.registry.TaskEntry.
    """

    config: DictConfig
    overrides: Sequence[str]
    roles: identity.Roles
    fingerprints: dict[str, str]
    contents: dict[str, content.Content]
    run_hash: str
    directory: Path

    @classmethod
    def of(cls, config: DictConfig, overrides: Sequence[str], roles: identity.Roles) -> Prepared:
        """Raises UsageError for what is not at hand."""
        entry = registry.entry_of(config)
        fingerprints = entry.inputs(config)
        contents = entry.contents(config, fingerprints)
        run_hash = identity.run_hash(config, fingerprints, roles)
        directory = identity.run_directory(config, run_hash, contents)
        return cls(config, overrides, roles, fingerprints, contents, run_hash, directory)

    def create(self, *, is_queued: bool = False) -> dict[str, Any]:
        """Makes the directory, or takes up that of an earlier try; its status. The caller holds the lock."""
        return rundir.create(
            self.directory,
            self.config,
            self.overrides,
            run_hash=self.run_hash,
            cell_hash=identity.cell_hash(self.config, self.roles, content.own(self.contents)),
            roles=self.roles,
            inputs=self.fingerprints,
            contents=self.contents,
            is_queued=is_queued,
        )


def directory_of(config: DictConfig, roles: identity.Roles) -> Path:
    """Where the run of a configuration is, or would be. Raises UsageError for what is not at hand."""
    return Prepared.of(config, (), roles).directory


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
    if kept := put_aside(directory):
        names = ", ".join(path.name for path in kept)
        print(f"kept the account of the removed run: {names}", file=sys.stderr, flush=True)
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


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m privlm.launch RUN_DIR`; returns the exit status of the run."""
    parser = argparse.ArgumentParser(prog="python -m privlm.launch", description="Works on a run directory.")
    parser.add_argument("directory", type=Path, metavar="RUN_DIR")
    parser.add_argument("--allow-changed-code", action="store_true", help="run by other code than queued the run")
    arguments = parser.parse_args(argv)
    try:
        return take_up(arguments.directory, allow_changed_code=arguments.allow_changed_code).status
    except PrivLMError as error:
        print(f"privlm: {mask_text(str(error))}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
