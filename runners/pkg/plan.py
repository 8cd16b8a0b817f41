"""What a run of PKG would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any

from privlm import forecast
from privlm.config import Config
from privlm.llm.budget import Spent

from .config import ASKED
from .prompts import guide_prompt, read_prompt, write_prompt
from .questions_data import Questions, load


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    data, task = load(config.data), config.task
    aligns = "pkg" in task.guides and task.guide_run is None
    found: dict[str, Any] = {"training_examples": len(data.train), "questions": len(data.test)}
    if aligns:
        found |= forecast.training(config, len(data.train)) | forecast.size(config)
    return {
        **found,
        "background_max_tokens": task.background_max_tokens,
        "answer_max_tokens": task.answer_max_tokens,
        "retrieval_pool": task.retrieval_pool,
        "passages": len(data.passages),
        "contaminated": data.leak.exact + data.leak.group,
        **forecast.asking({guide: _asked(guide, data, config) for guide in task.guides}, config.llm),
        "guide_calls": len(data.test) if "pkg" in task.guides else 0,
        "guide_prompt_tokens": _tokens(guide_prompt(row, config.data.kind) for row in data.test),
        "marks": list(data.marks),
    }


def _asked(guide: str, data: Questions, config: Config) -> Spent:
    """Of the black box. Written backgrounds are counted at their full length."""
    kind, most = config.data.kind, config.task.background_max_tokens
    n = len(data.test)
    prompts = _tokens(read_prompt(row, kind, guide, row.background if guide == "gold" else "") for row in data.test)
    if guide not in ("none", "gold"):
        prompts += n * most
    calls, completions = n, n * config.task.answer_max_tokens
    if guide in ASKED:
        prompts += _tokens(write_prompt(row, kind, guide) for row in data.test)
        calls, completions = 2 * n, completions + n * most
    return Spent(calls, prompts, completions)


def _tokens(texts: Any) -> int:
    return forecast.tokens(sum(map(len, texts)))
