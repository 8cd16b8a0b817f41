"""What is measured of a guide: accuracy, what could not be scored, what it cost, and its gain over no guide.

Rows of result.json have the guide as their split; `all` is what holds for every guide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from privlm.job import Stage
from privlm.metrics.differences import mcnemar, paired_difference
from privlm.metrics.shares import share
from privlm.results import Result

from .answers import is_right
from .backgrounds import Background
from .questions import Question
from .questions_data import Questions
from .reading import Reading

ALL = "all"


def rights(questions: Sequence[Question], readings: Sequence[Reading]) -> np.ndarray:
    """Whether each answer is right, bool [N]; one that could not be read earns nothing."""
    return np.array([is_right(reading.answer, row) for row, reading in zip(questions, readings, strict=True)])


def report_accuracy(stage: Stage, data: Questions, right: Mapping[str, np.ndarray]) -> None:
    """Of each guide. Questions of one page or group are one unit of the interval."""
    units = [row.group for row in data.test]
    for guide, is_right_N in right.items():
        stage.report(Result.of("accuracy", share(is_right_N, units=units), unit="fraction", split=guide))
    if "none" in right:
        for guide in (guide for guide in right if guide != "none"):
            stage.report(split=guide, gain_over_none=paired_difference(right[guide], right["none"], units=units))
            p = mcnemar(right[guide], right["none"])
            stage.report(split=guide, unit="probability", n=len(units), mcnemar_p=p)


def report_guide(
    stage: Stage, guide: str, backgrounds: Sequence[Background], readings: Sequence[Reading], *, is_private: bool
) -> None:
    """What could not be scored of a guide, its backgrounds, and its cost."""
    n = len(readings)
    counts = Counter(reading.status for reading in readings)
    unparsed = sum(is_unparsed(reading) for reading in readings)
    stage.report(split=guide, unit="answers", n=n, unparsed=unparsed, refused=counts["refused"], empty=counts["empty"])
    if is_private:
        stage.report(split=guide, unit="answers", n=n, blocked=counts["blocked"])
    if guide != "none":
        cut, empty = sum(reading.is_cut for reading in readings), sum(not one.text for one in backgrounds)
        stage.report(split=guide, unit="backgrounds", n=n, cut_backgrounds=cut, empty_backgrounds=empty)
        mean_tokens = float(np.mean([reading.background_tokens for reading in readings]))
        stage.report(split=guide, unit="tokens", n=n, background_tokens=mean_tokens)
    _report_cost(stage, guide, backgrounds, readings, is_private)


def is_unparsed(reading: Reading) -> bool:
    """Whether something was answered that no rule could read."""
    return reading.answer is None and reading.status in ("ok", "length")


def _report_cost(
    stage: Stage, guide: str, backgrounds: Sequence[Background], readings: Sequence[Reading], is_private: bool
) -> None:
    """Of the black box and, apart, of the guide; calls that the record answered are counted, too."""
    written = [one.line for one in backgrounds if one.line]
    asked_guide = written if guide == "pkg" else []
    asked_reader = [reading.line for reading in readings] + (written if guide != "pkg" else [])
    sent = [line for line in asked_reader if line["status"] != "blocked"]
    stage.report(split=guide, unit="calls", calls=len(sent))
    stage.report(split=guide, unit="tokens", tokens=_num_tokens(sent))
    if guide == "pkg":
        stage.report(split=guide, unit="calls", guide_calls=len(asked_guide))
        stage.report(split=guide, unit="tokens", guide_tokens=_num_tokens(asked_guide))
    prices = [line["usd"] for line in sent]
    if prices and None not in prices:
        stage.report(split=guide, unit="USD", usd=sum(prices))
    if is_private:
        stage.report(split=guide, unit="pieces", leaks=sum(line["leaks"] for line in asked_reader))


def _num_tokens(lines: Sequence[Mapping[str, Any]]) -> int:
    return sum(line["prompt_tokens"] + line["completion_tokens"] for line in lines)


def report_data(stage: Stage, data: Questions) -> None:
    """What the same answer to every question would reach, and what the alignment set shares with the test items."""
    n = len(data.test)
    stage.report(split=ALL, unit="questions", questions=n, groups=len({row.group for row in data.test}))
    commonest = Counter(row.answers for row in data.test).most_common(1)[0]
    stage.report(split=ALL, n=n, commonest_answer=commonest[1] / n)
    if data.test[0].is_claim:
        stage.report(split=ALL, n=n, always_true=sum(row.answers == ("true",) for row in data.test) / n)
    stage.report(
        split=ALL,
        n=n,
        contamination_exact=data.leak.exact / n,
        contamination_group=data.leak.group / n,
        contamination_13gram=data.leak.gram / n,
    )


def gold_in_words(data: Questions, readings: Mapping[str, Sequence[Reading]]) -> str | None:
    """Why gold evidence does not help, where it does not: what this reader answers with it."""
    if not {"gold", "none"} <= set(readings):
        return None
    gold, none = (rights(data.test, readings[guide]) for guide in ("gold", "none"))
    if gold.mean() > none.mean():
        return None
    unread = sum(reading.answer is None for reading in readings["gold"])
    said = Counter(reading.answer for reading in readings["gold"] if reading.answer is not None)
    count = said.most_common(1)[0][1] if said else 0
    return (
        f"gold ({gold.mean():.3f}) is not above none ({none.mean():.3f}): this reader does not use the evidence that "
        f"it is given. With it, {unread} of {len(gold)} answers say nothing that can be read, {count} say the same, "
        f"and {_num_changed(readings)} are other ones than without it"
    )


def _num_changed(readings: Mapping[str, Sequence[Reading]]) -> int:
    pairs = zip(readings["gold"], readings["none"], strict=True)
    return sum(gold.answer != none.answer for gold, none in pairs)
