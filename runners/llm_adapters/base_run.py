"""The answers of the untrained model that another run has given: what task.base_run names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from privlm import files, rows
from privlm.errors import UsageError

SAME = (
    "model.name",
    "model.dtype",
    "task.prompt_style",
    "task.prompt_mismatch",
    "task.max_new_tokens",
    "task.num_beams",
)
"""What both runs must have in common for their answers to be comparable."""


def answers_folder(path: str) -> Path:
    """Where a finished run keeps the answers of its untrained model.

    Raises UsageError for what is no finished run of this task, and for one that has no such answers.
    """
    folder = Path(path).expanduser()
    status = files.read_json(folder / "status.json")
    if status is None or not (folder / "config.yaml").is_file():
        raise UsageError(f"task.base_run: {folder} is no run directory")
    if status["state"] != "done":
        raise UsageError(f"task.base_run: {folder} is {status['state']}, not done: finish it first")
    config = _config_of(folder)
    is_untrained = OmegaConf.select(config, "adapter.name") == "none"
    answers = folder / "stages" / ("evaluate" if is_untrained else "base")
    if not any(file.stem != "held_out" for file in answers.glob("*.jsonl")):
        raise UsageError(
            f"task.base_run: {folder} has no answers of an untrained model: give a run with adapter=none, or one with "
            "task.evaluate_base=true"
        )
    return answers


def fingerprint(path: str) -> str:
    """Of all its answers. Raises UsageError as `answers_folder`."""
    found = sorted(answers_folder(path).glob("*.jsonl"))
    return f"sha256:{hashlib.sha256(''.join(map(files.sha256_file, found)).encode()).hexdigest()}"


def read_answers(config: Any, items: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[str, str]]]:
    """Set -> (text, status) of the base's answer to each question.

    items: set -> the names of its questions in the files of answers.

    Raises UsageError where the other run asked another model or in another way, or lacks a question.
    """
    folder = answers_folder(config.task.base_run)
    run = folder.parents[1]
    other = _config_of(run)
    for key in SAME:
        mine, its = OmegaConf.select(config, key), OmegaConf.select(other, key)
        if mine != its:
            raise UsageError(f"task.base_run: {run} has {key}={its}, and this run {mine}: give one like it")
    found: dict[str, list[tuple[str, str]]] = {}
    for name, wanted in items.items():
        lines = rows.answered(folder / f"{name}.jsonl", dict.fromkeys(wanted))
        if len(lines) < len(wanted):
            raise UsageError(
                f"task.base_run: {run} has answered {len(lines)} of the {len(wanted)} questions of {name}: "
                "give a run on the same data"
            )
        found[name] = [(line["text"], line["status"]) for line in lines.values()]
    return found


def _config_of(folder: Path) -> Any:
    return OmegaConf.load(folder / "config.yaml")
