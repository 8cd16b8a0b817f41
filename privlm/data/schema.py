"""The schemas of the data group."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class InstructionData:
    """Instructions with the responses to learn (configs/data)."""

    name: str = MISSING
    path: str | None = MISSING
    embedded: bool = MISSING
    hub_id: str | None = MISSING
    hub_files: dict[str, str] = MISSING
    aliases: dict[str, str] = MISSING
    template: str = MISSING
    train_split: str = MISSING
    eval_splits: list[str] = MISSING
    max_train_examples: int | None = MISSING
    encoding: str | None = MISSING
    quoting: str | None = MISSING
    licence: str = MISSING
