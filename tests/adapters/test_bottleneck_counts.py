"""Numbers of trainable parameters of the published models, which exist on no device: exact, and as published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from privlm.adapters.bottleneck import BottleneckConfig
from privlm.adapters.estimate import estimate_parameters
from privlm.adapters.presets import LORA, PLACEMENTS
from privlm.config import AdapterConfig, defaults
from privlm.models.locate import locate_model
from privlm.models.schema import CausalLMConfig

MODELS: dict[str, dict[str, Any]] = {
    "LLaMA-7B": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048},
    "LLaMA-13B": {"model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                  "num_attention_heads": 40, "vocab_size": 32000, "max_position_embeddings": 2048},
    "BLOOM-7B1": {"model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880},
    "GPT-J-6B": {"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64,
                 "vocab_size": 50400},
}  # fmt: skip
EXACT = {
    ("LLaMA-7B", "lora"): 4_194_304, ("LLaMA-7B", "adapter_h"): 201_326_592, ("LLaMA-7B", "adapter_p"): 67_108_864,
    ("LLaMA-7B", "parallel"): 201_326_592, ("LLaMA-13B", "lora"): 6_553_600, ("LLaMA-13B", "adapter_h"): 314_572_800,
    ("LLaMA-13B", "adapter_p"): 104_857_600, ("LLaMA-13B", "parallel"): 314_572_800,
}  # fmt: skip
PUBLISHED = {
    "LLaMA-7B": {"lora": 4.2, "adapter_h": 200, "adapter_p": 66, "parallel": 200},
    "LLaMA-13B": {"lora": 6.5, "adapter_h": 314, "adapter_p": 104, "parallel": 314},
    "BLOOM-7B1": {"lora": 4, "adapter_h": 125, "adapter_p": 62, "parallel": 125},
    "GPT-J-6B": {"lora": 3.7, "adapter_h": 117, "adapter_p": 58, "parallel": 176},
}
"""Millions: README of LLM-Adapters, 21 April 2023; m = 256, r = 8."""
CELLS = [(model, method) for model, methods in PUBLISHED.items() for method in methods]


@pytest.fixture(scope="module", params=MODELS)
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    with torch.device("meta"):
        return request.param, AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[request.param]))


@pytest.mark.parametrize("method", ["lora", "adapter_h", "adapter_p", "parallel"])
def test_published_numbers_of_parameters(named: tuple[str, Any], method: str) -> None:
    name, base = named
    config: Any = BottleneckConfig(placement=method) if method in PLACEMENTS else LoraConfig(
        r=8, target_modules=LORA[base.config.model_type]
    )  # fmt: skip
    model = get_peft_model(base, config, low_cpu_mem_usage=True)
    number = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    model.unload()
    assert abs(number / 1e6 / PUBLISHED[name][method] - 1) < 0.03
    assert number == EXACT.get((name, method), number)


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_the_same_without_a_model(name: str, method: str) -> None:
    config = defaults(CausalLMConfig, "model", "smollm2", package=None, gguf_file=None, random=MODELS[name])
    count = estimate_parameters(config, locate_model(config), defaults(AdapterConfig, "adapter", method))
    assert count is not None
    assert count.trainable == EXACT.get((name, method), count.trainable)
    assert abs(count.trainable / 1e6 / PUBLISHED[name][method] - 1) < 0.03
