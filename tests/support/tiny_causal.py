"""Tiny random causal language models of the architectures that bottleneck adapters have placements for."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 50
_COMMON: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40,
    "initializer_range": 0.2,
}  # fmt: skip
_GPT: dict[str, Any] = {
    "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "initializer_range": 0.2, "resid_pdrop": 0.0,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0,
}  # fmt: skip
_LLAMA: dict[str, Any] = {**_COMMON, "intermediate_size": 24}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "bloom": {**_COMMON, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gptj": {**_GPT, "rotary_dim": 4},
    "opt": {**_COMMON, "ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0, "init_std": 0.2},
    "gpt2": _GPT,
    "gpt_neox": {**_COMMON, "intermediate_size": 24, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                "max_position_embeddings": 40, "embed_dropout": 0.0, "attention_dropout": 0.0, "resid_dropout": 0.0},
    "qwen2": {**_LLAMA, "num_key_value_heads": 1},
    "qwen3": {**_LLAMA, "num_key_value_heads": 1, "head_dim": 8},
    "mistral": {**_LLAMA, "num_key_value_heads": 1},
    "gemma": {**_LLAMA, "head_dim": 8, "num_key_value_heads": 2},
    "gemma2": {**_LLAMA, "head_dim": 8, "num_key_value_heads": 2},
    "stablelm": {**_LLAMA, "num_key_value_heads": 2},
    "falcon": {key: value for key, value in _COMMON.items() if key != "max_position_embeddings"},
    "phi": {**_LLAMA, "resid_pdrop": 0.0},
    "phi3": {**_LLAMA, "pad_token_id": 0},
}  # fmt: skip


def tiny(architecture: str, **changes: Any) -> PreTrainedModel:
    """In evaluation mode, the same whenever it is called; torch's global generator is not moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {**SHAPES[architecture], "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, **changes}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings)).eval()


def disturb(model: torch.nn.Module, std: float = 0.2) -> torch.nn.Module:
    """As after training: all that trains has changed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model
