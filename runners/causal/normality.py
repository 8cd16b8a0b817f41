"""Normality of causes (BIG-bench causal_judgment, 190 stories): find the event in question, then judge it.

People tend to call an abnormal event the cause. The paper's labels of normality are not public; here the judgement is
compared with what people answered to the story's own question, abnormal with yes: an agreement, not the paper's
accuracy. The file carries the canary of BIG-bench: it must stay out of training data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from privlm.errors import UsageError
from privlm.results import Result

from .answers import TAGGED_NORMALITY
from .grading import accuracy
from .items import Item, Question
from .sources import Sources
from .suite import Grading, Suite

FILE = "bigbench_causal/causal_judgment.json"
EXTRACT = (
    "{story}\n\nThe question at the end asks about a causal event: an action or a happening. State that event, and "
    "only that event, in one short sentence."
)
JUDGE = (
    "{story}\n\nCausal event: {event}\n\nIs this event normal or abnormal in this story? An event is abnormal when it "
    "is unexpected, unusual, or against a rule or a norm. Reason step by step, then provide your final answer within "
    "the tags <Answer>Normal/Abnormal</Answer>."
)


def load(sources: Sources) -> Suite:
    content = sources.json(FILE)
    if "canary" not in content:
        raise UsageError(f"{sources.locate(FILE)}: no canary; this is not the file of BIG-bench, or it was stripped")
    items = [_item(number, example) for number, example in enumerate(content["examples"])]
    return Suite("normality", tuple(items), TAGGED_NORMALITY, results, temperature=0.7, max_tokens=512)


def _item(number: int, example: dict[str, Any]) -> Item:
    story = example["input"].strip()
    truth = "Abnormal" if example["target_scores"]["Yes"] else "Normal"

    def judge(event: str) -> Question:
        return Question(JUDGE.format(story=story, event=" ".join(event.split())), truth)

    return Item(f"story{number}", Question(EXTRACT.format(story=story), truth), follow_up=judge)


def results(grading: Grading) -> list[Result]:
    rows = accuracy(grading, "normality")
    return [replace(row, metric=row.metric.replace("accuracy", "agreement")) for row in rows]
