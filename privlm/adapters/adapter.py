"""Chooses what trains: the head alone, LoRA pairs beside a frozen encoder, its weights by RGP, or everything."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from privlm.adapters.estimate import ParameterCount
from privlm.adapters.schema import AdapterConfig
from privlm.adapters.targets import lora_targets, rgp_targets
from privlm.errors import UsageError
from privlm.models.encoder import EncoderClassifier
from privlm.privacy.rgp import ReparametrizedLinear


def apply_adapter(model: EncoderClassifier, config: AdapterConfig, seed: int) -> EncoderClassifier:
    """Sets requires_grad of every parameter; LoRA wraps the encoder by peft, RGP replaces its Linear layers.

    Changes and returns `model`.

    Args:
        seed: decides LoRA's initial values; torch's global generator is neither read nor moved.

    Raises:
        UsageError: unknown adapter, nothing left to train, or as `lora_targets` and `rgp_targets`.
    """
    if config.name not in ("head", "lora", "rgp", "full"):
        raise UsageError(f"adapter.name: '{config.name}' is not one of head, lora, rgp, full")
    if config.name == "head" and not config.train_head:
        raise UsageError("adapter.train_head=false leaves adapter=head nothing to train")
    model.encoder.requires_grad_(config.name == "full")
    model.head.requires_grad_(config.train_head)
    if config.name in ("lora", "rgp"):
        assert isinstance(model.encoder, PreTrainedModel), "the model has an adapter already"
        if config.name == "lora":
            model.encoder = _with_lora(model.encoder, config, seed)
        else:
            _reparametrize(model.encoder, config)
    return model


def count_parameters(model: nn.Module) -> ParameterCount:
    """Parameters that require a gradient, and all; a tied one counts once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def _with_lora(encoder: PreTrainedModel, config: AdapterConfig, seed: int) -> PeftModel:
    shapes = {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    targets = lora_targets(config, encoder.config.model_type, shapes)
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    lora = LoraConfig(**settings, target_modules=sorted(targets), bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(encoder, lora)


def _reparametrize(encoder: PreTrainedModel, config: AdapterConfig) -> None:
    linears = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    targets = rgp_targets(config, {name: (m.out_features, m.in_features) for name, m in linears.items()})
    assert config.rank is not None
    assert config.power_iterations is not None
    if config.other_params == "train":
        for parameter in encoder.parameters():
            parameter.requires_grad_(parameter.ndim == 1)  # biases and norms; tables and other matrices stay
    for name in targets:
        encoder.set_submodule(name, ReparametrizedLinear(linears[name], config.rank, config.power_iterations))
