"""What a run of LLM-Adapters would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any

from privlm import forecast
from privlm.config import Config

from .math_data import MathData, load


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    data, task = load(config.data), config.task
    training, size = forecast.training(config, len(data.train)), forecast.size(config)
    return {
        "training_examples": len(data.train),
        "held_out_examples": len(data.held_out),
        **training,
        "train_on_inputs": task.train_on_inputs,
        "prompt_style": task.prompt_style,
        "num_beams": task.num_beams,
        "max_new_tokens": task.max_new_tokens,
        "questions": {name: len(questions) for name, questions in data.tests.items()},
        "contaminated": {name: shared.exact_test for name, shared in data.overlaps.items()},
        **size,
        "seconds": _seconds(config, data, training["steps"], size["parameters"]),
        "marks": list(data.marks),
    }


def _seconds(config: Config, data: MathData, steps: int, num_parameters: int | None) -> float | None:
    """Answers are counted at their full length."""
    task, length = config.task, config.model.max_length
    texts = [len(question.text) + len(question.output) for question in data.train]
    per_example = sum(min(forecast.tokens(size), length) for size in texts) / len(texts)
    asked = [question for questions in data.tests.values() for question in questions]
    read = sum(forecast.tokens(len(question.text)) + task.max_new_tokens * task.num_beams for question in asked)
    return forecast.seconds(
        config,
        num_parameters=num_parameters,
        train_tokens=per_example * steps * config.trainer.batch_size,
        evaluation_tokens=read + per_example * len(data.held_out),
        num_evaluations=2 if task.evaluate_base else 1,
    )
