"""What a run of the task `causal` would ask, for `--dry-run`. No torch, no call."""

from __future__ import annotations

from typing import Any

from privlm import forecast
from privlm.config import Config
from privlm.llm.budget import Spent

from .config import suite_names
from .sources import Sources
from .suite import Suite
from .suites import load_all


def plan(config: Config) -> dict[str, Any]:
    """Name -> value. prompt_tokens is an estimate from characters; what a call record holds already is not asked."""
    task = config.task
    suites = load_all(Sources(config.data.path), task, config.seed)
    return {
        "suites": [suite.name for suite in suites],
        "items": sum(len(suite.items) for suite in suites),
        **forecast.asking({suite.name: _asked(suite, task) for suite in suites}, config.llm),
        "parser": task.parser,
        "credit": task.credit,
        "numeric_baselines": list(task.numeric.methods) if "numeric" in suite_names(task) else [],
    }


def _asked(suite: Suite, task: Any) -> Spent:
    system = len(suite.system or "") if task.chat else 0
    questions = [item.question for item in suite.items]
    questions += [item.swapped for item in suite.items if item.swapped is not None and task.swap_options]
    times = task.n_samples * (2 if any(item.follow_up for item in suite.items) else 1)
    characters = sum(len(question.prompt) + system for question in questions)
    calls = len(questions) * times
    return Spent(calls, forecast.tokens(characters * times), calls * suite.max_tokens)
