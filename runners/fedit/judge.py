"""A language model judges the answers to questions of nobody: pairwise, in both orders, or each answer alone.

Every call goes through the call record of the run, which is what a killed run goes on from. Temperature 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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

PAIR = ("ours_first", "ours_second")
"""Of a pair: which of the two answers is called A."""

RATED = ("ours", "theirs")
"""Whose answer is rated alone."""


@dataclass(frozen=True)
class Call:
    """One prompt. of: the place of its question. name: one of PAIR or RATED. item: names it in the file of verdicts."""

    of: int
    name: str
    prompt: str
    item: str


@dataclass(frozen=True)
class Judged:
    """What the judge has said of the questions that it was asked before it stopped.

    outcomes: of pairs, win, loss, tie or flip; None: not readable. ratings: 1 to 10 of our answer and, where there is
    another run, of its answer, likewise. lines: of each call, with status, tokens and dollars. num_asked: calls in all.
    stopped: why asking has ended early, or None.
    """

    outcomes: list[str | None]
    ratings: list[tuple[int | None, ...]]
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
    is_pair = task.judge == "pairwise"
    asking = _Asking(judge, task.judge_max_tokens, verdict if is_pair else rating, task.judge_required)
    names = PAIR if is_pair else RATED[: 1 if theirs is None else 2]
    answers = list(zip(ours, ours if theirs is None else theirs, strict=True))
    calls = {
        call.item: call
        for place, (question, pair) in enumerate(zip(questions, answers, strict=True))
        for call in asking.calls(place, question, pair, names)
    }
    lines = stage.rows("verdicts.jsonl", calls, asking, interruptible=False)
    said = {(calls[line["item"]].of, calls[line["item"]].name): line["said"] for line in lines}
    whole = [
        tuple(said[place, name] for name in names)
        for place in range(len(questions))
        if all((place, name) in said for name in names)
    ]
    return Judged(
        [outcome(*verdicts) for verdicts in whole] if is_pair else [],
        [] if is_pair else whole,
        lines,
        len(calls),
        asking.stopped,
    )


def prompt(question: Question, ours: str, theirs: str, name: str) -> str:
    """What the judge is asked. name: one of PAIR or RATED."""
    if name in RATED:
        return SINGLE.format(question=question.text, answer=ours if name == RATED[0] else theirs)
    first, second = (ours, theirs) if name == PAIR[0] else (theirs, ours)
    return PAIRWISE.format(question=question.text, first=first, second=second)


class _Asking:
    """Asks the open items of a stage's file (see privlm.job.Stage.rows).

    read: what a reply says. is_required: a judge that does not answer ends the run, else the stage stays undone.
    """

    def __init__(
        self, judge: LanguageModel, max_tokens: int, read: Callable[[str], int | str | None], is_required: bool
    ) -> None:
        self.judge = judge
        self.sampling = Sampling(max_tokens)
        self.read = read
        self.is_required = is_required
        self.stopped: str | None = None

    def calls(self, place: int, question: Question, answers: tuple[str, str], names: Sequence[str]) -> Iterator[Call]:
        """Another prompt, judge or limit is another item."""
        for name in names:
            text = prompt(question, *answers, name)
            asked = f"{self.judge.model} {self.sampling.max_tokens} {text}"
            yield Call(place, name, text, f"{question.item}-{name}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}")

    def __call__(self, calls: Mapping[str, Call], keep: Keep) -> None:
        names = list(calls)
        requests = [
            GenerateRequest((Message("user", call.prompt),), self.sampling, item=name) for name, call in calls.items()
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
