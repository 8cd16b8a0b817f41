"""An exponential moving average of weights beside any objective: in its state, so that a resumed run has the same one.

It is computed from the weights alone, and is no private state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from privlm.training.objective import Objective, WrappedObjective


class Averaged(WrappedObjective):
    """An objective that also keeps the average of what trains.

        objective = Averaged(Denoising(...), decay=0.999)
        with objective.averages(model):
            ...                             # the model has the averaged weights

    The average begins as the weights after the first step; step s then leaves decay * average + (1 - decay) * weights,
    with decay = min(`decay`, (1 + s) / (10 + s)), in float32.

    names: of the parameters to average; None: all that require a gradient.
    """

    def __init__(self, objective: Objective, names: tuple[str, ...] | None = None, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, not {decay}")
        super().__init__(objective)
        self.names = names
        self.decay = decay
        self._averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def stepped(self, model: nn.Module, step: int) -> None:
        super().stepped(model, step)
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._chosen(model).items():
            if name in self._averages:
                self._average(name, parameter).lerp_(parameter.float(), 1 - decay)
            else:
                self._averages[name] = parameter.detach().float().clone()

    @contextmanager
    def averages(self, model: nn.Module) -> Iterator[None]:
        """Within it `model` has the averaged weights; afterwards its own again. Before the first step they are its
        own.
        """
        own = {name: parameter.detach().clone() for name, parameter in self._chosen(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            _copy(own, self._chosen(model))

    def copy_to(self, model: nn.Module) -> None:
        """Gives `model` the averaged weights for good."""
        _copy(self._averages, self._chosen(model))

    def state_dict(self) -> dict[str, Any]:
        return {"averages": dict(self._averages), "objective": super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._averages = {name: tensor.clone() for name, tensor in state["averages"].items()}
        super().load_state_dict(state["objective"])

    def _average(self, name: str, parameter: nn.Parameter) -> Tensor:
        """On the device of its parameter."""
        self._averages[name] = self._averages[name].to(parameter.device)
        return self._averages[name]

    def _chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters())
        if self.names is None:
            return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        if absent := [name for name in self.names if name not in parameters]:
            raise ValueError(f"the model has no parameter {absent[0]}, which is to be averaged")
        return {name: parameters[name] for name in self.names}


def averaged(objective: Objective, decay: float | None) -> Objective:
    """`objective` as it is, or with an average of this decay (task.denoising.ema_decay)."""
    return objective if decay is None else Averaged(objective, decay=decay)


def in_use(objective: Objective, model: nn.Module) -> Any:
    """A context within which an evaluation sees the averaged weights where there are such, else the model's own."""
    return objective.averages(model) if isinstance(objective, Averaged) else _nothing()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], into: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in into.items():
        if name in values:
            parameter.copy_(values[name])
