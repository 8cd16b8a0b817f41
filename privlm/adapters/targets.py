"""Which modules of an encoder get a LoRA pair, or are trained by RGP. No torch."""

from __future__ import annotations

from privlm.adapters.schema import AdapterConfig
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
    chosen = _named(targets, shapes, f"Linear or Embedding of {model_type}")
    _refuse_excess_rank(config.rank, chosen)
    return chosen


def rgp_targets(config: AdapterConfig, shapes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The Linear layers among `shapes` (name -> weight shape) that `adapter.target_modules` names, or all.

    Raises:
        UsageError: a setting of RGP is absent, the rank exceeds a weight's, no Linear layer, or a target without one.
    """
    if config.rank is None or config.power_iterations is None or config.other_params is None:
        raise UsageError("adapter.rank, adapter.power_iterations, adapter.other_params: adapter=rgp needs all three")
    if not shapes:
        raise UsageError("adapter=rgp: the model has no Linear layer to reparametrize; choose another adapter")
    chosen = _named(config.target_modules, shapes, "Linear layer") if config.target_modules else shapes
    _refuse_excess_rank(config.rank, chosen)
    return chosen


def _named(targets: list[str], shapes: dict[str, tuple[int, int]], kind: str) -> dict[str, tuple[int, int]]:
    chosen: dict[str, tuple[int, int]] = {}
    for target in targets:
        matched = {name: shape for name, shape in shapes.items() if f".{name}".endswith(f".{target}")}
        if not matched:
            raise UsageError(f"adapter.target_modules: no {kind} is named '{target}'")
        chosen |= matched
    return chosen


def _refuse_excess_rank(rank: int, chosen: dict[str, tuple[int, int]]) -> None:
    for name, shape in chosen.items():
        if rank > min(shape):
            raise UsageError(f"adapter.rank={rank} exceeds the rank of {name}, {shape[0]} x {shape[1]}")
