"""Objectives that a strategy puts around that of the task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from privlm.training.objective import Objective, WrappedObjective


class Proximal(WrappedObjective):
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


class Corrected(WrappedObjective):
    """Adds a constant to the gradient of each step: SCAFFOLD's c - c_k."""

    def __init__(self, objective: Objective, correction: Mapping[str, Tensor]) -> None:
        super().__init__(objective)
        self.correction = correction

    def direct(self, gradient: dict[str, Tensor], model: nn.Module, step: int) -> Mapping[str, Tensor]:
        directed = dict(super().direct(gradient, model, step))
        moved = {**gradient, **directed}
        return {name: value + self.correction[name].to(value) for name, value in moved.items()}
