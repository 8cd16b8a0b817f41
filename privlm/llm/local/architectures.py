"""Which architectures may read several rows at once, and a beginning that rows share only once.

Padding beside a row and keys that were read before change nothing only where positions come from position_ids and the
attention is plain. Models that count columns of the cache (mpt's alibi), that look at a window or at chunks of columns
(gpt_neo, llama4), that carry a state from token to token (mamba, rwkv, and the hybrids) give other scores and other
texts then, without a word. So rows share where a test holds that the batch changes nothing; every other architecture
reads each row alone and from its beginning, which is right for any causal model, and slow.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("privlm")

Model = Any
"""A causal language model of transformers, or a peft model around one."""

TOGETHER = frozenset(
    {
        "apertus", "arcee", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "ctrl", "deepseek_v2",
        "deepseek_v3", "diffllama", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "gemma4_text",
        "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite",
        "granitemoe", "helium", "hunyuan_v1_dense", "internlm3", "jetmoe", "llama", "ministral", "ministral3",
        "mistral", "mixtral", "modernbert-decoder", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt",
        "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
        "stablelm", "starcoder2", "vaultgemma", "xglm",
    }
)  # fmt: skip
"""`model_type` of transformers' own classes: tests/llm/local/test_architectures.py holds each of them."""

PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})
PLAIN_ROTARY = frozenset({"default", "dynamic", "linear", "llama3", "proportional", "yarn"})
"""Of longrope the frequencies depend on the longest row of a batch; of dynamic only beyond the model's own window,
where nothing is read.
"""

VIRTUAL_TOKENS = frozenset({"PREFIX_TUNING", "PROMPT_TUNING"})
"""Methods of peft whose virtual tokens are read as a beginning that rows share (privlm.llm.local.virtual_tokens)."""

NO_NUMBER = "the model gives NaN in place of probabilities: its weights are damaged, or too large for llm.dtype"

_told: set[str] = set()


def reads_together(model: Model) -> bool:
    """Whether a batch, padding and a shared beginning change nothing for a row. Says once where they would."""
    reason = _why_alone(model)
    if reason is not None and reason not in _told:
        _told.add(reason)
        logger.warning("%s: each text is read alone, and anew for each token that continues it, which is slow", reason)
    return reason is None


def has_window(model: Model) -> bool:
    """Whether layers look at so many columns back only, of which padding between two parts of a row would be some."""
    config = model.config.get_text_config()
    return bool(getattr(config, "sliding_window", None)) or "sliding_attention" in _layer_types(config)


def read_alone(model: Model, tokens: Sequence[int], **options: Any) -> Any:
    """What the model gives for one row [1, T] that is read from its beginning, without padding or cache."""
    return model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False, **options)


def logits_alone(model: Model, tokens: Sequence[int]) -> Tensor:
    """After each token of one row: float32 [T, vocabulary]."""
    logits_1TV = read_alone(model, tokens).logits
    return logits_1TV[0, -len(tokens) :].float()  # virtual tokens of a prompt that peft has tuned come before


def _why_alone(model: Model) -> str | None:
    """What keeps the model's rows apart, None for nothing."""
    config = model.config
    text = config.get_text_config()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if config.model_type not in TOGETHER:
        return f"{config.model_type} is not among the architectures that are known to read rows together as alone"
    if not type(inner).__module__.startswith("transformers."):
        return f"{type(inner).__name__} is no class of transformers"
    if not _layer_types(text) <= PLAIN_LAYERS or getattr(text, "attention_chunk_size", None):
        return f"{config.model_type} with layers of another kind than attention or a sliding window"
    if not _rope_types(getattr(text, "rope_parameters", None)) <= PLAIN_ROTARY:
        return f"{config.model_type} with rotary frequencies that depend on the length"
    return _why_virtual_tokens_alone(model)


def _why_virtual_tokens_alone(model: Model) -> str | None:
    adapter: Any = getattr(model, "active_peft_config", None)
    if adapter is None or not adapter.is_prompt_learning:
        return None
    if adapter.peft_type.value not in VIRTUAL_TOKENS:
        return f"an adapter of the method {adapter.peft_type.value}"
    # Padding between them and a row would be a part of the window.
    return "virtual tokens before a sliding window" if has_window(model) else None


def _layer_types(config: Any) -> set[str]:
    return set(getattr(config, "layer_types", None) or ())


def _rope_types(parameters: Any) -> set[str]:
    """Of `rope_parameters`: a dictionary, or one for each kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    nested = [_rope_types(value) for value in parameters.values() if isinstance(value, dict)]
    return {str(parameters["rope_type"])}.union(*nested) if "rope_type" in parameters else set().union(*nested)
