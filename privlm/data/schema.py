"""The schemas of the group `data` that several tasks share."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from privlm.schema import setting

QUOTING = ("none", "rfc4180")


@dataclass
class DataConfig:
    """A text-classification data set (configs/data)."""

    name: str = MISSING
    format: str = setting(options=("sms", "glue"))
    hub_id: str | None = MISSING
    hub_config: str | None = MISSING
    path: str | None = setting(same_run=True)  # its fingerprint stands for it: moved data is the same run
    text_fields: list[str] = MISSING
    label_field: str = MISSING
    aliases: dict[str, str] = MISSING
    labels: list[str] = MISSING
    positive_label: str | None = MISSING
    train_split: str = MISSING
    eval_splits: list[str] = MISSING
    max_train_examples: int | None = setting(above=0)
    split_sizes: dict[str, int] = MISSING
    encoding: str | None = MISSING
    quoting: str | None = setting(options=QUOTING)
    licence: str = MISSING
    public_overlap: list[str] = MISSING


@dataclass
class InstructionData:
    """Instructions with the responses to learn (configs/data)."""

    name: str = MISSING
    path: str | None = setting(same_run=True)  # its fingerprint stands for it
    embedded: bool = MISSING
    hub_id: str | None = MISSING
    hub_files: dict[str, str] = MISSING
    aliases: dict[str, str] = MISSING
    template: str = setting(options=("alpaca", "alpaca_short", "plain"))
    train_split: str = MISSING
    eval_splits: list[str] = MISSING
    max_train_examples: int | None = setting(above=0)
    encoding: str | None = MISSING
    quoting: str | None = setting(options=QUOTING)
    licence: str = MISSING
