"""The guide that another run has aligned: what task.guide_run names."""

from __future__ import annotations

from pathlib import Path

from privlm import files
from privlm.errors import UsageError
from privlm.rundir import MODEL, TRAINING

ALIGN = "align"
"""The stage that trains the guide."""


def trained_folder(path: str | Path) -> Path:
    """Where a finished run keeps its guide. Raises UsageError for what is no such run."""
    folder = Path(path).expanduser()
    status = files.read_json(folder / "status.json")
    if status is None:
        raise UsageError(f"task.guide_run: {folder} is no run directory")
    if status["state"] != "done":
        raise UsageError(f"task.guide_run: {folder} is {status['state']}, not done: finish it first")
    trained = folder / "stages" / ALIGN / MODEL
    if not (trained / TRAINING).is_file():
        raise UsageError(f"task.guide_run: {folder} has aligned no guide: there is no {trained / TRAINING}")
    return trained


def fingerprint(path: str) -> str:
    """Of the aligned weights. Raises UsageError as `trained_folder`."""
    return f"sha256:{files.sha256_file(trained_folder(path) / TRAINING)}"


def require_same_data(path: str, fingerprint_here: str) -> None:
    """Raises UsageError where the guide has learnt from other data: what it may have seen is then not known here."""
    learnt = files.read_json(Path(path).expanduser() / "status.json")["inputs"].get("data")
    if learnt != fingerprint_here:
        raise UsageError(
            f"task.guide_run: {path} has learnt from other data than this run reads, so that nobody knows whether its "
            "guide has seen the test items: give a run on the same data"
        )
