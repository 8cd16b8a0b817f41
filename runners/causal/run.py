"""The experiment: ask a language model each suite's questions, grade the answers, set baselines beside them.

1. The items of a suite come from its files, prompts as the authors sent them.
2. Every question is asked once a sample, and again with its options swapped; answers are kept in the call record.
3. Each answer is read by the parser of the run and by the released one. What cannot be read is counted, never guessed.
"""

from __future__ import annotations

from typing import Any

from privlm.config import Config
from privlm.job import Job, Stage
from privlm.llm.client import LanguageModel
from privlm.llm.opening import open_llm
from privlm.llm.program import Trace
from privlm.llm.program.trace import TRACE_FILE

from . import arctic, discovery, drawing, neuropathic, numeric
from .answers_file import ANSWERS, write_answers
from .asking import Asked, Interview, Manner, consult
from .config import suite_names
from .sources import Sources
from .suite import Grading, Settings, Suite
from .suites import load_all


def run(config: Config, job: Job) -> None:
    task = config.task
    sources = Sources(config.data.path)
    suites = load_all(sources, task, config.seed)
    job.note(f"{Settings(task.parser, task.credit)}; *_upstream: both as the released scorer has them")
    gradings: list[Grading] = []
    exhausted = False
    if suites:
        with open_llm(config.llm, job) as model:
            model.require("generate", by="task=causal")
            num_items, num_done = sum(len(suite.items) for suite in suites), 0
            for suite in suites:
                with job.stage(suite.name) as stage:
                    asked = _ask(config, job, suite, model)
                    gradings.append(Grading(suite, asked.replies, asked.swapped, Settings(task.parser, task.credit)))
                    _report(stage, sources, gradings[-1])
                    num_done += asked.num_done
                    if exhausted := asked.exhausted is not None:
                        stage.stop("budget_exhausted", num_done, num_items)
                job.note(*_notes(suite, asked, task))
                if exhausted:
                    break
    if job.is_main:
        write_answers(job.directory / ANSWERS, gradings)
    if exhausted:
        return
    if task.discovery.num_nodes:
        _discover(config, job, sources, gradings)
    if "numeric" in suite_names(task):
        _numeric(config, job, sources)


def _ask(config: Config, job: Job, suite: Suite, model: LanguageModel) -> Asked:
    task = config.task
    if suite.name == "tuebingen" and task.prompting == "program":
        trace = Trace(job.directory / TRACE_FILE, run=job.run_hash[:8], texts=config.llm.trace == "full")
        with job.progress(suite.name, len(suite.items) * (2 if task.swap_options else 1)) as tick:
            return consult(suite, model, trace, swap=task.swap_options, tick=tick)
    interview = Interview(suite, model, Manner(task.chat, task.n_samples, task.swap_options, config.seed))
    with job.progress(suite.name, interview.num_calls) as tick:
        return interview.run(tick)


def _report(stage: Stage, sources: Sources, grading: Grading) -> None:
    """The rows of a suite; the first figure of each split is logged, too."""
    if not grading.replies:
        return
    rows = grading.suite.results(grading)
    stage.report(*rows)
    for row in {row.split: row for row in reversed(rows) if row.split}.values():
        values: dict[str, Any] = {row.metric: row.value}
        stage.log(len(grading.replies), row.split or "", **values)
    if grading.suite.name == "arctic":
        truth = arctic.read_truth(sources)
        found = arctic.predicted(grading, None, len(truth.names))
        stage.picture("arctic", drawing.draw("arctic", truth.names, truth.graph, found))


def _discover(config: Config, job: Job, sources: Sources, gradings: list[Grading]) -> None:
    settings = config.task.discovery
    (grading,) = (grading for grading in gradings if grading.suite.name == "neuropathic_pair")
    with job.stage("discovery") as stage:
        found = discovery.discover(
            neuropathic.read_links(sources),
            grading,
            num_nodes=settings.num_nodes,
            num_samples=settings.num_samples,
            alpha=settings.alpha,
            seed=config.seed,
        )
        stage.report(*found.results)
        for name, graph in found.graphs.items():
            stage.picture(f"discovery_{name}", drawing.draw(f"discovery {name}", found.names, found.truth, graph))
    job.note(found.note)


def _numeric(config: Config, job: Job, sources: Sources) -> None:
    settings = config.task.numeric
    methods = list(settings.methods)
    pairs = numeric.read_pairs(sources, config.seed)
    with (
        job.stage("numeric") as stage,
        job.progress("numeric pairs", len(methods) * len(pairs), interruptible=True) as tick,
    ):
        if stage.needed:
            stage.report(
                *numeric.results(
                    pairs,
                    methods,
                    seed=config.seed,
                    max_points=settings.max_points,
                    seconds=settings.seconds,
                    tick=tick,
                )
            )


def _notes(suite: Suite, asked: Asked, task: Any) -> list[str]:
    notes = []
    if task.swap_options and not asked.swaps_recorded:
        notes.append(f"{suite.name}: no answers to swapped options are recorded, so their consistency is not known")
    if suite.system is not None and not task.chat:
        notes.append(f"{suite.name}: its system message was left out (task.chat=false)")
    return notes
