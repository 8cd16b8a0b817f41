"""Adapters that peft puts into a model: LoRA, DoRA, IA3, bottlenecks, virtual tokens.

Each function changes `base` and returns the PeftModel around it. Initial values come from `seed`; torch's global
generator is neither read nor moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.tuners.prompt_tuning import PromptTuningInit
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from privlm.adapters.bottleneck import BottleneckConfig, BottleneckError
from privlm.adapters.fused_qkv import adapt_thirds
from privlm.adapters.schema import AdapterConfig
from privlm.adapters.targets import (
    Layer,
    bottlenecks,
    fused_layers,
    ia3_targets,
    lora_targets,
    require_virtual_tokens,
    wirings,
)
from privlm.errors import UsageError
from privlm.models.quantized import shape_of


def with_lora(base: Any, config: AdapterConfig, seed: int) -> PeftModel:
    """Low-rank pairs beside weights; under adapter=dora with a length of each output's row of their own (Liu et al.,
    arXiv 2402.09353).

    Raises UsageError as `lora_targets` and `fused_layers`.
    """
    kinds = nn.Linear | Conv1D if config.name == "dora" else nn.Linear | nn.Embedding | Conv1D
    modules = {name: module for name, module in base.named_modules() if isinstance(module, kinds)}
    shapes = {name: shape_of(module.weight) for name, module in modules.items()}
    targets = lora_targets(config, model_type(base), shapes)
    fused = fused_layers(config, model_type(base), targets)
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    lora = LoraConfig(
        **settings,
        target_modules=sorted(targets),
        bias="none",
        use_dora=config.name == "dora",
        fan_in_fan_out=any(isinstance(modules[name], Conv1D) for name in targets),  # Conv1D keeps its weight transposed
    )
    with seeded(seed):
        adapted = get_peft_model(base, lora)
        for name in fused:
            adapt_thirds(base.get_submodule(name))
        return adapted


def with_ia3(base: Any, config: AdapterConfig, seed: int) -> PeftModel:
    """One factor for each output of keys and values, and for each input of the MLP's last layer; all 1 at first.

    Raises UsageError as `ia3_targets`.
    """
    scaled, entering = ia3_targets(config, model_type(base), layers_of(base))
    is_conv1d = any(isinstance(base.get_submodule(name), Conv1D) for name in (*scaled, *entering))
    ia3 = IA3Config(
        target_modules=sorted([*scaled, *entering]), feedforward_modules=sorted(entering), fan_in_fan_out=is_conv1d
    )
    return _adapted(base, ia3, seed)


def with_bottlenecks(base: Any, config: AdapterConfig, seed: int) -> PeftModel:
    """Raises UsageError as `bottlenecks`, and for a base of quantised weights."""
    bottlenecks(config, model_type(base), layers_of(base))
    settings: dict[str, Any] = {
        name: getattr(config, name) for name in ("bottleneck_size", "activation", "scale", "init", "dropout")
    }
    try:
        return _adapted(base, BottleneckConfig(wirings=wirings(config, model_type(base)), **settings), seed)
    except BottleneckError as error:
        raise UsageError(f"adapter.{error}") from error


def with_virtual_tokens(base: Any, config: AdapterConfig, seed: int) -> PeftModel:
    """Before every text: keys and values of each layer (prefix tuning, Li and Liang, arXiv 2101.00190, without their
    reparametrisation), or embeddings, at first of words drawn from the vocabulary (prompt tuning, Lester et al., arXiv
    2104.08691).

    Raises UsageError as `require_virtual_tokens`.
    """
    is_causal_lm = isinstance(base, PreTrainedModel) and base.can_generate() and not base.config.is_encoder_decoder
    number = require_virtual_tokens(config, model_type(base), is_causal_lm=is_causal_lm)
    if config.name == "prefix":
        return _adapted(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=number), seed)
    prompt = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=number, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB
    )
    return _adapted(base, prompt, seed)


def model_type(base: nn.Module) -> str:
    """The architecture as config.json names it; of a model that is none of transformers, its class."""
    return getattr(getattr(base, "config", None), "model_type", type(base).__name__)


def layers_of(base: nn.Module) -> dict[str, Layer]:
    """The linear layers of a model, by name."""
    found = {}
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = Layer(module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = Layer(*shape_of(module.weight))
    return found


def _adapted(base: Any, config: PeftConfig, seed: int) -> PeftModel:
    with seeded(seed):
        return get_peft_model(base, config)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """With initial values of this seed, and without what peft would say of no matter."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # of Linear beside Conv1D: peft sets it for each
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # which peft asks transformers for
        torch.manual_seed(seed)
        yield
