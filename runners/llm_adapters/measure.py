"""What is measured of answers: accuracy by both extractors, what could not be scored, and the gain over the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from privlm.data.contamination import Overlap
from privlm.job import Stage
from privlm.metrics.differences import mcnemar, paired_difference
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share
from privlm.metrics.statistic import statistic
from privlm.results import Result

from .answering import Replies, Reply
from .extract import (
    is_right,
    strict_letter,
    strict_number,
    upstream_is_right,
    upstream_letter,
    upstream_number,
)
from .questions import Question

AVERAGE = "average"
"""The split of what is averaged over the sets, each of the same weight."""


@dataclass(frozen=True)
class Graded:
    """The answers to a set, each bool [N]: right by either extractor; not readable by it; cut; nothing said."""

    strict: np.ndarray
    upstream: np.ndarray
    unreadable_strict: np.ndarray
    unreadable_upstream: np.ndarray
    truncated: np.ndarray
    empty: np.ndarray

    def __len__(self) -> int:
        return len(self.strict)


Grades = dict[str, Graded]
"""Set -> the grades of its answers."""

COUNTED = ("unreadable_strict", "unreadable_upstream", "truncated", "empty")
"""Answers that are counted apart; the fields of Graded."""


def grade_all(tests: Mapping[str, Sequence[Question]], replies: Replies) -> Grades:
    return {name: grade(questions, replies[name]) for name, questions in tests.items()}


def grade(questions: Sequence[Question], replies: Sequence[Reply]) -> Graded:
    """Empty answers are counted as such, and not once more among those that cannot be read."""
    rows = [_graded(question, reply) for question, reply in zip(questions, replies, strict=True)]
    return Graded(*np.array(rows, dtype=bool).reshape(-1, 6).T)


def _graded(question: Question, reply: Reply) -> tuple[bool, ...]:
    empty = reply.status == "empty"
    if question.is_choice:
        letter, released = strict_letter(reply.text, question.options), upstream_letter(reply.text)
        right = letter == question.answer, released == question.answer
        unread = letter is None, not released
    else:
        number, last = strict_number(reply.text), upstream_number(reply.text)
        right = is_right(number, question.number), upstream_is_right(last, question.answer)
        unread = number is None, not np.isfinite(last)
    return (*right, *(is_unread and not empty for is_unread in unread), reply.status == "length", empty)


def report_accuracy(stage: Stage, grades: Grades, prefix: str = "") -> None:
    """The average over sets where there are several, and each set. prefix: of the names, such as `base_`."""
    if len(grades) > 1:
        for extractor in ("strict", "upstream"):
            values, weights = _pooled(grades, extractor)
            right = share(values, weights=weights)
            stage.report(Result.of(f"{prefix}accuracy_{extractor}", right, unit="fraction", split=AVERAGE))
    for name, graded in grades.items():
        for extractor in ("strict", "upstream"):
            right = share(getattr(graded, extractor))
            stage.report(Result.of(f"{prefix}accuracy_{extractor}", right, unit="fraction", split=name))
        counts = {kind: int(getattr(graded, kind).sum()) for kind in COUNTED}
        named = {f"{prefix}{kind}": count for kind, count in counts.items()}
        stage.report(split=name, unit="answers", n=len(graded), **named)


def report_gain(stage: Stage, grades: Grades, base: Grades) -> None:
    """Over the base on the same questions, by the strict extractor; McNemar's p of all questions together."""
    values, weights = _pooled(grades, "strict")
    before, _ = _pooled(base, "strict")
    if len(grades) > 1:
        stage.report(split=AVERAGE, gain_over_base=paired_difference(values, before, weights=weights))
    stage.report(split="all", unit="probability", n=len(values), mcnemar_p=mcnemar(values, before))
    for name, graded in grades.items():
        stage.report(split=name, gain_over_base=paired_difference(graded.strict, base[name].strict))


def report_likelihood(stage: Stage, after: Sequence[float], before: Sequence[float] | None) -> None:
    """Mean over held-out rows of the log-likelihood of a token of the worked answer, and how training has changed it:
    the same rows before and after, so the interval is of the differences.
    """
    told: dict[str, Any] = {"log_likelihood": mean(after)}
    if before is not None:
        told |= {"log_likelihood_before": mean(before), "log_likelihood_gain": mean(np.subtract(after, before))}
    stage.report(split="held_out", unit="nats per token", **told)


def report_contamination(stage: Stage, overlaps: Mapping[str, Overlap]) -> None:
    """Shares of the test questions that the training data have too; of the training rows, how many are such."""
    num_test = sum(shared.num_test for shared in overlaps.values())
    exact, gram = (sum(getattr(shared, kind) for shared in overlaps.values()) for kind in ("exact_test", "gram_test"))
    stage.report(split="all", n=num_test, contamination_exact=exact / num_test, contamination_13gram=gram / num_test)
    for name, shared in overlaps.items():
        stage.report(
            split=name,
            n=shared.num_test,
            contamination_exact=shared.exact_test / shared.num_test,
            contamination_13gram=shared.gram_test / shared.num_test,
        )
        of_train = {"contamination_exact_train": shared.exact_train, "contamination_13gram_train": shared.gram_train}
        stage.report(split=name, unit="training rows", n=shared.num_train, **of_train)
        stage.report(split=name, unit="questions", questions=shared.num_test)


def mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """Over rows, with the bootstrap's interval: a log-likelihood has no bound."""
    return statistic(np.mean, np.asarray(values, dtype=float))


def _pooled(grades: Grades, extractor: str) -> tuple[np.ndarray, np.ndarray]:
    """The answers to all sets, and weights that make each set count the same."""
    values = np.concatenate([getattr(graded, extractor) for graded in grades.values()])
    weights = np.concatenate([np.full(len(graded), 1 / len(graded)) for graded in grades.values()])
    return values, weights
