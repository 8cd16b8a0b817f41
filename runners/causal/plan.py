"""What a run of the task `causal` would ask, for `--dry-run`. No torch, no call."""

from __future__ import annotations

from typing import Any

from privlm.config import Config

from .config import suite_names
from .sources import Sources
from .suites import load_all

CHARACTERS_PER_TOKEN = 4.0  # English text


def plan(config: Config) -> dict[str, Any]:
    """Name -> value. prompt_tokens is an estimate from characters; what a call record holds already is not asked."""
    task = config.task
    suites = load_all(Sources(config.data.path), task, config.seed)
    calls: dict[str, int] = {}
    prompt_characters = completion_tokens = 0
    for suite in suites:
        system = len(suite.system or "") if task.chat else 0
        asked = [item.question for item in suite.items]
        asked += [item.swapped for item in suite.items if item.swapped is not None and task.swap_options]
        steps = 2 if any(item.follow_up for item in suite.items) else 1
        calls[suite.name] = len(asked) * steps * task.n_samples
        prompt_characters += sum(len(question.prompt) + system for question in asked) * steps * task.n_samples
        completion_tokens += calls[suite.name] * suite.max_tokens
    return {
        "suites": list(calls),
        "items": sum(len(suite.items) for suite in suites),
        **{f"calls_{name}": number for name, number in calls.items()},
        "calls": sum(calls.values()),
        "prompt_tokens": round(prompt_characters / CHARACTERS_PER_TOKEN),
        "completion_tokens_at_most": completion_tokens,
        "parser": task.parser,
        "credit": task.credit,
        "numeric_baselines": list(task.numeric.methods) if "numeric" in suite_names(task) else [],
    }
