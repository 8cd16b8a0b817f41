"""Models of any transformers architecture from a shape alone, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from privlm.errors import UsageError
from privlm.models.loading import NO_CODE


def shape_config(
    shape: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, field: str = "model.random"
) -> PretrainedConfig:
    """The transformers configuration of a shape (fields of a config.json) over the vocabulary of `tokenizer`.

    field: where the shape was given, for messages.

    Raises UsageError for an unknown architecture, or values that its configuration does not take.
    """
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    known = {name: token for name, token in special.items() if token is not None}
    with _possible(field):
        config: Any = AutoConfig.for_model(**{**shape, **known, "vocab_size": len(tokenizer)})
    return config


def from_scratch(
    auto: Any,
    config: PretrainedConfig,
    seed: int,
    field: str = "model.random",
    *,
    options: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A model of random weights in evaluation mode, decided by `seed`; torch's global generator is not moved.

    auto: AutoModel, AutoModelForCausalLM or another class of transformers that chooses by configuration.
    options: for the class that it chooses.

    Raises UsageError where no model can have this shape.
    """
    with _possible(field), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto.from_config(config, **(options or {}), **NO_CODE).eval()


@contextmanager
def _possible(field: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each architecture checks its values in its own way
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"{field}: there is no such model ({type(error).__name__}: {first_line})") from error
