"""Writes a trained causal language model as its library reads it, and proves that it is the one that was trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from torch import Tensor
from transformers import AutoModelForCausalLM

from privlm.adapters.adapter import merge_adapter
from privlm.errors import PrivLMError
from privlm.models.loaded import Loaded
from privlm.models.loading import NO_PICKLE

TOLERANCE = 1e-4  # of logits: adapters are merged into the weights


def export_causal_lm(loaded: Loaded, config: Any, folder: Path, sample: str) -> None:
    """Writes the adapter as peft's own files, which `PeftModel.from_pretrained(base, folder)` loads; without an adapter
    of peft the whole model with its tokenizer, as transformers loads it. `loaded.model` is not to be used afterwards.

    config: of the group `model`, which names the base. sample: a text of nobody.

    Raises PrivLMError where what was written does not compute what was trained.
    """
    before = _logits(loaded.model, loaded, sample)
    model: Any = loaded.model
    if isinstance(model, PeftModel):
        for settings in model.peft_config.values():
            settings.base_model_name_or_path = config.hub_id or config.path
            settings.task_type = TaskType.CAUSAL_LM
        model.save_pretrained(str(folder), save_embedding_layers=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # which peft asks for
            exported: Any = PeftModel.from_pretrained(_base_of(loaded.build()), str(folder))
    else:
        merge_adapter(model).save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        exported = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **NO_PICKLE)
    apart = float((_logits(exported.eval(), loaded, sample) - before).abs().max())
    if not apart <= TOLERANCE:
        raise PrivLMError(f"{folder}: the exported model is not the trained one: its logits are {apart:.3g} apart")


@torch.inference_mode()
def _logits(model: Any, loaded: Loaded, sample: str) -> Tensor:
    ids = loaded.tokenizer(sample, return_tensors="pt")["input_ids"]
    return model.eval()(input_ids=ids.to(model.device)).logits.float().cpu()


def _base_of(model: Any) -> Any:
    """What an adapter was put on."""
    inner = model.base_model
    return inner.unload() if hasattr(inner, "unload") else model.get_base_model()
