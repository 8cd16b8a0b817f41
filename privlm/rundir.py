"""A run directory before its run: made, or taken up from an earlier try, and held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from privlm import environment, files
from privlm.content import Content
from privlm.errors import PrivLMError, UsageError
from privlm.identity import Roles
from privlm.masking import mask_text

SCHEMA = 1
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
) -> dict[str, Any]:
    """Makes the run directory, or takes up that of an earlier try; returns its status.

    The caller holds the lock. roles: of the keys in the hashes, for whoever reads the directory. inputs: fingerprints
    of what the run reads. contents: what is behind the names of its data and weights.

    Raises UsageError when the directory cannot be written, or its status.json is damaged.
    """
    try:
        for path in files.unfinished(directory):
            files.remove(path)
        status = files.read_json(directory / "status.json")
        if status is None:
            status = {"schema": SCHEMA, "restarts": 0, "started": time.time(), "stages": {}}
        else:
            status["restarts"] += 1
        status |= {
            "state": "running",
            "reason": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "heartbeat": time.time(),
            "run_hash": run_hash,
            "cell_hash": cell_hash,
            **asdict(roles),
            "inputs": dict(inputs),
            "content": {group: asdict(content) for group, content in (contents or {}).items()},
        }
        files.write_text(directory / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        files.write_text(directory / "overrides.txt", "".join(f"{mask_text(word)}\n" for word in overrides))
        files.write_json(directory / "env.json", environment.describe())
        if files.read_intact_json(directory / "privacy.json") is None:  # a damaged one is told anew by the stages
            trains = config.get("model") is not None
            # A private run replaces it by its plan.
            files.write_json(directory / "privacy.json", {"mechanism": "none"} | ({} if trains else {"trains": False}))
        write_status(directory, status)
    except OSError as error:
        raise UsageError(f"cannot write the run directory {directory}: {error.strerror}; set runs=FOLDER") from error
    return status


def write_status(directory: Path, status: Mapping[str, Any]) -> None:
    """Replaces status.json. What a stage has said is sealed, since it is read back; the state around it is not."""
    stages = {name: files.sealed(record) for name, record in status["stages"].items()}
    files.write_json(directory / "status.json", {**status, "stages": stages}, seal=False)


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


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the run directory for this process; a second one is told who holds it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held open as long as the lock)
    except OSError as error:
        raise UsageError(f"cannot write the run directory {directory}: {error.strerror}; set runs=FOLDER") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise PrivLMError(f"{directory} is in use by {holder}; wait for it or stop it") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
