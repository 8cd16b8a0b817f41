"""The black box answers each question, the background of a guide in its prompt: stage `read`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from privlm.errors import UsageError
from privlm.job import Stage
from privlm.llm.client import LanguageModel
from privlm.llm.tokens import estimated_tokens
from privlm.llm.types import GenerateRequest

from .answers import read_answer
from .asking import Asking, Prompt, item_of
from .backgrounds import Background
from .outbound import Outbound
from .prompts import read_prompt
from .questions import Question


@dataclass(frozen=True)
class Reading:
    """The answer to one question.

    answer: as it was read, None where nothing could be. status: ok, length, empty, refused, blocked. is_cut: the
    background did not fit. background_tokens: of what was sent. line: what it has cost, as of `Asking`.
    """

    answer: str | None
    status: str
    is_cut: bool
    background_tokens: int
    line: dict[str, Any]


def read(
    stage: Stage,
    guide: str,
    questions: Sequence[Question],
    backgrounds: Sequence[Background],
    reader: LanguageModel,
    border: Outbound,
) -> tuple[list[Reading], bool]:
    """The answers that are there, in the order of `questions`, and whether a budget has ended asking.

    Raises UsageError, naming file and row, for a question that the black box cannot read even without a background.
    """
    config = stage.config
    task = config.task
    asking = Asking(reader, f"{guide} reads", max_tokens=task.answer_max_tokens, chat=task.chat, border=border)
    window = config.llm.context_length or getattr(reader.backend, "window", None)
    prompts, cut = [], []
    for question, background in zip(questions, backgrounds, strict=True):
        fitting = _Fitting(question, config.data.kind, guide, asking, window)
        kept = fitting.longest_beginning(background.text)
        prompts.append(fitting.prompt(kept))
        cut.append((kept, len(kept) < len(background.text)))
    items = {item_of(prompt, asking.asked_as): prompt for prompt in prompts}
    lines = stage.rows(f"{guide}.jsonl", items, asking, interruptible=False)
    by_item = {line["item"]: line for line in lines}
    found = []
    for prompt, (kept, is_cut) in zip(prompts, cut, strict=True):
        line = by_item.get(item_of(prompt, asking.asked_as))
        if line is not None:
            read_as = read_answer(line["text"], prompt.about) if line["status"] in ("ok", "length") else None
            found.append(Reading(read_as, line["status"], is_cut, _num_tokens(reader, kept), line))
    return found, asking.exhausted


@dataclass(frozen=True)
class _Fitting:
    """A prompt that the black box has room for: a background is cut at its end, a question never."""

    question: Question
    kind: str
    guide: str
    asking: Asking
    window: int | None

    def prompt(self, background: str) -> Prompt:
        return Prompt(read_prompt(self.question, self.kind, self.guide, background), self.question, "Answer")

    def longest_beginning(self, background: str) -> str:
        if self.window is None or self._fits(background):
            return background
        if not self._fits(""):
            raise UsageError(
                f"{self.question.where}: the question alone and task.answer_max_tokens="
                f"{self.asking.sampling.max_tokens} exceed the {self.window:,} tokens that the black box reads"
            )
        words = background.split(" ")
        fits, too_many = 0, len(words)
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            fits, too_many = (middle, too_many) if self._fits(" ".join(words[:middle])) else (fits, middle)
        return " ".join(words[:fits])

    def _fits(self, background: str) -> bool:
        request = self.asking.request(self.prompt(background))
        assert self.window is not None
        return _count(self.asking.model, request) + self.asking.sampling.max_tokens <= self.window


def _count(reader: LanguageModel, request: GenerateRequest) -> int:
    counted = reader.count_tokens(request)
    return estimated_tokens(request) if counted is None else counted


def _num_tokens(reader: LanguageModel, text: str) -> int:
    """By the tokenizer of the black box, where it is at hand."""
    return _count(reader, GenerateRequest(text, Asking(reader, "", max_tokens=1).sampling)) if text else 0
