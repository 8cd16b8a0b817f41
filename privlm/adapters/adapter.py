"""Chooses what trains: a head alone, LoRA pairs beside a frozen model, its weights by RGP, or everything."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from privlm.adapters.estimate import ParameterCount
from privlm.adapters.schema import AdapterConfig
from privlm.adapters.targets import lora_targets, require_head, rgp_targets
from privlm.errors import UsageError
from privlm.privacy.rgp import ReparametrizedLinear


def apply_adapter(base: nn.Module, config: AdapterConfig, seed: int, head: nn.Module | None = None) -> nn.Module:
    """Sets requires_grad of every parameter; LoRA wraps the model by peft, RGP replaces its Linear layers.

    Changes `base` and returns what stands in its place.

    Args:
        base: any transformers or torch model: an encoder, a causal language model, a model of your own.
        seed: decides LoRA's initial values; torch's global generator is neither read nor moved.
        head: layers beside the base or within it that have no pretrained weights; adapter.train_head speaks of them.

    Raises:
        UsageError: unknown adapter, nothing left to train, or as `lora_targets` and `rgp_targets`.
    """
    if config.name not in ADAPTERS:
        raise UsageError(f"adapter.name: '{config.name}' is not one of {', '.join(ADAPTERS)}")
    assert not isinstance(base, PeftModel), "the model has an adapter already"
    require_head(config, _model_type(base), has_head=head is not None)
    adapted = ADAPTERS[config.name](base, config, seed, head)
    if head is not None:
        head.requires_grad_(config.train_head)
    return adapted


def count_parameters(model: nn.Module) -> ParameterCount:
    """Parameters that require a gradient, and all; a tied one counts once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def merge_adapter(base: Any) -> Any:
    """The base, changed: what its adapter has learnt is in its own weights, as its library saves and loads them."""
    if isinstance(base, PeftModel):
        return base.merge_and_unload()
    for name, module in list(base.named_modules()):
        if isinstance(module, ReparametrizedLinear):
            base.set_submodule(name, module.merged())
    return base


def _frozen(base: nn.Module, config: AdapterConfig, seed: int, head: nn.Module | None) -> nn.Module:
    return base.requires_grad_(False)


def _whole(base: nn.Module, config: AdapterConfig, seed: int, head: nn.Module | None) -> nn.Module:
    return base.requires_grad_(True)


def _with_lora(base: Any, config: AdapterConfig, seed: int, head: nn.Module | None) -> nn.Module:
    modules = {
        name: module for name, module in base.named_modules() if isinstance(module, nn.Linear | nn.Embedding | Conv1D)
    }
    shapes = {name: (module.weight.shape[0], module.weight.shape[1]) for name, module in modules.items()}
    targets = lora_targets(config, _model_type(base), shapes)
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    lora = LoraConfig(
        **settings,
        target_modules=sorted(targets),
        bias="none",
        fan_in_fan_out=any(isinstance(modules[name], Conv1D) for name in targets),  # Conv1D keeps its weight transposed
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # of Linear beside Conv1D: peft sets it for each
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # which peft asks transformers for
        torch.manual_seed(seed)
        return get_peft_model(base, lora)


def _reparametrized(base: Any, config: AdapterConfig, seed: int, head: nn.Module | None) -> nn.Module:
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    apart = {output, *(head.modules() if head is not None else ())}
    linears = {
        name: module for name, module in base.named_modules() if isinstance(module, nn.Linear) and module not in apart
    }
    targets = rgp_targets(config, {name: (m.out_features, m.in_features) for name, m in linears.items()})
    _refuse_shared(base, linears, targets)
    assert config.rank is not None
    assert config.power_iterations is not None
    for parameter in base.parameters():  # biases and norms may train; tables and other matrices stay
        parameter.requires_grad_(config.other_params == "train" and parameter.ndim == 1)
    for name in targets:
        base.set_submodule(name, ReparametrizedLinear(linears[name], config.rank, config.power_iterations))
    return base


def _refuse_shared(base: nn.Module, linears: dict[str, nn.Linear], targets: Iterable[str]) -> None:
    uses = Counter(id(parameter) for _, parameter in base.named_parameters(remove_duplicate=False))
    for name in targets:
        if uses[id(linears[name].weight)] > 1:
            raise UsageError(
                f"adapter=rgp: {name} shares its weight with another layer, whose own gradient would be lost; "
                "leave both out of adapter.target_modules"
            )


def _model_type(base: nn.Module) -> str:
    return getattr(getattr(base, "config", None), "model_type", type(base).__name__)


ADAPTERS: dict[str, Callable[[nn.Module, AdapterConfig, int, nn.Module | None], nn.Module]] = {
    "head": _frozen,
    "lora": _with_lora,
    "rgp": _reparametrized,
    "full": _whole,
}
"""Adapter -> what makes it of (base, config, seed, head)."""
