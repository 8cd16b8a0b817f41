"""Schema, checks and inputs of the task `llm_programs`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from privlm.content import Content
from privlm.data.schema import embedded_and_hub
from privlm.errors import UsageError
from privlm.files import sha256_file
from privlm.llm.schema import LLMBudget
from privlm.privacy.schema import is_private
from privlm.schema import TaskConfig, all_found, require_packages, setting

ROWS = ("filter", "relevance", "no_cot", "cot", "tree_nll", "tree_delta", "golden", "golden_cot")
"""filter: of the paragraphs, alone. relevance: the black-box question about one paragraph. The others answer."""

ANSWER_SENTENCE = "Thus, the answer is {answer}."
"""How a chain ends, in the few-shot examples and in a forced answer."""

TREE_ROWS = ("tree_nll", "tree_delta")
FILTERS = ("likelihood", "black_box", "bm25", "none")
SUBSETS = ("all_annotators", "any_annotator", "all")


@dataclass
class Task(TaskConfig):
    """One program and its rows; sizes are per question unless they say otherwise."""

    program: str = setting(options=("evidence_qa",))
    rows: list[str] = setting(options=ROWS)
    filters: list[str] = setting(options=FILTERS)
    filter: str = setting(options=FILTERS)
    num_questions: int | None = setting(above=0)
    num_tree_questions: int | None = setting(above=0)
    num_candidates: int = setting(above=0)
    n_keep: int = setting(above=0)
    max_steps: int = setting(above=0)
    complete_above: int = setting(at_least=0)
    step_max_tokens: int = setting(above=0)
    cot_max_tokens: int = setting(above=0)
    num_shots: int = setting(above=0)
    examples: str | None = MISSING
    answer_pattern: str = MISSING
    reasks: int = setting(at_least=0)
    vote: str = setting(options=("best", "majority"))
    budget: LLMBudget = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        problems = _check_names("task.rows", self.rows, ROWS) + _check_names("task.filters", self.filters, FILTERS)
        empty = [key for key, limit in config.task.budget.items() if limit == 0]
        problems += [f"task.budget.{key} must be greater than 0, or null" for key in empty]
        if self.n_keep > self.num_candidates:
            problems.append(f"task.n_keep={self.n_keep} is more than task.num_candidates={self.num_candidates}")
        problems += _check_pattern(self.answer_pattern)
        if config.llm is None:
            problems.append("llm: this task asks a language model; name one, llm=smollm2")
        elif config.llm.backend == "endpoint" and config.llm.score == "none" and (needs := scoring_parts(self)):
            problems.append(
                f"llm={config.llm.name} llm.api={config.llm.api} cannot score given text (needed by "
                f"{', '.join(needs)}); use a local model, a server that scores (llm.score), or task.rows without them"
            )
        if is_private(config):
            problems.append("privacy: this task trains nothing, so there is nothing that privacy=dp_sgd could protect")
        return problems


@dataclass
class StrategyQAConfig:
    """Questions with their facts (configs/data/strategyqa*.yaml)."""

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    hub_id: str | None = setting(instead_of=("path", "embedded"))
    path: str | None = setting(same_run=True, not_with=("embedded", "hub_id"))  # its fingerprint stands for it
    embedded: bool = setting(instead_of=("path", "hub_id"), not_with=("hub_id",))
    split: str = MISSING
    subset: str = setting(options=SUBSETS)
    paragraphs: str | None = MISSING
    max_paragraph_chars: int = setting(above=0)
    licence: str = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        return embedded_and_hub(self)


SCHEMAS = {"data": {"strategyqa": StrategyQAConfig}}


def scoring_parts(task: Any) -> list[str]:
    """What asks for the likelihood of given texts."""
    parts = [f"row {row}" for row in task.rows if row in TREE_ROWS]
    return parts + (["row filter"] if "filter" in task.rows and "likelihood" in task.filters else [])


def _check_names(field: str, names: Any, options: tuple[str, ...]) -> list[str]:
    if not names:
        return [f"{field} is empty: name at least one of {', '.join(options)}"]
    return [f"{field} names one of them twice: {', '.join(names)}"] if len(set(names)) < len(names) else []


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


def contents(config: Any) -> dict[str, Content]:
    """Whether questions and weights are what their names promise."""
    from privlm.llm.local.weights import llm_contents

    from .strategyqa import content_of

    return {"data": content_of(config.data), **llm_contents(config.llm)}


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
