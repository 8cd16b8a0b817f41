"""Schema, checks and inputs of the task `ewtune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.schema import TaskConfig

FEATURE_BATCH = 32
"""Texts that pass the frozen encoder at a time when their features are cached (adapter=head)."""


@dataclass
class TrainingPreset:
    """Settings that fit one adapter; other_params is that of rgp."""

    optimizer: str = MISSING
    learning_rate: float = MISSING
    learning_rates: dict[str, float] = MISSING
    steps: int | None = MISSING
    epochs: float | None = MISSING
    schedule: str = MISSING
    micro_batch_size: int = MISSING
    other_params: str | None = MISSING


@dataclass
class BudgetPreset:
    """Budget and batch of one published setting."""

    batch_size: int = MISSING
    epochs: float = MISSING
    epsilon: float = MISSING
    delta: Any = MISSING
    clipping_norm: float = MISSING
    allow_large_delta: bool = MISSING


@dataclass
class Task(TaskConfig):
    """setting and settings are read by the paper's recipe, max_train_examples by the small one, presets by all."""

    presets: dict[str, TrainingPreset] = MISSING
    max_train_examples: dict[str, int | None] = MISSING
    setting: str = MISSING
    settings: dict[str, BudgetPreset] = MISSING


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the run reads, found before anything heavy is imported.

    Raises UsageError for what is not at hand, model and data in one message.
    """

    from privlm.data.locate import locate
    from privlm.models.locate import locate_model
    from privlm.schema import all_found

    return all_found(
        lambda: {"model": locate_model(config.model).fingerprint},
        lambda: {"data": locate(config.data).fingerprint},
    )
