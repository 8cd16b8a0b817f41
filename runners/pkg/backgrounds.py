"""Who writes or finds the background of each question: stage `generate`. One file a guide, one line a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privlm.job import Stage
from privlm.llm.client import LanguageModel
from privlm.rows import Keep

from .asking import Asking, Prompt, item_of
from .config import ASKED, RETRIEVED
from .outbound import Outbound
from .prompts import guide_prompt, write_prompt
from .questions import Question
from .retrieval import make_retriever, pool_of


@dataclass(frozen=True)
class Background:
    """What a guide gives for a question.

    status: ok, length (cut at task.background_max_tokens), empty, refused, blocked (private mode let the black box not
    be asked for it), or absent: the guide gives none. line: what it has cost, as of `Asking`.
    """

    text: str
    status: str
    line: Mapping[str, Any]


@dataclass(frozen=True)
class Writers:
    """guide: the model of this process, None where no guide asks it. reader: the black box, behind the border.
    sample_of: tells apart prompts of one text that the guide reads beside different images.
    """

    guide: LanguageModel | None
    reader: LanguageModel
    border: Outbound
    sample_of: Callable[[Question], int] = lambda question: 0


def make_backgrounds(
    stage: Stage, guide: str, questions: Sequence[Question], shared: Sequence[str], writers: Writers
) -> tuple[list[Background], bool]:
    """The backgrounds that are there, in the order of `questions`, and whether a budget has ended asking.

    shared: the passages of all questions.
    """
    config = stage.config
    if guide == "none":
        return [Background("", "absent", {})] * len(questions), False
    if guide == "gold":
        return [Background(row.background, "ok" if row.background else "empty", {}) for row in questions], False
    if guide in RETRIEVED:
        return _retrieve(stage, guide, questions, shared), False
    asking = _asking(guide, writers, config.task)
    texts = [
        write_prompt(row, config.data.kind, guide) if guide in ASKED else guide_prompt(row, config.data.kind)
        for row in questions
    ]
    ends = {"cot": "Reasoning", "genread": "Background"}.get(guide, "")
    sample_of = writers.sample_of if guide == "pkg" else lambda row: 0
    prompts = [Prompt(text, row, ends, sample_of(row)) for text, row in zip(texts, questions, strict=True)]
    items = {item_of(prompt, asking.asked_as): prompt for prompt in prompts}
    lines = stage.rows(f"{guide}.jsonl", items, asking, interruptible=False)
    return [Background(line["text"], line["status"], line) for line in lines], asking.exhausted


def _asking(guide: str, writers: Writers, task: Any) -> Asking:
    most = task.background_max_tokens
    if guide in ASKED:
        return Asking(writers.reader, guide, max_tokens=most, chat=task.chat, border=writers.border)
    assert writers.guide is not None
    return Asking(writers.guide, guide, max_tokens=most)


def _retrieve(stage: Stage, guide: str, questions: Sequence[Question], shared: Sequence[str]) -> list[Background]:
    task = stage.config.task

    def answer(open_items: Mapping[str, Question], keep: Keep) -> None:
        retrieve = make_retriever(guide, shared, task, stage.config.seed)
        for item, question in open_items.items():
            keep(item, {"passages": retrieve(question)})

    items = {row.id: row for row in questions}
    lines = stage.rows(f"{guide}.jsonl", items, answer)
    found = []
    for line in lines:
        pool = pool_of(items[line["item"]], shared, task)
        found.append(Background(" ".join(pool[place] for place in line["passages"]), "ok", {}))
    return found
