"""A suite, and its answers read by both parsers and credited by both rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from privlm.results import Result

from .answers import AnswerFormat
from .items import Item, Question


@dataclass(frozen=True)
class Suite:
    """A benchmark: its items and the settings of the paper.

    system: the system message of chat models. temperature, max_tokens: what the paper sent to chat models.
    unparsed_credit: what the released scorer gives to an answer that it cannot read (`task.credit=upstream`).
    results: rows of result.json from graded answers.
    """

    name: str
    items: tuple[Item, ...]
    format: AnswerFormat
    results: Callable[[Grading], list[Result]]
    temperature: float
    max_tokens: int
    system: str | None = None
    unparsed_credit: float = 0.0


@dataclass(frozen=True)
class Settings:
    """parser: how an answer is read. credit: what one that cannot be read earns."""

    parser: str
    credit: str

    def __str__(self) -> str:
        return f"parser {self.parser}, credit {self.credit}"


UPSTREAM = Settings("upstream", "upstream")


@dataclass(frozen=True)
class Reply:
    """An answer to the question of an item. status, finish_reason: as in privlm.llm.types.Answer."""

    item: Item
    question: Question
    sample: int
    text: str
    status: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class Grading:
    """The answers of a suite. swapped: those to the questions with swapped options, where they were asked."""

    suite: Suite
    replies: Sequence[Reply]
    swapped: Sequence[Reply]
    settings: Settings

    def label(self, reply: Reply, parser: str | None = None) -> str | None:
        """What the answer says, None where the parser cannot read it."""
        if (parser or self.settings.parser) == "upstream":
            return self.suite.format.upstream(reply.text, reply.question)
        if reply.status not in ("ok", "length"):
            return None
        return self.suite.format.strict(reply.text, reply.question)

    def credit(self, reply: Reply, settings: Settings | None = None) -> float:
        """1 for the right answer, 0 for a wrong one, and what the credit rule gives to one that cannot be read."""
        settings = settings or self.settings
        label = self.label(reply, settings.parser)
        if label is None:
            return self.suite.unparsed_credit if settings.credit == "upstream" else 0.0
        return float(label == reply.question.truth)

    def vote(self, replies: Sequence[Reply], parser: str | None = None) -> str | None:
        """The most frequent reading of several samples of one question, the first of equals; None where most of them
        cannot be read.
        """
        return Counter(self.label(reply, parser) for reply in replies).most_common(1)[0][0]

    def part(self, part: str) -> Grading:
        """The answers to one part of the suite."""
        replies, swapped = (
            [reply for reply in group if reply.item.part == part] for group in (self.replies, self.swapped)
        )
        return Grading(self.suite, replies, swapped, self.settings)

    @property
    def units(self) -> dict[str, list[Reply]]:
        """Unit -> its answers: what is averaged first and resampled together."""
        found: dict[str, list[Reply]] = {}
        for reply in self.replies:
            found.setdefault(reply.item.resampled_as, []).append(reply)
        return found

    @property
    def weights(self) -> np.ndarray:
        return np.array([replies[0].item.weight for replies in self.units.values()])

    def mean_by_unit(self, value: Callable[[Reply], float]) -> np.ndarray:
        return np.array([np.mean([value(reply) for reply in replies]) for replies in self.units.values()])
