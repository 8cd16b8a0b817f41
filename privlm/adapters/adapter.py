"""Chooses what trains: nothing, a head alone, adapters beside a frozen model, its weights by RGP, or everything."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peft import PeftModel
from torch import nn

from privlm.adapters.bottleneck import MergeError
from privlm.adapters.estimate import ParameterCount
from privlm.adapters.methods import model_type, with_bottlenecks, with_ia3, with_lora, with_virtual_tokens
from privlm.adapters.schema import AdapterConfig
from privlm.adapters.targets import require_trainable, rgp_targets
from privlm.errors import UsageError
from privlm.models.quantized import shape_of
from privlm.privacy.rgp import ReparametrizedLinear


def apply_adapter(base: nn.Module, config: AdapterConfig, seed: int, head: nn.Module | None = None) -> nn.Module:
    """Sets requires_grad of every parameter; what peft knows wraps the model, RGP replaces its Linear layers.

    Changes `base` and returns what stands in its place.

    Args:
        base: any transformers or torch model: an encoder, a causal language model, a model of your own.
        seed: decides the adapter's initial values; torch's global generator is neither read nor moved.
        head: layers beside the base or within it that have no pretrained weights; adapter.train_head speaks of them.

    Raises:
        UsageError: unknown adapter, nothing left to train, or as privlm.adapters.targets.
    """
    if config.name not in ADAPTERS:
        raise UsageError(f"adapter.name: '{config.name}' is not one of {', '.join(ADAPTERS)}")
    assert not isinstance(base, PeftModel), "the model has an adapter already"
    require_trainable(config, model_type(base), has_head=head is not None)
    adapted = ADAPTERS[config.name](base, config, seed, head)
    if head is not None:
        head.requires_grad_(config.train_head)
    return adapted


def count_parameters(model: nn.Module) -> ParameterCount:
    """Parameters that require a gradient, and all; a tied one counts once."""
    sizes = [(math.prod(shape_of(parameter)), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


@contextlib.contextmanager
def untrained(model: nn.Module) -> Iterator[None]:
    """Within it a model that has not been trained yet is its base: an adapter may begin elsewhere than at nothing."""
    with model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext():
        yield


def merge_adapter(base: Any) -> Any:
    """The base, changed: what its adapter has learnt is in its own weights, as its library saves and loads them.

    Raises MergeError for a bottleneck adapter and for virtual tokens, which no weight holds; nothing is changed then.
    """
    if isinstance(base, PeftModel):
        if base.active_peft_config.is_prompt_learning:
            raise MergeError("virtual tokens are no part of a weight: save them beside their base (save_pretrained)")
        return base.merge_and_unload()
    for name, module in list(base.named_modules()):
        if isinstance(module, ReparametrizedLinear):
            base.set_submodule(name, module.merged())
    return base


def _frozen(base: nn.Module, config: AdapterConfig, seed: int, head: nn.Module | None) -> nn.Module:
    return base.requires_grad_(False)


def _whole(base: nn.Module, config: AdapterConfig, seed: int, head: nn.Module | None) -> nn.Module:
    return base.requires_grad_(True)


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


def _by_peft(method: Callable[[Any, AdapterConfig, int], PeftModel]) -> Callable[..., nn.Module]:
    return lambda base, config, seed, head: method(base, config, seed)


ADAPTERS: dict[str, Callable[[nn.Module, AdapterConfig, int, nn.Module | None], nn.Module]] = {
    "none": _frozen,
    "head": _frozen,
    "full": _whole,
    "rgp": _reparametrized,
    **dict.fromkeys(("lora", "lora_emnlp", "dora"), _by_peft(with_lora)),
    "ia3": _by_peft(with_ia3),
    **dict.fromkeys(("adapter_h", "adapter_p", "parallel", "scaled_parallel"), _by_peft(with_bottlenecks)),
    **dict.fromkeys(("prefix", "prompt"), _by_peft(with_virtual_tokens)),
}
"""Adapter -> what makes it of (base, config, seed, head)."""
