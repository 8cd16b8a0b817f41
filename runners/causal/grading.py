"""Answers read by both parsers, credited by both rules, and the result rows that all suites share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from privlm.metrics.classification import Estimate
from privlm.results import Result

from . import estimates
from .items import Item, Question, Suite


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


def row(metric: str, estimate: Estimate, split: str, unit: str = "fraction") -> Result:
    return Result(metric, estimate.value, unit, estimate.n, estimate.ci_low, estimate.ci_high, split)


def accuracy(grading: Grading, split: str, constants: dict[str, np.ndarray] | None = None) -> list[Result]:
    """Accuracy by the settings of the run and by the released scorer, their paired difference, the baselines, and what
    could not be read.

    constants: credit by unit of each answer that ignores the question, the first option's first.
    """
    ours = grading.mean_by_unit(grading.credit)
    theirs = grading.mean_by_unit(lambda reply: grading.credit(reply, UPSTREAM))
    rows = [
        row("accuracy", estimates.mean(ours), split),
        row("accuracy_upstream", estimates.mean(theirs), split),
        row("upstream_minus_accuracy", estimates.mean(theirs - ours), split),
    ]
    constants = constants or constant_answers(grading)
    baselines = {
        "random": grading.mean_by_unit(lambda reply: 1 / num_choices(reply.question)),
        "majority": max(constants.values(), key=lambda credits: credits.mean()),
        "first": constants[next(iter(constants))],
    }
    for name, credits in baselines.items():
        rows.append(Result(f"baseline_{name}", float(credits.mean()), "fraction", len(credits), split=split))
    rows.append(row("gain_over_majority", estimates.mean(ours - baselines["majority"]), split))
    return [*rows, *asked(grading, split)]


def asked(grading: Grading, split: str) -> list[Result]:
    """How many answers there are, how many could not be read, were refused or cut off, and how many keep their content
    when the options are swapped.
    """
    replies = grading.replies

    def count(metric: str, holds: Iterable[bool]) -> Result:
        return Result(metric, float(sum(holds)), "answers", len(replies), split=split)

    rows = [
        count("unparsed", (grading.label(reply) is None for reply in replies)),
        count("unparsed_upstream", (grading.label(reply, "upstream") is None for reply in replies)),
        count("refused", (reply.status == "refused" for reply in replies)),
        count("empty", (reply.status == "empty" for reply in replies)),
        count("cut_off", (reply.status == "length" for reply in replies)),
    ]
    if (consistency := swap_consistency(grading)) is not None:
        rows.append(row("position_swap_consistency", consistency, split))
    return rows


def swap_consistency(grading: Grading) -> Estimate | None:
    """Share of the answers that say the same when the options are swapped; one that cannot be read says nothing.

    None where no question has both answers.
    """
    straight = {(reply.item.id, reply.sample): reply for reply in grading.replies}

    def says(reply: Reply) -> str | None:
        label = grading.label(reply)
        return None if label is None else reply.question.content(label)

    same = []
    for reply in grading.swapped:
        if (twin := straight.get((reply.item.id, reply.sample))) is not None:
            first = says(twin)
            same.append(float(first is not None and first == says(reply)))
    return estimates.mean(np.array(same)) if same else None


def constant_answers(grading: Grading) -> dict[str, np.ndarray]:
    """Label -> credit by unit of a model that always answers with it, the first option first."""
    labels = dict.fromkeys(label for reply in grading.replies for label in choices(reply.question))

    def credits(label: str) -> np.ndarray:
        return grading.mean_by_unit(lambda reply: float(label == reply.question.truth))

    return {label: credits(label) for label in labels}


def choices(question: Question) -> Sequence[str]:
    """The labels that answer a question."""
    if question.options:
        return [chr(ord("A") + number) for number in range(len(question.options))]
    return ("Normal", "Abnormal") if question.truth in ("Normal", "Abnormal") else ("Yes", "No")


def num_choices(question: Question) -> int:
    return len(choices(question))
