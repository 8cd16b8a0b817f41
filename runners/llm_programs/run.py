"""The experiment: evidence-supported question answering as a program around a frozen model.

1. The filter (privlm.runners.llm_programs.filter) puts the paragraphs that make the question likely first.
2. The search (.search) builds chains of reasoning steps, each beside one of them, and takes the answer of the best.
3. Beside it the rows without a search: few-shot with and without chain of thought, and with the golden facts.

Each row is a stage. The result of an item is on disk before the next batch is asked, and its calls are in the call
record, so a run that is killed makes exactly the calls that it has not made.
"""

from __future__ import annotations

from privlm.config import Config
from privlm.job import Job
from privlm.llm.opening import open_llm
from privlm.llm.program import Trace
from privlm.llm.program.trace import TRACE_FILE

from .asking import Asking
from .config import TREE_ROWS, scoring_parts
from .measure import budget_in_words, measure
from .parts import make_parts
from .strategyqa import load


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
                    results, note = measure(part, lines, config)
                    stage.report(*results)
                    job.note(note)
                if asking.exhausted:
                    stage.stop("budget_exhausted", num_done, num_items)
                    break
    if data.num_cut:
        job.note(f"{data.num_cut:,} paragraphs cut to {config.data.max_paragraph_chars} characters")


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
        f"{budget_in_words(config)} a question"
    )
