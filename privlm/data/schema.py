"""The schemas of the group `data` that several tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.schema import setting

QUOTING = ("none", "rfc4180")
ON_BAD_ROW = ("skip", "fail")


@dataclass
class DataConfig:
    """A text-classification data set (configs/data)."""

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    format: str = setting(options=("sms", "glue"))
    hub_id: str | None = setting(instead_of=("path",), not_with=("path",))
    hub_config: str | None = setting(instead_of=("path",), not_with=("path",))
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

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        problems = []
        if self.positive_label is not None and self.positive_label not in self.labels:
            labels = ", ".join(self.labels)
            problems.append(f"data.positive_label={self.positive_label} is none of data.labels ({labels})")
        if len(set(self.labels)) < max(len(self.labels), 2):
            problems.append(f"data.labels: name two classes or more, each once, not [{', '.join(self.labels)}]")
        hub = [f"data.{name}" for name in ("hub_id", "hub_config") if getattr(self, name)]
        if self.format == "sms" and hub:
            problems.append(f"{hub[0]}: data.format=sms is read from data.path or as embedded, never from a hub")
        if self.format == "glue" and hub == ["data.hub_config"]:
            problems.append("data.hub_config is a part of data.hub_id: name that too")
        return problems


@dataclass
class InstructionData:
    """Instructions with the responses to learn (configs/data)."""

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    path: str | None = setting(same_run=True, not_with=("embedded", "hub_id", "hub_files"))  # its fingerprint counts
    embedded: bool = setting(instead_of=("path", "hub_id"), not_with=("hub_id", "hub_files"))
    hub_id: str | None = setting(instead_of=("path", "embedded"))
    hub_files: dict[str, str] = setting(instead_of=("path", "embedded"))
    aliases: dict[str, str] = MISSING
    template: str = setting(options=("alpaca", "alpaca_legacy", "alpaca_short", "vigogne", "plain"))
    train_split: str = MISSING
    eval_splits: list[str] = MISSING
    held_out_per_category: int | None = setting(above=0)
    max_train_examples: int | None = setting(above=0)
    on_bad_row: str | None = setting(options=ON_BAD_ROW)
    encoding: str | None = MISSING
    quoting: str | None = setting(options=QUOTING)
    licence: str = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        return embedded_and_hub(self)


def embedded_and_hub(data: Any) -> list[str]:
    """A problem where the embedded rows would leave a repository unread."""
    both = data.embedded and data.hub_id and not data.path
    return [f"data.embedded leaves data.hub_id={data.hub_id} unread: set data.embedded=false"] if both else []
