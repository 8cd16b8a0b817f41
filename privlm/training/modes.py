"""Modes of a model's modules while it trains: what the caller has set is kept, and given back at the end."""

from __future__ import annotations

from torch import nn


class TrainingModes:
    """Which modules are in train mode while a model trains.

        with TrainingModes(model) as modes:
            modes.train()               # before each step; whatever came between may have changed modes

    A module without trainable parameters, of its own or below, keeps the mode that the caller gave it: statistics of a
    frozen part stay, dropout in it stays off. All else is in train mode. Where the whole model comes in evaluation
    mode, as from a loader, that says nothing about its parts (dropout must be on in training): then only frozen
    modules with running statistics keep it. On leaving, every module has the mode that it had before.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._given = _modes(model)
        self._kept = {
            module: mode
            for module, mode in self._given.items()
            if not any(parameter.requires_grad for parameter in module.parameters())
            and (model.training or getattr(module, "running_mean", None) is not None)
        }

    def train(self) -> None:
        self._model.train()
        _set(self._kept)

    def __enter__(self) -> TrainingModes:
        return self

    def __exit__(self, *error: object) -> None:
        _set(self._given)


def _modes(model: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for module in model.modules()}


def _set(modes: dict[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
