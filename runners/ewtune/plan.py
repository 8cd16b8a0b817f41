"""What a run of EW-Tune would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any

from privlm import forecast
from privlm.config import Config
from privlm.data.text_classification import Split, TextClassification, load, marks
from privlm.training.batches import num_steps

from .config import FEATURE_BATCH


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    data = load(config.data)
    steps = num_steps(config.trainer, len(data.train))
    price = forecast.privacy(config, dataset_size=len(data.train), steps=steps)
    size = forecast.size(config, num_labels=len(data.labels), feature_batch=FEATURE_BATCH)
    return {
        "training_examples": len(data.train),
        "steps": steps,
        "batch_size": config.trainer.batch_size,
        **price,
        **size,
        "seconds": _seconds(config, data, steps, size["parameters"]),
        "marks": marks(data, config.data, config.model.pretrained_on),
    }


def _seconds(config: Config, data: TextClassification, steps: int, num_parameters: int | None) -> float | None:
    trainer = config.trainer
    is_head = config.adapter.name == "head"
    per_example = _tokens(data.train, config) / len(data.train)
    return forecast.seconds(
        config,
        num_parameters=num_parameters,
        train_tokens=per_example * (len(data.train) if is_head else steps * trainer.batch_size),
        evaluation_tokens=sum(_tokens(split, config) for split in data.evaluation.values()),
        num_evaluations=1 + (steps // trainer.evaluate_every if trainer.evaluate_every else 0),
    )


def _tokens(split: Split, config: Config) -> float:
    """Of all examples, each cut at the model's length; two for the marks at its ends."""
    lengths = [sum(forecast.tokens(len(text)) for text in texts) + 2 for texts in zip(*split.texts, strict=True)]
    return float(sum(min(length, config.model.max_length) for length in lengths))
