"""Virtual tokens that peft has tuned (prefix and prompt tuning): a beginning that all rows of a model share.

peft itself counts positions by columns of a batch, which padding on the left would move. So the base model reads the
rows here, with positions of their own that go on from the virtual tokens, as peft has them for a row without padding.
"""

from __future__ import annotations

from typing import Any

import torch

from privlm.llm.local.architectures import VIRTUAL_TOKENS, Model


def reader(model: Model) -> Model:
    """What reads the tokens of a row: the base model below virtual tokens, else the model itself."""
    return model.get_base_model() if num_virtual_tokens(model) else model


def num_virtual_tokens(model: Model) -> int:
    """Of the active adapter; 0 of any other model."""
    config: Any = getattr(model, "active_peft_config", None)
    return config.num_virtual_tokens if _method(config) in VIRTUAL_TOKENS else 0


def keys_and_values(model: Model) -> Any:
    """The cache of one row that has read the virtual tokens."""
    prompt = model.get_prompt(batch_size=1)
    if _method(model.active_peft_config) == "PREFIX_TUNING":
        return prompt
    base = model.get_base_model()
    position_1P = torch.arange(prompt.shape[1], device=prompt.device)[None]
    return base(inputs_embeds=prompt, position_ids=position_1P, use_cache=True).past_key_values


def _method(config: Any) -> str | None:
    """The name that peft has for the method of an adapter's configuration."""
    return getattr(getattr(config, "peft_type", None), "value", None)
