"""How likely a model finds the worked answers of held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from privlm.data.causal_lm import CausalSplit
from privlm.job import Stage
from privlm.models.evaluation_mode import evaluation_mode
from privlm.rows import Keep
from privlm.training.next_token import NextToken
from privlm.training.objective import ExampleRandom


class Likelihood:
    """How likely a model finds the worked answers of held-out rows, token by token, end of text included."""

    def __init__(self, split: CausalSplit, config: Any, accelerator: Any) -> None:
        self.split = split
        self.batch_size = config.trainer.micro_batch_size
        self.accelerator = accelerator

    def measure(self, stage: Stage, model: nn.Module) -> list[float]:
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
        batches = range(0, len(self.split), self.batch_size)
        ends = [(start, min(start + self.batch_size, len(self.split))) for start in batches]
        losses = [loss for start, end in ends for loss in self._losses(model, list(range(start, end)))]
        return {"loss": sum(losses) / len(losses)}

    @torch.no_grad()
    def _losses(self, model: nn.Module, rows: list[int]) -> list[float]:
        batch = self.split.batch(rows, self.accelerator.device)
        with evaluation_mode(model), self.accelerator.autocast():
            return NextToken().losses(model, batch, ExampleRandom(0, 0, np.array(rows))).loss.tolist()
