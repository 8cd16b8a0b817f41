"""The warm start of another run: what task.start_run names, so that arms that are compared begin from one model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from privlm import files
from privlm.errors import UsageError
from privlm.rundir import MODEL

STAGES = ("warm_start_short", "warm_start_lines")
"""Stages of the warm start; the last one that a run has holds its model."""

SAME = ("seed", "model.family", "model.height", "model.norm", "model.attention", "task.server.fonts")
"""What must be the same in the run that begins with it, beside task.warm_start."""


def start_folder(path: str) -> Path:
    """Where a finished run keeps the model of its warm start. Raises UsageError for what is no such run."""
    run = Path(path).expanduser()
    status = files.read_json(run / "status.json")
    if status is None:
        raise UsageError(f"task.start_run: {run} is no run directory")
    if status["state"] != "done":
        raise UsageError(f"task.start_run: {run} is {status['state']}, not done: finish it first")
    found = [run / "stages" / stage / MODEL for stage in STAGES if (run / "stages" / stage / MODEL).is_dir()]
    if not found:
        raise UsageError(f"task.start_run: {run} has no warm start of its own: give the run that made it")
    return found[-1]


def fingerprint(config: Any) -> str:
    """Of the model that a run of this configuration begins with.

    Raises UsageError as `start_folder`, and where the warm start was another than the one that `config` describes: the
    run would then stand in tables for what it is not.
    """
    path = config.task.start_run
    folder = start_folder(path)
    theirs = OmegaConf.load(Path(path).expanduser() / "config.yaml")
    for key in (*SAME, *(f"task.warm_start.{key}" for key in config.task.warm_start)):
        there, here = (OmegaConf.select(one, key) for one in (theirs, config))
        if there != here:
            raise UsageError(
                f"task.start_run: {path} has {key}={there}, and here it is {here}: set it so, or give another run"
            )
    digests = "".join(files.sha256_file(file) for file in sorted(folder.glob("*.safetensors")))
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"
