"""The result rows that all suites share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from privlm.metrics.classification import Estimate
from privlm.results import Result

from . import estimates
from .items import Question
from .suite import UPSTREAM, Grading, Reply


def row(metric: str, estimate: Estimate, split: str, unit: str = "fraction") -> Result:
    return Result(metric, estimate.value, unit, estimate.n, estimate.ci_low, estimate.ci_high, split)


def accuracy(grading: Grading, split: str, constants: dict[str, np.ndarray] | None = None) -> list[Result]:
    """Accuracy by the settings of the run and by the released scorer, their paired difference, the baselines, what
    could not be read, and the accuracy of what could (filtered).

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
    if len(parsed := credit_of_parsed(grading)):
        rows.append(row("accuracy_filtered", estimates.mean(parsed), split))
    return [*rows, *asked(grading, split)]


def credit_of_parsed(grading: Grading) -> np.ndarray:
    """Mean credit of each unit's answers that could be read; units without one are left out."""
    credits = [
        [grading.credit(reply) for reply in replies if grading.label(reply) is not None]
        for replies in grading.units.values()
    ]
    return np.array([np.mean(read) for read in credits if read])


def asked(grading: Grading, split: str) -> list[Result]:
    """How many answers there are, how many could not be read, were refused or cut off, and how many keep their content
    when the options are swapped.
    """
    replies = grading.replies

    def count(metric: str, holds: Iterable[bool]) -> Result:
        return Result(metric, float(sum(holds)), "answers", len(replies), split=split)

    rows = [
        Result("answers", float(len(replies)), "answers", len(replies), split=split),
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
    """Share of the answers that say the same when the options are swapped, of those that could be read both times: one
    that could not says nothing.

    None where no question has two such answers.
    """
    straight = {(reply.item.id, reply.sample): reply for reply in grading.replies}

    def says(reply: Reply) -> str | None:
        label = grading.label(reply)
        return None if label is None else reply.question.content(label)

    same = []
    for reply in grading.swapped:
        if (twin := straight.get((reply.item.id, reply.sample))) is not None:
            both = says(twin), says(reply)
            same += [float(both[0] == both[1])] if None not in both else []
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
