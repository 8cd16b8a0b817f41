"""The schema of the group `adapter`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from privlm.schema import setting


@dataclass
class AdapterConfig:
    """Which parameters train (configs/adapter)."""

    name: str = setting(options=("head", "lora", "rgp", "full"))
    rank: int | None = setting(above=0)
    alpha: float | None = setting(above=0)
    dropout: float | None = setting(at_least=0, below=1)
    target_modules: list[str] | None = MISSING
    train_head: bool = MISSING
    power_iterations: int | None = setting(above=0)
    other_params: str | None = setting(options=("train", "freeze"))
