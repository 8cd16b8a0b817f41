"""What a run of FedIT would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from privlm import forecast
from privlm.config import Config
from privlm.data.instructions import Instruction
from privlm.federated.forecast import rounds
from privlm.federated.partition import Parts
from privlm.federated.schema import is_federated
from privlm.llm.budget import Spent

from .clients import deal
from .judge_prompts import PAIRWISE, SINGLE
from .questions import Question, read_questions
from .splits import Splits, load


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    data, task = load(config), config.task
    parts = deal(data.train, config) if is_federated(config) else {}
    training = _training(config, data, parts)
    steps, size = training.get("steps", 0), forecast.size(config)
    questions = read_questions(task.questions).questions if task.questions else []
    return {
        "training_rows": len(data.train),
        "test_rows": len(data.test),
        "rows_per_client": {client: len(rows) for client, rows in parts.items()} or _rows_per_client(data),
        **training,
        "rows_seen": steps * config.trainer.batch_size,
        "train_on_inputs": task.train_on_inputs,
        "template": config.data.template,
        "questions": len(questions),
        "max_new_tokens": task.max_new_tokens,
        **size | ({"trainable_parameters": None} if is_federated(config) and config.federated.lora == "ffa" else {}),
        "seconds": _seconds(config, data, steps, len(questions), size["parameters"]),
        **forecast.asking({"judge": _judged(task, questions)}, config.llm),
    }


def _training(config: Config, data: Splits, parts: Parts) -> dict[str, Any]:
    """Of one model, or of all clients in all rounds together."""
    if config.adapter.name == "none":
        return {}
    if not parts:
        return forecast.training(config, len(data.train))
    sent = forecast.size(config)["trainable_parameters"] if config.federated.lora != "ffa" else None
    return rounds(config, {client: len(rows) for client, rows in parts.items()}, num_sent=sent)


def _rows_per_client(data: Splits) -> dict[str, int]:
    """Of those whose rows are learnt."""
    counts = Counter(row.client for row in data.train)
    return {client: counts[client] for client in data.clients if counts[client]}


def _judged(task: Any, questions: Sequence[Question]) -> Spent:
    """Answers are counted at their full length, of which a prompt of a pair holds two."""
    if task.judge == "none":
        return Spent()
    is_pair = task.judge == "pairwise"
    times = 2 if is_pair or task.compare_with else 1
    calls = times * len(questions)
    asked = times * forecast.tokens(sum(len(question.text) for question in questions))
    frame = forecast.tokens(len(PAIRWISE if is_pair else SINGLE)) + (2 if is_pair else 1) * task.max_new_tokens
    return Spent(calls, asked + calls * frame, calls * task.judge_max_tokens)


def _seconds(config: Config, data: Splits, steps: int, num_questions: int, num_parameters: int | None) -> float | None:
    """Answers are counted at their full length."""
    task, length = config.task, config.model.max_length

    def tokens(rows: list[Instruction]) -> int:
        return sum(min(forecast.tokens(len(row.question) + len(row.response)), length) for row in rows)

    answered = len(data.test) if task.num_generated is None else min(task.num_generated, len(data.test))
    read = tokens(data.test)
    written = (answered + num_questions) * (task.max_new_tokens + read / len(data.test))
    return forecast.seconds(
        config,
        num_parameters=num_parameters,
        train_tokens=tokens(data.train) / len(data.train) * steps * config.trainer.batch_size,
        evaluation_tokens=(2 if steps else 1) * read + written,
        num_evaluations=1,
    )
