"""Schemas of the group `model`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf


@dataclass
class CausalLMConfig:
    """A pretrained or random causal language model that a run trains (configs/model)."""

    name: str = MISSING
    hub_id: str | None = MISSING
    path: str | None = MISSING
    package: str | None = MISSING
    package_folder: str | None = MISSING
    gguf_file: str | None = MISSING
    sha256: dict[str, str] = MISSING
    random: dict[str, Any] | None = MISSING
    dtype: str = MISSING
    max_length: int = MISSING
    pretrained_on: list[str] = MISSING


def is_causal_lm(config: Any) -> bool:
    """Whether a `model` group describes a causal language model: told by its fields, since the configuration that a run
    reads back has no classes.
    """
    return "gguf_file" in (config if OmegaConf.is_config(config) else vars(config))
