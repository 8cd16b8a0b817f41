"""Which modules of an encoder get a LoRA pair. No torch."""

from __future__ import annotations

from privlm.config import AdapterConfig
from privlm.errors import UsageError

PRESETS = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
}
"""Architecture -> modules adapted by default: the two projections of Hu et al., arXiv 2106.09685, section 4.2."""


def lora_targets(
    config: AdapterConfig, model_type: str, shapes: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """The modules among `shapes` (name -> weight shape) that `adapter.target_modules` or the preset names.

    A target is a module's full name or its end after a dot, as in peft.

    Raises:
        UsageError: a setting of LoRA is absent, the rank exceeds a weight's, no preset, or a target without a module.
    """
    if config.rank is None or config.alpha is None or config.dropout is None:
        raise UsageError("adapter.rank, adapter.alpha, adapter.dropout: adapter=lora needs all three")
    targets = config.target_modules or PRESETS.get(model_type)
    if not targets:
        raise UsageError(f"adapter.target_modules: no preset for '{model_type}'; list the modules to adapt")
    chosen: dict[str, tuple[int, int]] = {}
    for target in targets:
        matched = {name: shape for name, shape in shapes.items() if f".{name}".endswith(f".{target}")}
        if not matched:
            raise UsageError(f"adapter.target_modules: no Linear or Embedding of {model_type} is named '{target}'")
        chosen |= matched
    for name, shape in chosen.items():
        if config.rank > min(shape):
            raise UsageError(f"adapter.rank={config.rank} exceeds the rank of {name}, {shape[0]} x {shape[1]}")
    return chosen
