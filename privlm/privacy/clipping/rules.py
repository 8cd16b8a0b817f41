"""What the input and the output gradient of a layer say about the per-record gradients of its parameters.

A rule belongs to a forward function, not to a class: a subclass that computes something else has no rule of its own
and gets the general one, which differentiates that single module once per record (torch.func), if it has one input.
Shapes: B records, T positions (all dimensions between the first and the features), d inputs, p outputs.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from privlm.privacy.clipping.gradients import Instantiated, OuterProducts, PerRecordGradient, RowUpdates

Rule = Callable[[Any, Tensor, Tensor], PerRecordGradient]
"""rule(module, x, grad): gradients of the records' own losses for one parameter in one call of `module`.

x: its input, [B, ..., d] (ids [B, ...] for an embedding).
grad: gradient of the summed losses with respect to its output, [B, ..., p].
"""


class NoRuleError(Exception):
    """A parameter cannot be treated exactly; the message is the reason."""


def _linear_weight(module: nn.Linear, x: Tensor, grad: Tensor) -> PerRecordGradient:
    return OuterProducts(_positions(grad), _positions(x))


def _conv1d_weight(module: Conv1D, x: Tensor, grad: Tensor) -> PerRecordGradient:
    return OuterProducts(_positions(x), _positions(grad))


def _conv2d_weight(module: nn.Conv2d, x: Tensor, grad: Tensor) -> PerRecordGradient:
    """A linear layer whose positions are those of the output and whose inputs are patches of the image."""
    assert not isinstance(module.padding, str)
    patches_BnT = F.unfold(x.float(), module.kernel_size, module.dilation, module.padding, module.stride)
    return OuterProducts(grad.float().flatten(2).mT, patches_BnT.mT)


def _embedding_weight(module: nn.Embedding, ids: Tensor, grad: Tensor) -> PerRecordGradient:
    ids_BT, grad_BTd = ids.reshape(ids.shape[0], -1), _positions(grad)
    if module.padding_idx is not None:
        grad_BTd = grad_BTd.masked_fill((ids_BT == module.padding_idx)[:, :, None], 0.0)
    return RowUpdates(ids_BT, grad_BTd)


def _scaled_embedding_weight(module: Any, ids: Tensor, grad: Tensor) -> PerRecordGradient:
    """Of Gemma and BART, whose tables multiply their rows by `embed_scale`."""
    return _embedding_weight(module, ids, grad.float() * float(module.embed_scale))


def _layer_norm_weight(module: nn.LayerNorm, x: Tensor, grad: Tensor) -> PerRecordGradient:
    normalized = F.layer_norm(x.float(), module.normalized_shape, eps=module.eps)
    return Instantiated(_sum_positions(normalized * grad, module.weight.ndim))


def _rms_norm_weight(module: nn.RMSNorm, x: Tensor, grad: Tensor) -> PerRecordGradient:
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    normalized = F.rms_norm(x.float(), module.normalized_shape, eps=eps)
    return Instantiated(_sum_positions(normalized * grad, module.weight.ndim))


def _transformers_rms_norm_weight(module: Any, x: Tensor, grad: Tensor) -> PerRecordGradient:
    normalized = F.rms_norm(x.float(), module.weight.shape, eps=module.variance_epsilon)
    return Instantiated(_sum_positions(normalized * grad, 1))


def _group_norm_weight(module: nn.GroupNorm, x: Tensor, grad: Tensor) -> PerRecordGradient:
    normalized = F.group_norm(x.float(), module.num_groups, eps=module.eps)
    return Instantiated(_sum_pixels(normalized * grad))


def bias(module: nn.Module, x: Tensor, grad: Tensor) -> PerRecordGradient:
    """The rule of a parameter `bias` that is added to the last dimensions of the output."""
    assert isinstance(module.bias, Tensor)
    return Instantiated(_sum_positions(grad, module.bias.ndim))


def _channel_bias(module: nn.Module, x: Tensor, grad: Tensor) -> PerRecordGradient:
    return Instantiated(_sum_pixels(grad))


RULES: dict[Callable, dict[str, Rule]] = {
    nn.Linear.forward: {"weight": _linear_weight, "bias": bias},
    Conv1D.forward: {"weight": _conv1d_weight, "bias": bias},
    nn.Conv2d.forward: {"weight": _conv2d_weight, "bias": _channel_bias},
    nn.Embedding.forward: {"weight": _embedding_weight},
    nn.LayerNorm.forward: {"weight": _layer_norm_weight, "bias": bias},
    nn.RMSNorm.forward: {"weight": _rms_norm_weight},
    nn.GroupNorm.forward: {"weight": _group_norm_weight, "bias": _channel_bias},
}


def rule_of(module: nn.Module, parameter_name: str) -> Rule | None:
    """The rule of the parameter `parameter_name` that `module` holds itself; None where it has neither kind.

    Raises NoRuleError for what mixes records, and for what is far cheaper in another form.
    """
    kind = type(module).__name__
    if isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None):
        raise NoRuleError("scale_grad_by_freq and max_norm let records of a batch influence each other")
    if isinstance(module, nn.MultiheadAttention):
        raise NoRuleError("torch's MultiheadAttention holds a bare parameter: use Linear layers for q, k, v and o")
    if isinstance(module, nn.RNNBase):
        raise NoRuleError(f"{kind} hides its steps: use privlm.models.lstm.UnrolledLSTM")
    if "forward" in vars(module):  # another library's, or the user's own
        return None
    if _is_rms_norm(module):
        return _transformers_rms_norm_weight
    if _is_scaled_embedding(module):
        return _scaled_embedding_weight
    unusual = isinstance(module, nn.Conv2d) and (
        module.groups > 1 or module.padding_mode != "zeros" or isinstance(module.padding, str)
    )
    rule = RULES.get(type(module).forward, {}).get(parameter_name)
    if rule is not None and not unusual:
        return rule
    return partial(_differentiated, parameter_name=parameter_name) if _has_general_rule(module) else None


def is_general(rule: Rule) -> bool:
    return isinstance(rule, partial)


def reads_input(rule: Rule) -> bool:
    """Whether the rule needs the values of the input, and not its shape alone."""
    return rule not in (bias, _channel_bias)


def has_rows(module: nn.Module, x: Tensor) -> bool:
    """Whether the input of a layer with an exact rule has a first dimension beside those that the layer reads."""
    return x.ndim >= _num_dims(module)


def _num_dims(module: nn.Module) -> int:
    """Of an input with rows."""
    if isinstance(module, nn.Embedding):
        return 1
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return 1 + len(module.normalized_shape)
    return 4 if isinstance(module, nn.Conv2d) else 2


def depends_on_others(module: nn.Module, x: Tensor) -> bool:
    """Whether, in a module without chance, the first record of `x` gets another output alone than among others."""
    x = _as_float32(x)
    with torch.no_grad():
        together, again, alone = module.forward(x), module.forward(x), module.forward(x[:1])
    if not isinstance(together, Tensor) or not torch.equal(together, again):
        return False
    return not torch.allclose(together[:1], alone, rtol=1e-3, atol=1e-5 * float(together.abs().max()))


def _has_general_rule(module: nn.Module) -> bool:
    """Whether it stands alone, with a forward function of one input."""
    if any(module.children()) or type(module).forward is nn.Module.forward:
        return False
    _, *inputs = inspect.signature(type(module).forward).parameters.values()
    return sum(argument.default is argument.empty for argument in inputs) == 1


def _differentiated(module: nn.Module, x: Tensor, grad: Tensor, *, parameter_name: str) -> PerRecordGradient:
    """The general rule: the parameter's gradient for one record at a time, vectorised over records."""
    parameter = getattr(module, parameter_name).detach().float()
    forward = _Forward(module)

    def gradient_of_record(x: Tensor, grad: Tensor) -> Tensor:
        def output(parameter: Tensor) -> Tensor:
            return functional_call(forward, {f"module.{parameter_name}": parameter}, (x.unsqueeze(0),)).squeeze(0)

        pull_back = vjp(output, parameter)[1]
        return pull_back(grad)[0]

    try:
        with torch.no_grad():  # else the module's other parameters tie the gradient to a graph
            return Instantiated(vmap(gradient_of_record)(_as_float32(x), grad.float()))
    except (RuntimeError, AttributeError) as error:  # of vmap: random numbers, changes in place, branches on values
        reason = str(error).partition("\n")[0]
        raise NoRuleError(f"cannot be differentiated record by record ({reason})") from error


class _Forward(nn.Module):
    """The forward function of a module without the hooks around it, which belong to what is around it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module.forward(x)


def _is_scaled_embedding(module: nn.Module) -> bool:
    """Told by what it holds, and confirmed by what it computes."""
    if not isinstance(module, nn.Embedding) or type(module).forward is nn.Embedding.forward:
        return False
    _, *inputs = inspect.signature(type(module).forward).parameters
    scale: Any = getattr(module, "embed_scale", None)
    if scale is None or len(inputs) != 1:
        return False
    ids = torch.arange(min(len(module.weight), 8), device=module.weight.device)[None]
    with torch.no_grad():
        scaled = F.embedding(ids, module.weight, module.padding_idx) * float(scale)
        return torch.allclose(module.forward(ids), scaled, rtol=1e-2)


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether `module` is the norm of Llama, T5 and their kin, of which every architecture has a class of its own.

    Told by what it holds, and confirmed by what it computes.
    """
    parameters = dict(module.named_parameters())
    eps = getattr(module, "variance_epsilon", None)
    if eps is None or list(parameters) != ["weight"] or parameters["weight"].ndim != 1:
        return False
    weight = parameters["weight"].detach()
    x = torch.linspace(-1, 2, len(weight), device=weight.device, dtype=weight.dtype).expand(2, -1)
    with torch.no_grad():
        return torch.allclose(module.forward(x), F.rms_norm(x, weight.shape, weight, eps), rtol=1e-2)


def _as_float32(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _positions(x: Tensor) -> Tensor:
    """[B, ..., d] as float32 [B, T, d]."""
    return x.float().reshape(x.shape[0], -1, x.shape[-1])


def _sum_positions(x: Tensor, num_feature_dims: int) -> Tensor:
    """The sum over all dimensions between the first and the last `num_feature_dims`, in float32."""
    feature_shape = x.shape[x.ndim - num_feature_dims :]
    return x.float().reshape(x.shape[0], -1, *feature_shape).sum(1)


def _sum_pixels(x: Tensor) -> Tensor:
    """[B, channels, ...] summed over all but the first two dimensions, in float32."""
    return x.float().reshape(x.shape[0], x.shape[1], -1).sum(2)
