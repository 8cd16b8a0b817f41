"""How likely a model finds the responses of held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from privlm.data.causal_lm import CausalSplit
from privlm.models.evaluation_mode import evaluation_mode
from privlm.rows import Answer, Keep, Row
from privlm.training.next_token import NextToken
from privlm.training.objective import ExampleRandom


class KeepsRows(Protocol):
    """What is needed of a privlm.job.Stage."""

    def rows(self, path: str, items: Mapping[str, Any], answer: Answer[Any]) -> list[Row]: ...


class Likelihood:
    """How likely a model finds the responses of held-out rows, token by token, end of text included.

    config: of the run; its micro-batch is the batch.
    """

    def __init__(self, split: CausalSplit, config: Any, accelerator: Any) -> None:
        self.split = split
        self.batch_size = config.trainer.micro_batch_size
        self.accelerator = accelerator

    def measure(self, stage: KeepsRows, model: nn.Module) -> list[float]:
        """The mean log-likelihood of the tokens of each row, in nats; kept in the stage's folder."""
        items = {str(row): row for row in range(len(self.split))}

        def answer(open_rows: Mapping[str, int], keep: Keep) -> None:
            rows = list(open_rows.values())
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                for row, loss in zip(batch, self._losses(model, batch), strict=True):
                    keep(str(row), {"log_likelihood": -loss})

        return [line["log_likelihood"] for line in stage.rows("held_out.jsonl", items, answer)]

    def loss(self, model: nn.Module) -> dict[str, float]:
        """The mean over rows, for what is logged during training."""
        losses = [loss for rows in self._batches() for loss in self._losses(model, rows)]
        return {"loss": sum(losses) / len(losses)}

    def _batches(self) -> list[list[int]]:
        places = list(range(len(self.split)))
        return [places[start : start + self.batch_size] for start in places[:: self.batch_size]]

    def _losses(self, model: nn.Module, rows: list[int]) -> list[float]:
        return row_losses(model, self.split, rows, autocast=self.accelerator.autocast)


@torch.no_grad()
def row_losses(
    model: nn.Module,
    split: CausalSplit,
    rows: list[int],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[float]:
    """The mean negative log-likelihood of the tokens of each of `rows`, in nats, as one batch."""
    batch = split.batch(rows, next(model.parameters()).device)
    with evaluation_mode(model), autocast():
        return NextToken(only_predicted=True).losses(model, batch, ExampleRandom(0, 0, np.array(rows))).loss.tolist()
