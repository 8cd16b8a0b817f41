"""The experiment: evidence-supported question answering as a program around a frozen model.

1. The filter (privlm.runners.llm_programs.filter) puts the paragraphs that make the question likely first.
2. The search (.search) builds chains of reasoning steps, each beside one of them, and takes the answer of the best.
3. Beside it the rows without a search: few-shot with and without chain of thought, and with the golden facts.

Each row is a stage. The result of an item is on disk before the next batch is asked, and its calls are in the call
record, so a run that is killed makes exactly the calls that it has not made.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from privlm.config import Config
from privlm.errors import BudgetExhausted, ServiceError
from privlm.job import Job
from privlm.llm.client import LanguageModel
from privlm.llm.opening import open_llm
from privlm.llm.program import ItemResult, Trace, run_programs
from privlm.llm.program.trace import TRACE_FILE
from privlm.metrics.classification import Estimate, accuracy, majority_class
from privlm.results import Result
from privlm.rows import Keep

from .config import TREE_ROWS, scoring_parts
from .parts import Part, make_parts
from .strategyqa import load

ITEMS_AT_ONCE = 32
"""What they ask at one time is one batch. It changes the speed, and the results by rounding alone."""

TOP_N = (1, 2, 5, 10, 20)


def run(config: Config, job: Job) -> None:
    data = load(config.data, config.task.num_questions)
    with open_llm(config.llm, job) as model:
        for part_name in scoring_parts(config.task):
            model.require("score", by=part_name)
        parts = make_parts(config, data, has_logprobs="logprobs" in model.capabilities)
        job.say(_sizes(config, len(data.questions)))
        trace = Trace(job.directory / TRACE_FILE, run=job.run_hash[:8], texts=config.llm.trace == "full")
        num_items, num_done = sum(len(part.items) for part in parts), 0
        for part in parts:
            with job.stage(part.name) as stage:
                asking = Asking(part, model, trace, config)
                lines = stage.rows(f"{part.name}.jsonl", part.items, asking, interruptible=False)
                num_done += len(lines)
                if lines:
                    results, note = _measure(part, lines, config)
                    stage.report(*results)
                    job.note(note)
                if asking.exhausted:
                    stage.stop("budget_exhausted", num_done, num_items)
                    break
    if data.num_cut:
        job.note(f"{data.num_cut:,} paragraphs cut to {config.data.max_paragraph_chars} characters")


class Asking:
    """Asks the items of a part that no earlier try has finished, and keeps each result as it comes.

    exhausted: whether a budget of the run has ended it.
    """

    def __init__(self, part: Part, model: LanguageModel, trace: Trace, config: Config) -> None:
        self.part = part
        self.model = model
        self.trace = trace
        self.budget = config.task.budget
        self.exhausted = False

    def __call__(self, open_items: Mapping[str, tuple[Any, ...]], keep: Keep) -> None:
        """Raises ServiceError when items got no answer; the others are kept."""
        failed: list[str] = []
        before = time.monotonic()

        def on_done(name: str, result: ItemResult) -> None:
            nonlocal before
            if result.status == "failed":
                failed.append(result.error or "")
                return
            now = time.monotonic()
            keep(name.partition("/")[2], _line(result, now - before))
            before = now

        named = {f"{self.part.name}/{item}": given for item, given in open_items.items()}
        try:
            run_programs(
                self.part.program,
                named,
                self.model,
                on_done=on_done,
                trace=self.trace,
                budget=self.budget,
                width=ITEMS_AT_ONCE,
            )
        except BudgetExhausted:
            self.exhausted = True
        if failed:
            raise ServiceError(
                f"{self.part.name}: {len(failed)} of {len(self.part.items)} items got no answer ({failed[0]}); the "
                "others are kept, the same command asks these again"
            )


def _line(result: ItemResult, seconds: float) -> dict[str, Any]:
    """seconds: since the item that finished before; their sum is the wall time of the part, over all tries."""
    costs = {"calls": result.calls, "tokens": result.tokens, "cached": result.cached, "seconds": seconds}
    return {"status": result.status} | (result.value or {"answer": None}) | costs


def _measure(part: Part, lines: list[dict[str, Any]], config: Config) -> tuple[list[Result], str]:
    """The results of a part, and a line of what they cost."""
    cost = {key: sum(line[key] for line in lines) for key in ("calls", "tokens", "cached", "seconds")}
    statuses = [line["status"] for line in lines]
    facts = [f"{len(lines)} of {len(part.items)}"] if len(lines) < len(part.items) else [str(len(lines))]
    facts[0] += " items"
    if part.gold is None:
        results = _top_n(part, lines, config)
    else:
        results, majority = _accuracy(part, lines, part.gold, config)
        facts.append(majority)
        facts.append(f"{sum(line['answer'] is None for line in lines)} unparsed")
    if part.name in TREE_ROWS:
        facts.append(f"{statuses.count('budget_exhausted')} at their budget of {_budget(config)}")
        facts += [f"{sum(line[key] for line in lines)} {key.replace('_', ' ')}" for key in ("forced", "empty_steps")]
    facts.append(f"{cost['calls']:,} calls, {cost['tokens']:,} tokens, {cost['cached']:,} cached")
    facts.append(f"{cost['seconds']:.0f} s")
    return results, f"{part.name}: {', '.join(facts)}"


def _accuracy(
    part: Part, lines: Sequence[dict[str, Any]], gold: dict[str, str], config: Config
) -> tuple[list[Result], str]:
    """An answer that could not be read counts as wrong."""
    classes = {"no": 0, "yes": 1, None: -1}
    predictions = np.array([classes[line["answer"]] for line in lines])
    labels = np.array([classes[gold[line["item"]]] for line in lines])
    answer, share = majority_class(labels)
    unparsed = Result(f"unparsed_{part.name}", float(np.mean(predictions == -1)), n=len(lines), split=config.data.split)
    measured = _result(f"accuracy_{part.name}", accuracy(predictions, labels), config)
    return [measured, unparsed], f"always {('no', 'yes')[answer]} {share:.3f}"


def _top_n(part: Part, lines: Sequence[dict[str, Any]], config: Config) -> list[Result]:
    """Share of questions whose true paragraph is among the first n, beside that of a random order."""
    name = part.name.removeprefix("filter_")
    ranks = np.array([line["rank"] for line in lines])
    results = []
    for n in (n for n in TOP_N if n < config.task.num_candidates):
        results.append(_result(f"top{n}_{name}", accuracy(ranks < n, np.ones(len(ranks), dtype=bool)), config))
        if name == config.task.filters[0]:
            results.append(Result(f"top{n}_random", n / config.task.num_candidates))
    return results


def _result(metric: str, estimate: Estimate, config: Config) -> Result:
    return Result(metric, estimate.value, "fraction", estimate.n, estimate.ci_low, estimate.ci_high, config.data.split)


def _sizes(config: Config, num_questions: int) -> str:
    """What a reader of the numbers must know of how they were made."""
    task = config.task
    said = f"{num_questions} questions ({config.data.subset}), {task.num_candidates} candidates a question"
    if not set(task.rows) & set(TREE_ROWS):
        return said
    num_tree = min(num_questions, task.num_tree_questions or num_questions)
    return (
        f"{said}; trees on {num_tree}: filter {task.filter}, {task.n_keep} kept, at most {task.max_steps} steps of "
        f"{task.step_max_tokens} tokens, until more than {task.complete_above} chains are complete, budget "
        f"{_budget(config)} a question"
    )


def _budget(config: Config) -> str:
    limits = {key: value for key, value in config.task.budget.items() if value is not None}
    return ", ".join(f"{value:,} {key}" for key, value in limits.items()) or "no limit"
