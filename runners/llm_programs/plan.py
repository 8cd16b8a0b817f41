"""What a run would ask and about how long it would take, for `--dry-run`. No torch."""

from __future__ import annotations

from math import ceil
from typing import Any

from privlm import forecast
from privlm.config import Config
from privlm.llm.budget import Spent

from .config import TREE_ROWS
from .parts import Part, ask, make_parts
from .prompts import load_shots
from .strategyqa import load

TOKENS_PER_SECOND = {"smollm2": 250.0}
"""With this task on one CPU core, counting what prompts share each time; of other models it is not known here."""

SCORED_PROMPT = 40  # tokens of a paragraph with its question


def plan(config: Config) -> dict[str, Any]:
    """Name -> value. Estimates: no answer is asked for again, and a search ends as soon as it can with all its chains
    at full length.
    """
    data = load(config.data, config.task.num_questions)
    asked = {part.name: _asked(part, config) for part in make_parts(config, data, has_logprobs=True)}
    tokens = sum(spent.tokens for spent in asked.values())
    speed = TOKENS_PER_SECOND.get(config.llm.name)
    return {
        "questions": len(data.questions),
        "paragraphs": len(data.pool),
        **forecast.asking(asked, config.llm),
        "seconds_on_one_core": None if speed is None else round(tokens / speed),
    }


def _asked(part: Part, config: Config) -> Spent:
    if part.program is ask:
        characters = sum(len(str(step.prompt(variables))) for step, variables in part.items.values())
        written = sum(step.max_tokens for step, _ in part.items.values())
        return Spent(len(part.items), forecast.tokens(characters), written)
    if part.name in TREE_ROWS:
        return _asked_by_tree(part, config)
    if part.name in ("filter_bm25", "filter_none"):
        return Spent()
    characters = 0
    for steps, _, question, candidates, _ in part.items.values():
        step = steps.likelihood if part.name == "filter_likelihood" else steps.relevance
        around = len(step.template) + len(question)
        characters += sum(around + len(paragraph.text) for paragraph in candidates)
    return Spent(len(part.items) * config.task.num_candidates, forecast.tokens(characters))


def _asked_by_tree(part: Part, config: Config) -> Spent:
    """Each expansion asks for one step a paragraph; the criterion delta scores each of them twice more."""
    task = config.task
    expansions = task.max_steps - 1 + ceil((task.complete_above + 1) / task.n_keep)
    per_step = 3 if part.name == "tree_delta" else 1
    calls = expansions * task.n_keep * per_step
    filtered = task.num_candidates if task.filter in ("likelihood", "black_box") else 0
    if task.budget.calls is not None:
        calls = min(calls, task.budget.calls - filtered)
    shots = forecast.tokens(len(load_shots(task.examples, task.num_shots).step))
    num_items = len(part.items)
    return Spent(
        num_items * (calls + filtered),
        num_items * (calls * (shots + SCORED_PROMPT) + filtered * SCORED_PROMPT),
        num_items * calls * task.step_max_tokens,
    )
