"""Training of a part of a recogniser: the rest keeps its bytes, BatchNorm statistics included."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from privlm.config import TrainerConfig
from privlm.models.evaluation_mode import evaluation_mode
from privlm.training.batches import TrainingData, num_steps
from privlm.training.optimizers import rates_of
from privlm.training.trainer import Trainer

from .ctc import CTC
from .line_data import LineData
from .recogniser import is_output

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
) -> None:
    """Trains the chosen parameters in place. trainer: a TrainerConfig; of its learning_rates those count that have a
    chosen parameter.

    Raises UsageError as the Trainer.
    """
    with only(model, chosen):
        training = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        rates = rates_of(trainer.learning_rates, training)
        settings = changed(trainer, learning_rates=rates, **WITHOUT_EVALUATION)
        Trainer(model, CTC(), data, settings, seed=seed).run(steps)


def tune_output(model: nn.Module, virtual: LineData, trainer: Any, server: Any, *, seed: int) -> None:
    """The server's step of a round: the output layer learns the balanced virtual lines, nothing else changes by a bit.

    trainer: a TrainerConfig. server: a ServerSide of the task. seed: of the round.
    """
    settings = changed(trainer, learning_rate=server.learning_rate, schedule="constant", final_learning_rate=None)
    if steps := steps_of(settings, server.virtual_epochs, len(virtual)):
        train_part(model, is_output, virtual, settings, steps=steps, seed=seed)


def steps_of(trainer: Any, epochs: float, num_lines: int) -> int:
    """Steps of so many passes over the lines; trainer: a TrainerConfig, or the group as a run holds it."""
    return num_steps(changed(trainer, epochs=epochs, steps=None), num_lines)


def mixed(personal: Mapping[str, Tensor], received: Mapping[str, Tensor], mix: float) -> dict[str, Tensor]:
    """mix * personal + (1 - mix) * received, in float64, of parameters and floating buffers; whole numbers (counts of
    batches) are the personal ones. Both have the same names and shapes.
    """
    assert personal.keys() == received.keys(), "a client and the server average the same tensors"
    return {name: _mixed(tensor, received[name], mix) for name, tensor in personal.items()}


def _mixed(own: Tensor, other: Tensor, mix: float) -> Tensor:
    if not own.is_floating_point():
        return own.clone()
    return (mix * own.double() + (1 - mix) * other.to(own.device).double()).to(own.dtype)
