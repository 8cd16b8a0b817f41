"""A run directory before its run: made, or taken up from an earlier try, and held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from privlm import environment, files
from privlm.content import Content
from privlm.errors import BusyError, UsageError
from privlm.identity import Roles
from privlm.masking import mask_text

SCHEMA = 1
LOOK_AGAIN = 0.5
"""Seconds between two looks at a lock that another process holds."""
MODEL = "model"
"""Folder of a stage that keeps what it has trained."""
TRAINING = "training.json"
"""Beside the files of the model: how training ended, and the digest of each file."""
CLEARED = "cleared"
"""State of a directory whose content is being removed, to make the run anew."""


def create(
    directory: Path,
    config: DictConfig,
    overrides: Sequence[str],
    *,
    run_hash: str,
    cell_hash: str,
    roles: Roles,
    inputs: Mapping[str, str],
    contents: Mapping[str, Content] | None = None,
    is_queued: bool = False,
) -> dict[str, Any]:
    """Makes the run directory, or takes up that of an earlier try; returns its status.

    The caller holds the lock. roles: of the keys in the hashes, for whoever reads the directory. inputs: fingerprints
    of what the run reads. contents: what is behind the names of its data and weights.
    is_queued: it is written for a process that `begin`s it later, by the same code.

    Raises UsageError when the directory cannot be written, or its status.json is damaged.
    """
    try:
        for path in files.unfinished(directory):
            files.remove(path)
        status = files.read_json(directory / "status.json")
        status = _queued(status) if is_queued else _started(status)
        if not is_queued:  # typed anew: what queued it before binds nobody
            status = {key: value for key, value in status.items() if key not in ("code", "command")}
        status |= {
            "run_hash": run_hash,
            "cell_hash": cell_hash,
            **asdict(roles),
            "inputs": dict(inputs),
            "content": {group: asdict(content) for group, content in (contents or {}).items()},
        }
        files.write_text(directory / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        files.write_text(directory / "overrides.txt", "".join(f"{mask_text(word)}\n" for word in overrides))
        if not is_queued:
            files.write_json(directory / "env.json", environment.describe())
        if files.read_intact_json(directory / "privacy.json") is None:  # a damaged one is told anew by the stages
            trains = config.get("model") is not None
            # A private run replaces it by its plan.
            files.write_json(directory / "privacy.json", {"mechanism": "none"} | ({} if trains else {"trains": False}))
        write_status(directory, status)
    except OSError as error:
        raise UsageError(f"cannot write the run directory {directory}: {error.strerror}; set runs=FOLDER") from error
    return status


def begin(directory: Path, *, allow_changed_code: bool) -> dict[str, Any]:
    """Takes up a queued or an interrupted run as its directory has it; returns its status. The caller holds the lock.

    Raises UsageError for what is no run directory, and where the code is not that of the time when it was queued.
    """
    status = files.read_json(directory / "status.json")
    if status is None or not (directory / "config.yaml").exists():
        raise UsageError(f"{directory} is no run directory: it holds no status.json and config.yaml")
    queued_by, now = status.get("code"), environment.code_identity()
    if queued_by is not None and queued_by != now and not allow_changed_code:
        raise UsageError(
            f"{directory.name} was queued by other code ({_code(queued_by)}) than there is now ({_code(now)}): restore "
            "that, repeat the command that queued it, or run it all the same with sweep.allow_changed_code=true"
        )
    for path in files.unfinished(directory):
        files.remove(path)
    status = _started(status)
    typed = {"command": status["command"]} if "command" in status else {}  # when it was queued
    files.write_json(directory / "env.json", environment.describe() | typed)
    write_status(directory, status)
    return status


def _queued(status: dict[str, Any] | None) -> dict[str, Any]:
    status = status or {"schema": SCHEMA, "restarts": 0, "started": time.time(), "stages": {}}
    return (
        status
        | {"state": "queued", "reason": None, "queued": time.time(), "timeouts": 0}
        | {
            "code": environment.code_identity(),
            "command": environment.command(),
        }
    )


def _started(status: dict[str, Any] | None) -> dict[str, Any]:
    """Status of a run that this process works on from now on; `restarts` counts the tries before."""
    if status is None:
        status = {"schema": SCHEMA, "restarts": 0, "started": time.time(), "stages": {}}
    elif "pid" in status:  # else it was queued and never begun
        status["restarts"] += 1
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()}
    owner["begun"] = time.time()  # this try; `started` is when the directory was made, which may have been queued
    return {key: value for key, value in status.items() if key != "queued"} | {
        "state": "running",
        "reason": None,
        **owner,
    }


def _code(identity: Mapping[str, str | None]) -> str:
    commit, diff = identity["commit"], identity["diff"]
    return (
        f"commit {commit[:10]}{f' with changes {diff[:10]}' if diff else ''}"
        if commit
        else f"version {identity['version']}"
    )


def write_status(directory: Path, status: Mapping[str, Any]) -> None:
    """Replaces status.json. What a stage has said is sealed, since it is read back; the state around it is not."""
    stages = {name: files.sealed(record) for name, record in status["stages"].items()}
    files.write_json(directory / "status.json", {**status, "stages": stages}, seal=False)


def set_state(directory: Path, state: str, reason: str | None) -> None:
    """Says from outside what became of a run that no process works on. A damaged status.json stays as it is."""
    if (status := files.read_intact_json(directory / "status.json")) is not None:
        write_status(directory, status | {"state": state, "reason": reason})


def queue_again(directory: Path) -> None:
    """Of a run that has stopped: it waits for a process again. The caller holds the lock."""
    if (status := files.read_intact_json(directory / "status.json")) is not None and status["state"] != "done":
        write_status(directory, status | {"state": "queued", "reason": None, "queued": time.time(), "timeouts": 0})


def leave_queue(directory: Path, reason: str) -> None:
    """Of a queued run: it waits no more. One that was never begun leaves nothing. The caller holds the lock."""
    status = files.read_intact_json(directory / "status.json")
    if status is None or status["state"] != "queued":
        return
    if "pid" in status:
        write_status(directory, status | {"state": "interrupted", "reason": reason})
    else:
        files.remove(directory)


def mark_cleared(directory: Path, run_hash: str) -> bool:
    """Says of a run that what it has left is being removed; whether there is one. The caller holds the lock.

    Killed half way, it leaves a directory that says so (`is_cleared`), and no run that could be taken for a whole one.
    """
    status = directory / "status.json"
    if not status.exists():
        return False
    write_status(directory, {"schema": SCHEMA, "state": CLEARED, "reason": None, "run_hash": run_hash, "stages": {}})
    return True


def empty(directory: Path, keep: Collection[str]) -> None:
    """Removes all that a run has left but for the files to `keep`, for one that starts from nothing."""
    status = directory / "status.json"
    for entry in directory.iterdir():
        if entry.name not in (".lock", status.name, *keep):
            files.remove(entry)
    files.remove(status)


def is_cleared(directory: Path) -> bool:
    """Whether `clear` was killed half way."""
    status = files.read_intact_json(directory / "status.json")
    return status is not None and status["state"] == CLEARED


def count(directory: Path, what: str) -> int:
    """Adds one to a number that status.json keeps of the tries of a run; the number then."""
    status = files.read_json(directory / "status.json")
    write_status(directory, status | {what: status.get(what, 0) + 1})
    return status.get(what, 0) + 1


@contextlib.contextmanager
def locked(directory: Path, on_busy: Callable[[BusyError], None] | None = None) -> Iterator[None]:
    """Holds the run directory for this process; a second one is told who holds it.

    on_busy: called with that before each new try, where the lock is to be waited for.

    Raises BusyError where another process holds it and it is not waited for, UsageError where it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held open as long as the lock)
    except OSError as error:
        raise UsageError(f"cannot write the run directory {directory}: {error.strerror}; set runs=FOLDER") from error
    with file:
        while (busy := _lock(file, directory)) is not None:
            if on_busy is None:
                raise busy
            on_busy(busy)
            time.sleep(LOOK_AGAIN)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def holder(directory: Path) -> str | None:
    """`process N on HOST` that holds the directory now, None where nobody does. Nothing is written."""
    try:
        file = open(directory / ".lock", encoding="utf-8")  # noqa: SIM115
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # two that look do not see each other
        except BlockingIOError:
            return file.read().strip() or "another process"
        return None


def _lock(file: TextIO, directory: Path) -> BusyError | None:
    """None where the lock was free, and is held now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        return BusyError(f"{directory} is in use by {holder}; wait for it or stop it")
    return None
