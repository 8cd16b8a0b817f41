"""The schema of the group `model`, and what it shares with the weights of the group `llm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.schema import setting

CAUSAL_LM = "causal_lm"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Weights:
    """Where weights come from: a path, else a random shape, else an installed package, else the hub."""

    name: str = MISSING
    hub_id: str | None = MISSING
    path: str | None = setting(same_run=True)  # its fingerprint stands for it: moved weights are the same run
    package: str | None = MISSING
    package_folder: str | None = MISSING
    sha256: dict[str, str] = MISSING
    random: dict[str, Any] | None = MISSING


@dataclass
class ModelConfig(Weights):
    """A pretrained or random text encoder with a classification head (configs/model)."""

    pooling: str = setting(options=("mean", "cls"))
    normalize_features: bool = MISSING
    head: str = setting(options=("linear", "mlp"))
    dropout: float | None = setting(at_least=0, below=1)
    max_length: int = setting(above=0)
    pretrained_on: list[str] = MISSING


@dataclass
class CausalLMConfig(Weights):
    """A pretrained or random causal language model that a run trains (configs/model)."""

    family: str = setting(options=(CAUSAL_LM,))
    gguf_file: str | None = MISSING
    dtype: str = setting(options=DTYPES)
    max_length: int = setting(above=0)
    pretrained_on: list[str] = MISSING


def is_causal_lm(config: Any) -> bool:
    """Whether a `model` group describes a causal language model: as an object, as composed, or as a run holds it."""
    return getattr(config, "family", None) == CAUSAL_LM
