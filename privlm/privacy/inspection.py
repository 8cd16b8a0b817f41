"""Which parameters of a model train, and whether each can be clipped by records exactly."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from privlm.errors import UsageError
from privlm.privacy import clipping as clip

_SHARDED = {"FSDPModule", "FullyShardedDataParallel"}  # by name: their import takes a second


class UnsupportedModuleError(UsageError):
    """Per-record clipping cannot treat the model exactly; the message names every place and the reason."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        lines = "".join(f"\n  {name or 'the model itself'}: {problem}" for name, problem in problems.items())
        super().__init__(f"privacy=dp_sgd cannot treat this model exactly; freeze or replace:{lines}")


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def find_rules(model: nn.Module) -> tuple[dict[nn.Module, dict[str, clip.Rule]], dict[str, str]]:
    """Rules of the trainable parameters that have one, by the module that holds them; and what is refused, with the
    reason.
    """
    rules: dict[nn.Module, dict[str, clip.Rule]] = {}
    problems: dict[str, str] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            try:
                rule = clip.rule_of(module, name)
            except clip.NoRuleError as error:
                problems[f"{module_name}.{name}".lstrip(".")] = str(error)
                continue
            if rule is not None:
                rules.setdefault(module, {})[name] = rule
    return rules, problems


def exact_rules(rules: Mapping[str, clip.Rule]) -> dict[str, clip.Rule]:
    return {name: rule for name, rule in rules.items() if not clip.is_general(rule)}


def modules_around(model: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """Every module with those that hold it, from the inside out, itself first and `model` left out."""
    modules = dict(model.named_modules())
    around: dict[nn.Module, list[nn.Module]] = {}
    for name, module in modules.items():
        parts = name.split(".") if name else []
        around[module] = [modules[".".join(parts[:depth])] for depth in range(len(parts), 0, -1)]
    return around


def mixing_modes(model: nn.Module) -> dict[str, str]:
    """Modules in a mode that rules out exact treatment; such modes can change between steps."""
    problems: dict[str, str] = {}
    if torch_module._global_forward_hooks:
        problems["register_module_forward_hook"] = "a hook on all modules may change what a layer returns: remove it"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter._backward_hooks:
            problems[name] = "a hook changes its gradient, which would not be that of a record: remove it"
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            problems[name] = "torch.compile leaves no calls of layers to see: attach the engine to the plain module"
        if isinstance(module, torch.jit.ScriptModule | nn.DataParallel):
            problems[name] = f"{type(module).__name__} runs layers where no hook sees them: use the plain module"
        if _SHARDED & {base.__name__ for base in type(module).__mro__}:
            problems[name] = "FSDP leaves no rank with whole layers; use trainer=single or trainer=ddp"
        if isinstance(module, _BatchNorm) and module.training:
            problems[name] = "BatchNorm in train mode mixes the records of a batch"
        if _checkpoints_reentrantly(module):
            problems[name] = "activation checkpointing needs use_reentrant=False"
    return problems


def number_layers(parameters: Mapping[str, nn.Parameter]) -> dict[nn.Parameter, int]:
    """Parameters of one module share a layer; a tied one belongs to the layer where it comes first."""
    layers: dict[str, int] = {}
    return {
        parameter: layers.setdefault(name.rpartition(".")[0], len(layers)) for name, parameter in parameters.items()
    }


def layer_names(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The modules of the layers, in the order of their numbers."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))


def _checkpoints_reentrantly(module: nn.Module) -> bool:
    """Such layers run without a graph, which autograd.grad cannot pass; transformers' way to switch it on."""
    if not getattr(module, "gradient_checkpointing", False):
        return False
    checkpoint: Any = module._gradient_checkpointing_func
    return checkpoint.keywords.get("use_reentrant", True)
