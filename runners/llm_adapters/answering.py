"""Asks the model of a run the questions of each set.

Answers are kept line by line, so that a run that is killed goes on in the middle of a set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privlm.job import Stage
from privlm.llm.local import answering
from privlm.llm.local.answering import Asked
from privlm.llm.types import Sampling
from privlm.models.loaded import Loaded

from .prompts import Prompts, scored_text
from .questions import Question


@dataclass(frozen=True)
class Reply:
    """What is scored of an answer. status: ok, length (cut at task.max_new_tokens) or empty."""

    text: str
    status: str

    @classmethod
    def of(cls, text: str, status: str) -> Reply:
        scored = scored_text(text)
        return cls(scored, status if scored else "empty")


Replies = dict[str, list[Reply]]
"""Set -> the answers to its questions, in their order."""


def item_of(number: int, question: Question) -> str:
    """The name of a question in the files of answers; another question has another one."""
    return f"{number}-{question.digest}"


class Respondent:
    """A model with its prompts and its way of decoding."""

    def __init__(self, loaded: Loaded, prompts: Prompts, task: Any) -> None:
        self.prompts = prompts
        sampling = Sampling(task.max_new_tokens, num_beams=task.num_beams)
        self._respondent = answering.Respondent(loaded, sampling, limited_by="task.max_new_tokens")

    def require_room(self, tests: Mapping[str, Sequence[Question]]) -> None:
        """Raises UsageError, naming file and row, for a question that the model cannot read and answer."""
        self._respondent.require_room(self._asked(question) for questions in tests.values() for question in questions)

    def answer_all(self, stage: Stage, tests: Mapping[str, Sequence[Question]]) -> Replies:
        """The answers to each set, those of earlier tries included; kept in the stage's folder."""
        return {name: self._answer_set(stage, name, questions) for name, questions in tests.items()}

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """The answers to questions, kept nowhere."""
        found = dict(self._respondent.answers([self._asked(question) for question in questions]))
        return [Reply.of(found[place].text, found[place].status) for place in range(len(questions))]

    def _asked(self, question: Question) -> Asked:
        return Asked(self.prompts.evaluation(question), question.where)

    def _answer_set(self, stage: Stage, name: str, questions: Sequence[Question]) -> list[Reply]:
        items = {item_of(number, question): self._asked(question) for number, question in enumerate(questions)}
        lines = self._respondent.keep_answers(stage, f"{name}.jsonl", items)
        return [Reply.of(line["text"], line["status"]) for line in lines]
