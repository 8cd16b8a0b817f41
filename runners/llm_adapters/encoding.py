"""Questions as rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from privlm.data.causal_lm import CausalSplit
from privlm.training.prompted import encode_prompted

from .prompts import Prompts
from .questions import Question


def encode(
    questions: Sequence[Question], prompts: Prompts, *, train_on_inputs: bool, max_length: int, side: str
) -> CausalSplit:
    """See privlm.training.prompted."""
    return encode_prompted(
        map(prompts.training, questions),
        prompts.tokenizer,
        train_on_inputs=train_on_inputs,
        max_length=max_length,
        side=side,
    )
