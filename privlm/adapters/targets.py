"""Which modules of a model get a LoRA pair, or are trained by RGP. No torch."""

from __future__ import annotations

from privlm.adapters.schema import AdapterConfig
from privlm.errors import UsageError

PRESETS = {
    architecture: modules.split()
    for modules, architectures in {
        "query value": "bert roberta xlm-roberta camembert electra",
        "q_lin v_lin": "distilbert",
        "q v": "mpnet",
        "q_proj v_proj": "llama mistral qwen2 qwen3 gemma gemma2 opt phi gptj gpt_neo stablelm starcoder2",
        "qkv_proj": "phi3",
        "c_attn": "gpt2 gpt_bigcode",
        "query_key_value": "gpt_neox bloom falcon",
    }.items()
    for architecture in architectures.split()
}
"""Architecture -> modules adapted by default: the two projections of Hu et al., arXiv 2106.09685, section 4.2, or the
layer that holds them where queries, keys and values are one."""


def require_head(config: AdapterConfig, model_type: str, *, has_head: bool) -> None:
    """Raises UsageError where adapter=head finds nothing to train."""
    if config.name != "head":
        return
    if not has_head:
        raise UsageError(f"adapter=head: {model_type} has no head beside it; choose adapter=lora, rgp or full")
    if not config.train_head:
        raise UsageError("adapter.train_head=false leaves adapter=head nothing to train")


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

    shapes: without the layer that gives the logits of a language model.

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
