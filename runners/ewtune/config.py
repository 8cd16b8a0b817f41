"""Schema and checks of the task `ewtune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class TrainingPreset:
    """Training settings of one adapter; the recipe's trainer section reads those of the chosen adapter."""

    optimizer: str = MISSING
    learning_rate: float = MISSING
    steps: int | None = MISSING
    epochs: float | None = MISSING
    schedule: str = MISSING


@dataclass
class Task:
    name: str = MISSING
    presets: dict[str, TrainingPreset] = MISSING


def check(config: Any) -> list[str]:
    if config.adapter.name not in config.task.presets:
        known = ", ".join(sorted(config.task.presets))
        return [f"task.presets: no training preset for adapter '{config.adapter.name}' (there are {known})"]
    return []
