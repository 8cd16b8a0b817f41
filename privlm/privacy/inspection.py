"""Which parameters of a model train, and whether each can be clipped by records exactly."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from privlm.errors import UsageError
from privlm.privacy import clipping as clip

_SHARDED = {"FSDPModule", "FullyShardedDataParallel"}  # by name: their import takes a second


class UnsupportedModuleError(UsageError):
    """Per-record clipping cannot treat the model exactly; the message names every place and the reason."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        lines = "".join(f"\n  {name}: {problem}" for name, problem in problems.items())
        super().__init__(f"privacy=dp_sgd cannot treat this model exactly; freeze or replace:{lines}")


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def find_rules(model: nn.Module) -> tuple[dict[nn.Module, dict[str, clip.Rule]], dict[str, str]]:
    """Rules of all trainable parameters, by the module that holds them; and parameters without one, with the reason."""
    rules: dict[nn.Module, dict[str, clip.Rule]] = {}
    problems: dict[str, str] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            try:
                rules.setdefault(module, {})[name] = clip.rule_of(module, name)
            except clip.NoRuleError as error:
                problems[f"{module_name}.{name}".lstrip(".")] = str(error)
    return rules, problems


def mixing_modes(model: nn.Module) -> dict[str, str]:
    """Modules in a mode that rules out exact treatment; such modes can change between steps."""
    problems: dict[str, str] = {}
    for name, module in model.named_modules():
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
