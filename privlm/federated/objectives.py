"""Objectives that a strategy puts around that of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample


class Around(Objective):
    """An objective as it is, to which others add."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.private_state = objective.private_state

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        return self.objective.losses(model, batch, rng)

    def penalty(self, model: nn.Module) -> Tensor | None:
        return self.objective.penalty(model)

    def direct(self, gradient: dict[str, Tensor], model: nn.Module, step: int) -> Mapping[str, Tensor]:
        return self.objective.direct(gradient, model, step)

    def stepped(self, model: nn.Module, step: int) -> None:
        self.objective.stepped(model, step)

    def state_dict(self) -> dict[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)


class Proximal(Around):
    """Adds strength / 2 times the squared distance of what trains from `center`, which does not move."""

    def __init__(self, objective: Objective, center: Mapping[str, Tensor], strength: float) -> None:
        super().__init__(objective)
        self.center = center
        self.strength = strength

    def penalty(self, model: nn.Module) -> Tensor | None:
        distances = [
            (value - self.center[name].to(value.device)).square().sum()
            for name, value in model.named_parameters()
            if value.requires_grad and name in self.center
        ]
        own = super().penalty(model)
        if not distances:
            return own
        near = self.strength / 2 * torch.stack(distances).sum()
        return near if own is None else near + own


class Corrected(Around):
    """Adds a constant to the gradient of each step: SCAFFOLD's c - c_k."""

    def __init__(self, objective: Objective, correction: Mapping[str, Tensor]) -> None:
        super().__init__(objective)
        self.correction = correction

    def direct(self, gradient: dict[str, Tensor], model: nn.Module, step: int) -> Mapping[str, Tensor]:
        directed = dict(super().direct(gradient, model, step))
        moved = {**gradient, **directed}
        return {name: value + self.correction[name].to(value) for name, value in moved.items()}
