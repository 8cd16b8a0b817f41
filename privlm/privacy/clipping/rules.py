"""What the input and the output gradient of a layer say about the per-record gradients of its parameters.

A rule belongs to a forward function, not to a class: a subclass that computes something else has no rule.
Shapes: B records, T positions (all dimensions between the first and the features), d inputs, p outputs.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from privlm.privacy.clipping.gradients import Instantiated, OuterProducts, PerRecordGradient, RowUpdates

Rule = Callable[[Any, Tensor, Tensor], PerRecordGradient]


def _linear_weight(module: nn.Linear, x: Tensor, grad: Tensor) -> PerRecordGradient:
    return OuterProducts(_positions(grad), _positions(x))


def _conv1d_weight(module: Conv1D, x: Tensor, grad: Tensor) -> PerRecordGradient:
    return OuterProducts(_positions(x), _positions(grad))


def _embedding_weight(module: nn.Embedding, ids: Tensor, grad: Tensor) -> PerRecordGradient:
    ids_BT, grad_BTd = ids.reshape(ids.shape[0], -1), _positions(grad)
    if module.padding_idx is not None:
        grad_BTd = grad_BTd.masked_fill((ids_BT == module.padding_idx)[:, :, None], 0.0)
    return RowUpdates(ids_BT, grad_BTd)


def _layer_norm_weight(module: nn.LayerNorm, x: Tensor, grad: Tensor) -> PerRecordGradient:
    normalized = F.layer_norm(x.float(), module.normalized_shape, eps=module.eps)
    return Instantiated(_sum_positions(normalized * grad, module.weight.ndim))


def _bias(module: nn.Linear | Conv1D | nn.LayerNorm, x: Tensor, grad: Tensor) -> PerRecordGradient:
    return Instantiated(_sum_positions(grad, module.bias.ndim))


RULES: dict[Callable, dict[str, Rule]] = {
    nn.Linear.forward: {"weight": _linear_weight, "bias": _bias},
    Conv1D.forward: {"weight": _conv1d_weight, "bias": _bias},
    nn.Embedding.forward: {"weight": _embedding_weight},
    nn.LayerNorm.forward: {"weight": _layer_norm_weight, "bias": _bias},
}


def obstacle(module: nn.Module, parameter_name: str) -> str | None:
    """Why the parameter `parameter_name` that `module` holds itself cannot be treated exactly; None if it can."""
    if parameter_name not in RULES.get(type(module).forward, {}):
        return f"no clipping rule for this parameter of {type(module).__name__}"
    if isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None):
        return "scale_grad_by_freq and max_norm let records of a batch influence each other"
    return None


def per_record_gradient(module: nn.Module, parameter_name: str, x: Tensor, grad: Tensor) -> PerRecordGradient:
    """Gradients of the records' own losses for one parameter of one call of `module`.

    Args:
        x: its input, [B, ..., d] (ids [B, ...] for an embedding).
        grad: gradient of the summed losses with respect to its output, [B, ..., p].
    """
    return RULES[type(module).forward][parameter_name](module, x, grad)


def _positions(x: Tensor) -> Tensor:
    """[B, ..., d] as float32 [B, T, d]."""
    return x.float().reshape(x.shape[0], -1, x.shape[-1])


def _sum_positions(x: Tensor, num_feature_dims: int) -> Tensor:
    """The sum over all dimensions between the first and the last `num_feature_dims`, in float32."""
    feature_shape = x.shape[x.ndim - num_feature_dims :]
    return x.float().reshape(x.shape[0], -1, *feature_shape).sum(1)
