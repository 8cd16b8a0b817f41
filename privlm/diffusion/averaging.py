"""Exponential moving averages of weights, as a part of an objective: checkpoints hold them, a resume takes them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample


class Averaged(Objective):
    """`objective`, beside an average of the weights that train: decay min(decay, (1 + step) / (10 + step))."""

    def __init__(self, objective: Objective, model: nn.Module, decay: float) -> None:
        self.objective = objective
        self.decay = decay
        self.averages = {
            name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad
        }

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        return self.objective.losses(model, batch, rng)

    @torch.no_grad()
    def stepped(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.named_parameters():
            if name in self.averages:
                self.averages[name].lerp_(value.detach(), 1 - decay)

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> None:
        """The averages take the place of the last step's weights."""
        parameters = dict(model.named_parameters())
        for name, average in self.averages.items():
            parameters[name].copy_(average)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            self.averages[name].copy_(value)
