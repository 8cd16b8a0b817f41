"""The schema of the group `adapter`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.adapters.presets import WIRINGS
from privlm.schema import setting

ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh",
    "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu",
    "sqrtsoftplus", "swish", "tanh",
)  # fmt: skip
"""Of transformers, without parameters of their own: what privlm.adapters.bottleneck.activations gives."""

LEARNED = "learned"
INITS = ("bert", "mam")


@dataclass
class AdapterConfig:
    """Which parameters train (configs/adapter). Null is a setting of another adapter, or its preset."""

    name: str = setting(
        options=(
            "none", "full", "head", "lora", "lora_emnlp", "dora", "ia3", "rgp", "adapter_h", "adapter_p", "parallel",
            "scaled_parallel", "prefix", "prompt",
        )
    )  # fmt: skip
    rank: int | None = setting(above=0)
    alpha: float | None = setting(above=0)
    dropout: float | None = setting(at_least=0, below=1)
    target_modules: list[str] | None = MISSING
    train_head: bool = MISSING
    power_iterations: int | None = setting(above=0)
    other_params: str | None = setting(options=("train", "freeze"))
    # Null, and absent from the file of an adapter that knows nothing of them.
    fused_qkv: str | None = setting(options=("qv", "all"), default=None)
    bottleneck_size: int | None = setting(above=0, default=None)
    activation: str | None = setting(options=ACTIVATIONS, default=None)
    scale: int | float | str | None = setting(default=None)
    init: str | None = setting(options=INITS, default=None)
    wirings: dict[str, str] | None = setting(options=WIRINGS, default=None)
    num_virtual_tokens: int | None = setting(above=0, default=None)

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        scale = getattr(self, "scale", None)
        if isinstance(scale, str) and scale != LEARNED:
            return [f"adapter.scale must be a number or '{LEARNED}', not '{scale}'"]
        return []
