"""Training of a part of a recogniser: the rest keeps its bytes, BatchNorm statistics included."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from privlm.config import TrainerConfig
from privlm.models.evaluation_mode import evaluation_mode
from privlm.training.batches import TrainingData, num_steps
from privlm.training.trainer import Trainer

from .ctc import CTC
from .line_data import LineData
from .recogniser import is_attention, is_output

Chosen = Callable[[str], bool]
"""Of a parameter's name, whether it trains."""


WITHOUT_EVALUATION: dict[str, Any] = {
    "evaluate_every": 0, "early_stop_patience": None, "early_stop_metric": None, "early_stop_mode": None,
    "restore_best": None,
}  # fmt: skip
"""Settings of a training that is part of another."""


def changed(trainer: Any, **changes: Any) -> TrainerConfig:
    """trainer: a TrainerConfig, or the group as a run holds it."""
    values: Any = OmegaConf.to_container(trainer if OmegaConf.is_config(trainer) else OmegaConf.structured(trainer))
    return TrainerConfig(**(values | changes))


@contextlib.contextmanager
def only(model: nn.Module, chosen: Chosen) -> Iterator[None]:
    """The chosen parameters train, and the model is in evaluation mode: statistics of what is frozen stay."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(before[name] and chosen(name))
    try:
        with evaluation_mode(model):
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def train_part(
    model: nn.Module,
    chosen: Chosen,
    data: TrainingData,
    trainer: Any,
    *,
    steps: int,
    seed: int,
    accelerator: Any = None,
) -> None:
    """Trains the chosen parameters in place. trainer: a TrainerConfig; of its learning_rates those count that have a
    chosen parameter.

    Raises UsageError as the Trainer.
    """
    with only(model, chosen):
        training = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        rates = {part: rate for part, rate in trainer.learning_rates.items() if _any_has(training, part)}
        settings = changed(trainer, learning_rates=rates, **WITHOUT_EVALUATION)
        Trainer(model, CTC(), data, settings, seed=seed, accelerator=accelerator).run(steps)


def tune_output(model: nn.Module, virtual: LineData, trainer: Any, server: Any, *, seed: int) -> None:
    """The server's step of a round: the output layer learns the balanced virtual lines, nothing else changes by a bit.

    trainer: a TrainerConfig. server: a ServerSide of the task. seed: of the round.
    """
    epochs = server.virtual_epochs
    settings = changed(
        trainer,
        learning_rate=server.learning_rate,
        schedule="constant",
        final_learning_rate=None,
        epochs=epochs,
        steps=None,
    )
    if epochs:
        train_part(model, is_output, virtual, settings, steps=num_steps(settings, len(virtual)), seed=seed)


def train_attention(model: nn.Module, data: TrainingData, trainer: Any, *, epochs: float, seed: int) -> None:
    """The last stage of a client: its gates alone learn its own lines."""
    settings = changed(trainer, epochs=epochs, steps=None)
    if epochs:
        train_part(model, is_attention, data, settings, steps=num_steps(settings, len(data)), seed=seed)


def mixed(personal: Mapping[str, Tensor], received: Mapping[str, Tensor], mix: float) -> dict[str, Tensor]:
    """mix * personal + (1 - mix) * received, in float64, of parameters and floating buffers; whole numbers (counts of
    batches) are the personal ones. Both have the same names and shapes.
    """
    assert personal.keys() == received.keys(), "a client and the server average the same tensors"
    return {name: _mixed(tensor, received[name], mix) for name, tensor in personal.items()}


@torch.no_grad()
def mix_with(model: nn.Module, received: Mapping[str, Tensor], mix: float) -> None:
    """The second stage of a client, in place: what the server sent is averaged with what the local epoch made of it."""
    own = model.state_dict()
    for name, tensor in mixed({name: own[name] for name in received}, received, mix).items():
        own[name].copy_(tensor)


def _mixed(own: Tensor, other: Tensor, mix: float) -> Tensor:
    if not own.is_floating_point():
        return own.clone()
    return (mix * own.double() + (1 - mix) * other.to(own.device).double()).to(own.dtype)


def _any_has(names: list[str], part: str) -> bool:
    return any(part in name.split(".") for name in names)
