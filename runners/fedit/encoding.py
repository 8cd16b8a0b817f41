"""Rows of instructions as rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from privlm.data.causal_lm import CausalSplit
from privlm.data.instructions import Instruction, Template
from privlm.models.loaded import Loaded
from privlm.training.prompted import encode_prompted, padding_side


def encode(
    rows: Sequence[Instruction], template: Template, loaded: Loaded, config: Any, *, train_on_inputs: bool
) -> CausalSplit:
    """See privlm.training.prompted; cut at model.max_length."""
    return encode_prompted(
        [(template.prompt(row), row.response) for row in rows],
        loaded.tokenizer,
        train_on_inputs=train_on_inputs,
        max_length=config.model.max_length,
        side=padding_side(loaded.model),
    )
