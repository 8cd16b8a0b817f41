"""Asks the model of a run the questions of each set.

Answers are kept line by line, so that a run that is killed goes on in the middle of a set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from peft import PeftModel
from torch import nn

from privlm.errors import UsageError
from privlm.job import Stage
from privlm.llm.local.backend import LocalBackend
from privlm.llm.local.scoring import Encoder
from privlm.llm.types import Answer, GenerateRequest, Sampling
from privlm.models.loaded import Loaded
from privlm.rows import Keep

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
        self.loaded = loaded
        self.prompts = prompts
        self.sampling = Sampling(task.max_new_tokens, num_beams=task.num_beams)

    @cached_property
    def _backend(self) -> LocalBackend:
        return LocalBackend.of(self.loaded)

    def require_room(self, tests: Mapping[str, Sequence[Question]]) -> None:
        """Raises UsageError, naming file and row, for a question that the model cannot read and answer."""
        config: Any = self.loaded.model.config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        encoder = Encoder(self.prompts.tokenizer, None)
        for question in (question for questions in tests.values() for question in questions):
            length = len(encoder.begin(self.prompts.evaluation(question)))
            if limit is not None and length + self.sampling.max_tokens > limit:
                raise UsageError(
                    f"{question.where}: the prompt of field 'instruction' has {length:,} tokens, which with "
                    f"task.max_new_tokens={self.sampling.max_tokens} exceed the {limit:,} that the model reads: "
                    "shorten the question, or lower task.max_new_tokens"
                )

    def answer_all(self, stage: Stage, tests: Mapping[str, Sequence[Question]]) -> Replies:
        """The answers to each set, those of earlier tries included; kept in the stage's folder."""
        return {name: self._answer_set(stage, name, questions) for name, questions in tests.items()}

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """(place, answer), each when it is finished."""
        requests = [GenerateRequest(self.prompts.evaluation(question), self.sampling) for question in questions]
        for place, reply in self._backend.ask(requests):
            assert isinstance(reply, Answer)
            yield place, reply

    def _answer_set(self, stage: Stage, name: str, questions: Sequence[Question]) -> list[Reply]:
        items = {item_of(number, question): question for number, question in enumerate(questions)}

        def answer(open_items: Mapping[str, Question], keep: Keep) -> None:
            names = list(open_items)
            for place, reply in self.replies(list(open_items.values())):
                if reply.status == "client_error":
                    raise UsageError(f"{open_items[names[place]].where}: {reply.detail}")
                keep(names[place], {"text": reply.text, "status": reply.status, "tokens": reply.completion_tokens})

        return [Reply.of(line["text"], line["status"]) for line in stage.rows(f"{name}.jsonl", items, answer)]


@contextlib.contextmanager
def untrained(model: nn.Module) -> Iterator[None]:
    """Within it a model that has not been trained yet is its base: an adapter may begin elsewhere than at nothing."""
    with model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext():
        yield
