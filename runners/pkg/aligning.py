"""The guide learns to write backgrounds: ordinary supervised tuning, the loss on the background alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from privlm.data.causal_lm import CausalSplit, causal_split, padding_id, response_row
from privlm.job import Stage
from privlm.metrics.statistic import statistic
from privlm.models.evaluation_mode import evaluation_mode
from privlm.results import Result
from privlm.training.batches import TrainingData
from privlm.training.objective import ExampleRandom, Objective

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
def losses(model: nn.Module, data: TrainingData, objective: Objective, batch_size: int, accelerator: Any) -> np.ndarray:
    """The mean cross entropy of the tokens of each background, nats a token, [N]."""
    found: list[float] = []
    with evaluation_mode(model), accelerator.autocast():
        for start in range(0, len(data), batch_size):
            rows = np.arange(start, min(start + batch_size, len(data)))
            batch = {name: tensor.to(accelerator.device) for name, tensor in data.batch(rows).items()}
            found += objective.losses(model, batch, ExampleRandom(0, 0, rows)).loss.tolist()
    return np.asarray(found)


def report_losses(stage: Stage, before: np.ndarray, after: np.ndarray) -> None:
    """Of the same test backgrounds, which nobody learns, before and after: what the guide has learnt of the domain."""
    told = {"background_loss_before": before, "background_loss": after, "background_loss_change": after - before}
    for name, losses_N in told.items():
        stage.report(Result.of(name, statistic(np.mean, losses_N), unit="nats per token", split="test"))
