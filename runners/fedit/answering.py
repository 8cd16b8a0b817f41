"""The model of a run answers held-out rows, and the questions of the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from privlm.data.causal_lm import CausalSplit
from privlm.data.instructions import Instruction, Template
from privlm.errors import UsageError
from privlm.job import Stage
from privlm.llm.local.answering import Asked, Respondent
from privlm.llm.types import Sampling
from privlm.models.loaded import Loaded

from .compared import ANSWERS
from .questions import Question


@dataclass(frozen=True)
class Reply:
    """status: ok, length (cut at task.max_new_tokens) or empty."""

    text: str
    status: str

    @classmethod
    def of(cls, text: str, status: str) -> Reply:
        kept = text.strip()
        return cls(kept, status if kept else "empty")


def respondent(loaded: Loaded, task: Any) -> Respondent:
    """It answers greedily, by the weights that `loaded` has when it is first asked."""
    return Respondent(loaded, Sampling(task.max_new_tokens), limited_by="task.max_new_tokens")


def require_room(config: Any, respondent: Respondent) -> None:
    """Raises UsageError where the model has no room for an answer to the longest prompt of a row that it can learn."""
    limit, length, answer = respondent.window, config.model.max_length, config.task.max_new_tokens
    if limit is not None and length + answer > limit:
        raise UsageError(
            f"task.max_new_tokens={answer}: with model.max_length={length} it exceeds the {limit:,} tokens that "
            f"{config.model.name} reads: lower one of them"
        )


def answered_rows(test: Sequence[Instruction], encoded: CausalSplit, number: int | None) -> list[Instruction]:
    """The held-out rows that are answered: of those whose prompt the model reads whole, one of each category in turn.

    encoded: the rows of `test` that are left. number: of rows at most; None: all.
    """
    by_category: dict[str | None, list[Instruction]] = {}
    for place in encoded.kept:
        by_category.setdefault(test[place].category, []).append(test[place])
    turns = zip_longest(*by_category.values())
    return [row for turn in turns for row in turn if row is not None][:number]


def asked(questions: Sequence[Question], template: Template) -> dict[str, Asked]:
    """Item -> question, laid out as the rows that the model has learnt."""
    return {
        question.item: Asked(template.prompt(Instruction(question.text, "", "")), question.where)
        for question in questions
    }


def answer_rows(stage: Stage, respondent: Respondent, rows: Sequence[Instruction], template: Template) -> list[Reply]:
    """The answers to held-out rows, those of earlier tries included."""
    items = {str(place): Asked(template.prompt(row), f"test row {place + 1}") for place, row in enumerate(rows)}
    return _replies(respondent, stage, "answers.jsonl", items) if items else []


def answer_questions(
    stage: Stage, respondent: Respondent, questions: Sequence[Question], template: Template
) -> list[Reply]:
    """The same for the questions of the judge."""
    items = asked(questions, template)
    return _replies(respondent, stage, ANSWERS, items) if items else []


def _replies(respondent: Respondent, stage: Stage, path: str, items: dict[str, Asked]) -> list[Reply]:
    return [Reply.of(line["text"], line["status"]) for line in respondent.keep_answers(stage, path, items)]
