"""A language model judges the answers to questions of nobody: pairwise, in both orders, or each answer alone.

Every call goes through the call record of the run, which is what a killed run goes on from. Temperature 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privlm.errors import BudgetExhausted, ServiceError
from privlm.job import Job, Stage
from privlm.llm.client import LanguageModel
from privlm.llm.opening import open_llm
from privlm.llm.types import ANSWERED, Answer, GenerateRequest, Message, Reply, Sampling
from privlm.rows import Keep

from .judge_prompts import PAIRWISE, SINGLE, outcome, rating, verdict
from .questions import Question

ORDERS = ("ours_first", "ours_second")
"""Of a pair: which of the two answers is called A."""

SIDES = ("ours", "theirs")
"""Whose answer is rated."""


@dataclass(frozen=True)
class Judged:
    """What the judge has said of N questions, those that it was asked before it stopped.

    outcomes: of pairs, win, loss, tie or flip; None: not readable. ours, theirs: ratings 1 to 10, likewise; `theirs` is
    empty where there is no other run. lines: of each call, with status, tokens and dollars. num_asked: calls in all.
    stopped: why asking has ended early, or None.
    """

    outcomes: list[str | None]
    ours: list[int | None]
    theirs: list[int | None]
    lines: list[dict[str, Any]]
    num_asked: int
    stopped: str | None


def require_judge(config: Any, job: Job) -> None:
    """One probe, before anything is trained. Raises ServiceError where task.judge_required and nobody answers."""
    if config.task.judge != "none" and config.task.judge_required:
        with open_llm(config.llm, job, role="judge") as judge:
            judge.backend.check_ready()


def ask_judge(
    stage: Stage, judge: LanguageModel, questions: Sequence[Question], ours: Sequence[str], theirs: Sequence[str] | None
) -> Judged:
    """ours, theirs: the answers of this run and of task.compare_with to each question; None: there is no other run."""
    judge.require("generate", by="task.judge")
    task = stage.config.task
    asking = _Asking(judge, task.judge_max_tokens, rating if task.judge == "single" else verdict, task.judge_required)
    texts = [
        _rated(*row) if task.judge == "single" else _paired(*row)
        for row in zip(questions, ours, theirs or [None] * len(ours), strict=True)
    ]
    items = {asking.item(question, name, text): (f"{question.where} {name}", text) for question, named in
             zip(questions, texts, strict=True) for name, text in named.items()}  # fmt: skip
    lines = {line["item"]: line for line in stage.rows("verdicts.jsonl", items, asking, interruptible=False)}
    said: list[dict[str, Any]] = []
    for question, named in zip(questions, texts, strict=True):
        found = {name: lines.get(asking.item(question, name, text)) for name, text in named.items()}
        if all(found.values()):
            said.append({name: line["said"] for name, line in found.items() if line is not None})
    return Judged(
        [outcome(*(one[order] for order in ORDERS)) for one in said if ORDERS[0] in one],
        [one["ours"] for one in said if "ours" in one],
        [one["theirs"] for one in said if "theirs" in one],
        list(lines.values()),
        len(items),
        asking.stopped,
    )


def _rated(question: Question, ours: str, theirs: str | None) -> dict[str, str]:
    answers = {"ours": ours} | ({} if theirs is None else {"theirs": theirs})
    return {side: SINGLE.format(question=question.text, answer=answer) for side, answer in answers.items()}


def _paired(question: Question, ours: str, theirs: str | None) -> dict[str, str]:
    assert theirs is not None, "a pair is of two answers"
    pairs = dict(zip(ORDERS, [(ours, theirs), (theirs, ours)], strict=True))
    return {order: PAIRWISE.format(question=question.text, first=a, second=b) for order, (a, b) in pairs.items()}


class _Asking:
    """Asks the open items of a stage's file (see privlm.job.Stage.rows); an item is (name for messages, prompt).

    read: what a reply says. is_required: a judge that does not answer ends the run, else the stage stays undone.
    """

    def __init__(self, judge: LanguageModel, max_tokens: int, read: Any, is_required: bool) -> None:
        self.judge = judge
        self.sampling = Sampling(max_tokens)
        self.read = read
        self.is_required = is_required
        self.stopped: str | None = None

    def item(self, question: Question, name: str, text: str) -> str:
        """Another prompt, judge or limit is another item."""
        asked = f"{self.judge.model} {self.sampling.max_tokens} {text}"
        return f"{question.item}-{name}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"

    def __call__(self, items: Mapping[str, tuple[str, str]], keep: Keep) -> None:
        names = list(items)
        requests = [
            GenerateRequest((Message("user", text),), self.sampling, item=where) for where, text in items.values()
        ]

        def on_reply(place: int, reply: Reply) -> None:
            assert isinstance(reply, Answer)
            if reply.status in ANSWERED:
                keep(names[place], self._line(reply))

        try:
            self.judge.generate(requests, on_reply=on_reply)
        except BudgetExhausted:
            self.stopped = "budget_exhausted"
        except ServiceError:
            if self.is_required:
                raise
            self.stopped = "judge_unreachable"

    def _line(self, reply: Answer) -> dict[str, Any]:
        """No text: what the judge wrote is in the call record."""
        return {
            "said": self.read(reply.text),
            "status": reply.status,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "usd": self.judge.usd(reply),
        }
