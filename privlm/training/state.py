"""What training changes in a model: its stepped parameters and its persistent buffers, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from privlm.errors import PrivLMError


def trained_tensors(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """`parameters` and the persistent buffers of `model` (BatchNorm's statistics, say), as they are now."""
    buffers = {
        f"{prefix}.{name}".lstrip("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    return {name: tensor.detach() for name, tensor in (dict(parameters) | buffers).items()}


@torch.no_grad()
def put(saved: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copies `saved` into the tensors of a model. Raises PrivLMError where they are those of another one."""
    differing = [name for name in sorted(saved.keys() | into.keys()) if _kind(saved, name) != _kind(into, name)]
    if differing:
        name = differing[0]
        raise PrivLMError(
            f"the checkpoint is of another model: {len(differing)} tensors differ, the first is {name} "
            f"(saved: {_kind(saved, name)}, now: {_kind(into, name)})"
        )
    for name, tensor in into.items():
        tensor.copy_(saved[name])


def _kind(tensors: Mapping[str, Tensor], name: str) -> str:
    return f"{tensors[name].dtype} {list(tensors[name].shape)}" if name in tensors else "none"
