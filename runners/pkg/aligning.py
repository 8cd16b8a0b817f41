"""The guide learns to write backgrounds: ordinary supervised tuning, the loss on the background alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from privlm.data.causal_lm import CausalSplit, causal_split, padding_id, response_row
from privlm.metrics.estimate import Estimate
from privlm.metrics.statistic import statistic
from privlm.models.evaluation_mode import evaluation_mode
from privlm.training.next_token import NextToken
from privlm.training.objective import ExampleRandom

from .prompts import guide_prompt
from .questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    questions: Sequence[Question], kind: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> CausalSplit:
    """Rows with a background; one whose prompt alone fills `max_length` has nothing left to learn: skipped, counted.

    Raises UsageError where no row is left.
    """
    learnt = [row for row in questions if row.background]
    rows = (response_row(tokenizer, guide_prompt(row, kind), row.background) for row in learnt)
    return causal_split(rows, max_length=max_length, pad_token_id=padding_id(tokenizer))


@torch.no_grad()
def losses(model: nn.Module, split: CausalSplit, batch_size: int, accelerator: Any) -> Estimate:
    """Mean over rows of the cross entropy of a background's tokens, nats a token."""
    found: list[float] = []
    with evaluation_mode(model), accelerator.autocast():
        for start in range(0, len(split), batch_size):
            rows = np.arange(start, min(start + batch_size, len(split)))
            batch = split.batch(rows, accelerator.device)
            found += NextToken().losses(model, batch, ExampleRandom(0, 0, rows)).loss.tolist()
    return statistic(np.mean, np.asarray(found))
