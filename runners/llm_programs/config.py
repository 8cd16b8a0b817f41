"""Schema, checks and inputs of the task `llm_programs`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from privlm.checks import all_found, not_negative, one_of, positive, require_packages
from privlm.config import LLMBudget, is_private
from privlm.errors import UsageError
from privlm.files import sha256_file

ROWS = ("filter", "relevance", "no_cot", "cot", "tree_nll", "tree_delta", "golden", "golden_cot")
"""filter: of the paragraphs, alone. relevance: the black-box question about one paragraph. The others answer."""

ANSWER_SENTENCE = "Thus, the answer is {answer}."
"""How a chain ends, in the few-shot examples and in a forced answer."""

TREE_ROWS = ("tree_nll", "tree_delta")
FILTERS = ("likelihood", "black_box", "bm25", "none")
SUBSETS = ("all_annotators", "any_annotator", "all")
SIZES = (
    "num_questions", "num_tree_questions", "num_candidates", "n_keep", "max_steps", "num_shots", "step_max_tokens",
    "cot_max_tokens",
)  # fmt: skip


@dataclass
class Task:
    """One program and its rows; sizes are per question unless they say otherwise."""

    name: str = MISSING
    program: str = MISSING
    rows: list[str] = MISSING
    filters: list[str] = MISSING
    filter: str = MISSING
    num_questions: int | None = MISSING
    num_tree_questions: int | None = MISSING
    num_candidates: int = MISSING
    n_keep: int = MISSING
    max_steps: int = MISSING
    complete_above: int = MISSING
    step_max_tokens: int = MISSING
    cot_max_tokens: int = MISSING
    num_shots: int = MISSING
    examples: str | None = MISSING
    answer_pattern: str = MISSING
    reasks: int = MISSING
    vote: str = MISSING
    budget: LLMBudget = MISSING


@dataclass
class StrategyQAConfig:
    """Questions with their facts (configs/data/strategyqa*.yaml)."""

    name: str = MISSING
    hub_id: str | None = MISSING
    path: str | None = MISSING
    embedded: bool = MISSING
    split: str = MISSING
    subset: str = MISSING
    paragraphs: str | None = MISSING
    max_paragraph_chars: int = MISSING
    licence: str = MISSING


SCHEMAS = {"data": {"strategyqa": StrategyQAConfig}}


def check(config: Any) -> list[str]:
    """Problems of this task's own settings."""
    task, data = config.task, config.data
    problems = one_of("task.program", task.program, ("evidence_qa",))
    problems += _check_names("task.rows", task.rows, ROWS)
    problems += _check_names("task.filters", task.filters, FILTERS)
    problems += one_of("task.filter", task.filter, FILTERS)
    problems += one_of("task.vote", task.vote, ("best", "majority"))
    problems += one_of("data.subset", data.subset, SUBSETS)
    for key in SIZES:
        problems += positive(f"task.{key}", task[key])
    for key, value in task.budget.items():
        problems += positive(f"task.budget.{key}", value)
    for key in ("reasks", "complete_above"):
        problems += not_negative(f"task.{key}", task[key])
    problems += positive("data.max_paragraph_chars", data.max_paragraph_chars)
    if task.n_keep > task.num_candidates:
        problems.append(f"task.n_keep={task.n_keep} is more than task.num_candidates={task.num_candidates}")
    problems += _check_pattern(task.answer_pattern)
    if config.llm is None:
        problems.append("llm: this task asks a language model; name one, llm=smollm2")
    elif config.llm.backend == "endpoint" and config.llm.score == "none" and (needs := scoring_parts(task)):
        problems.append(
            f"llm={config.llm.name} llm.api={config.llm.api} cannot score given text (needed by {', '.join(needs)}); "
            "use a local model, a server that scores (llm.score), or task.rows without them"
        )
    if is_private(config):
        problems.append("privacy: this task trains nothing, so there is nothing that privacy=dp_sgd could protect")
    return problems


def scoring_parts(task: Any) -> list[str]:
    """What asks for the likelihood of given texts."""
    parts = [f"row {row}" for row in task.rows if row in TREE_ROWS]
    return parts + (["row filter"] if "filter" in task.rows and "likelihood" in task.filters else [])


def _check_names(field: str, names: Any, options: tuple[str, ...]) -> list[str]:
    problems = [problem for name in names for problem in one_of(field, name, options)]
    if len(set(names)) < len(names):
        problems.append(f"{field} names one of them twice: {', '.join(names)}")
    return problems if names else [f"{field} is empty: name at least one of {', '.join(options)}"]


def _check_pattern(pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        return [f"task.answer_pattern is no regular expression: {error}"]
    if compiled.groups != 1:
        return [f"task.answer_pattern needs one group, around yes or no; it has {compiled.groups}"]
    for answer in ("yes", "no"):
        sentence = ANSWER_SENTENCE.format(answer=answer)
        found = compiled.search(sentence)
        if found is None or found.group(1) != answer:
            return [f"task.answer_pattern does not find the answer in '{sentence}', as the examples end"]
    return []


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the run reads. Raises UsageError for what is not at hand, model and data in one message."""
    from privlm.llm.opening import llm_inputs

    from .strategyqa import locate

    return all_found(
        lambda: _packages(config.task),
        lambda: llm_inputs(config.llm),
        lambda: {"data": locate(config.data).fingerprint},
        lambda: _file("task.examples", config.task.examples),
        lambda: _file("data.paragraphs", config.data.paragraphs),
    )


def _packages(task: Any) -> None:
    """Raises UsageError where a part of the task needs a package that is absent."""
    if "bm25" in (*task.filters, task.filter):
        require_packages("bm25 of task.filters", "bm25s", extra="llm")


def _file(key: str, path: str | None) -> dict[str, str]:
    if path is None:
        return {}
    if not (file := Path(path).expanduser()).is_file():
        raise UsageError(f"{key}: no file {path}")
    return {key: sha256_file(file)}
