"""The model of a federation as its stage keeps it, for whoever loads it afterwards.

Under federated.lora=stack and residual the rounds have changed base weights too: they lie beside the adapter.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from privlm.federated.schema import FOLDED
from privlm.models.loaded import Loaded

BASE_WEIGHTS = "base_weights.safetensors"


def is_folded(federated: Any) -> bool:
    """Whether the rounds change base weights. federated: of the group, or None."""
    return federated is not None and federated.name != "none" and federated.lora in FOLDED


def kept(federated: Any, loaded: Loaded) -> Loaded:
    """`loaded`, which loads what the rounds have kept. federated: of the group, or None."""
    return with_base(loaded) if is_folded(federated) else loaded


def with_base(loaded: Loaded) -> Loaded:
    """The same with the base weights of all adapted layers saved and loaded."""

    def save(model: nn.Module, folder: Path) -> None:
        loaded.save(model, folder)
        weights = {name: base_weight(module).detach().cpu() for name, module in _adapted(model).items()}
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / BASE_WEIGHTS)

    def load(model: nn.Module, folder: Path) -> None:
        loaded.load(model, folder)
        saved = load_file(folder / BASE_WEIGHTS)
        with torch.no_grad():
            for name, module in _adapted(model).items():
                base_weight(module).copy_(saved[name])

    return replace(loaded, save=save, load=load)


def base_weight(module: Any) -> Tensor:
    """Of a layer that peft has adapted."""
    return module.get_base_layer().weight


def _adapted(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
