"""The answers of another run to the questions of the judge: what task.compare_with names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from privlm import files, rows
from privlm.errors import UsageError

from .questions import Question

EVALUATE = "evaluate"
"""The stage that answers."""

ANSWERS = "questions.jsonl"
"""The answers to the judge's questions, in the folder of that stage."""

SAME = ("task.max_new_tokens",)
"""What both runs must have in common, for the one not to be cut where the other is not."""


def answers_file(path: str) -> Path:
    """Where a finished run of this task keeps its answers. Raises UsageError for what is no such run."""
    folder = Path(path).expanduser()
    status = files.read_json(folder / "status.json")
    if status is None or not (folder / "config.yaml").is_file():
        raise UsageError(f"task.compare_with: {folder} is no run directory")
    found = folder / "stages" / EVALUATE / ANSWERS
    ended = status["stages"].get(EVALUATE, {}).get("state")
    if ended != "done" or not found.is_file():
        raise UsageError(
            f"task.compare_with: {folder} has not answered the questions of a judge: finish it, with task.questions"
        )
    return found


def fingerprint(path: str) -> str:
    """Of its answers. Raises UsageError as `answers_file`."""
    return f"sha256:{files.sha256_file(answers_file(path))}"


def read_answers(config: Any, questions: Sequence[Question]) -> list[str]:
    """The other run's answer to each question.

    Raises UsageError where it has answered in another way, or lacks a question.
    """
    file = answers_file(config.task.compare_with)
    run = file.parents[2]
    other = OmegaConf.load(run / "config.yaml")
    for key in SAME:
        mine, its = OmegaConf.select(config, key), OmegaConf.select(other, key)
        if mine != its:
            raise UsageError(f"task.compare_with: {run} has {key}={its}, and this run {mine}: give one like it")
    found = rows.answered(file, {question.item: question for question in questions})
    if len(found) < len(questions):
        raise UsageError(
            f"task.compare_with: {run} has answered {len(found)} of the {len(questions)} questions: give a run with "
            "the same task.questions"
        )
    return [line["text"].strip() for line in found.values()]
