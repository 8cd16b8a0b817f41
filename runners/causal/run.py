"""The experiment: ask a language model each suite's questions, grade the answers, set baselines beside them.

1. The items of a suite come from its files, prompts as the authors sent them.
2. Every question is asked once a sample, and again with its options swapped; answers are kept in the call record.
3. Each answer is read by the parser of the run and by the released one. What cannot be read is counted, never guessed.
"""

from __future__ import annotations

import json
from typing import Any

from privlm import files
from privlm.config import Config
from privlm.job import Job, Result
from privlm.llm.opening import open_llm

from .asking import Asked, Interview, Manner
from .config import suite_names
from .grading import Grading, Reply, Settings
from .items import Suite
from .sources import Sources
from .suites import load

ANSWERS = "answers.jsonl"
"""One line an answer: item, status, what both parsers read, the truth. No text of prompts or answers."""


def run(config: Config, job: Job) -> None:
    task = config.task
    sources = Sources(config.data.path)
    suites = [load(name, sources, task, config.seed) for name in suite_names(task)]
    settings = Settings(task.parser, task.credit)
    manner = Manner(task.chat, task.n_samples, task.swap_options, config.seed)
    results: list[Result] = []
    notes = [f"{settings}; the released scorer beside it: *_upstream"]
    gradings: dict[str, Grading] = {}
    done = 0
    with open_llm(config.llm, job) as model:
        model.require("generate", by="task=causal")
        for suite in suites:
            with job.stage(suite.name):
                interview = Interview(suite, model, manner)
                with job.progress(suite.name, interview.num_calls) as tick:
                    asked = interview.run(tick)
                grading = gradings[suite.name] = Grading(suite, asked.replies, asked.swapped, settings)
                rows = suite.results(grading) if asked.replies else []
                _log(job, rows, len(asked.replies))
                results += rows
            notes += _notes(suite, asked, task)
            done += asked.num_done
            exhausted = asked.exhausted is not None
            if exhausted:
                break
    _write_answers(job, gradings)
    if exhausted:
        job.finish(
            results, status="budget_exhausted", notes=notes, items=(done, sum(len(suite.items) for suite in suites))
        )
    else:
        job.finish(results, notes=notes)


def _notes(suite: Suite, asked: Asked, task: Any) -> list[str]:
    notes = []
    if task.swap_options and not asked.swaps_recorded:
        notes.append(f"{suite.name}: no answers to swapped options are recorded, so their consistency is not known")
    if suite.system is not None and not task.chat:
        notes.append(f"{suite.name}: its system message was left out (task.chat=false)")
    return notes


def _log(job: Job, rows: list[Result], num_answers: int) -> None:
    for row in rows:
        if row.unit == "fraction" and row.split and not row.metric.startswith("baseline"):
            job.log(num_answers, row.split, **{row.metric: row.value})


def _write_answers(job: Job, gradings: dict[str, Grading]) -> None:
    lines: list[dict[str, Any]] = []
    for name, grading in gradings.items():
        for swapped, replies in ((False, grading.replies), (True, grading.swapped)):
            lines += [_line(name, grading, reply, swapped) for reply in replies]
    if job.is_main:
        files.write_text(job.directory / ANSWERS, "".join(json.dumps(line) + "\n" for line in lines))


def _line(suite: str, grading: Grading, reply: Reply, swapped: bool) -> dict[str, Any]:
    return {
        "suite": suite,
        "item": reply.item.id,
        "sample": reply.sample,
        "swapped": swapped,
        "status": reply.status,
        "finish_reason": reply.finish_reason,
        "truth": reply.question.truth,
        **{parser: grading.label(reply, parser) for parser in ("strict", "upstream")},
        "credit": grading.credit(reply),
    }
