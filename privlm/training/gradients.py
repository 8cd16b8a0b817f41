"""From the examples of a step to its gradient: micro-batches, their losses, the weighted mean of a logical batch."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from privlm.privacy import keyed_random
from privlm.privacy.rgp import Reparametrization
from privlm.privacy.sampling import micro_batches, share
from privlm.training.batches import Batches, Indices, TrainingData
from privlm.training.canaries import Losses
from privlm.training.objective import Batch, ExampleRandom, PerExample
from privlm.training.processes import sum_by_name, sum_over_processes

RESERVED = {"loss", "learning_rate", "gradient_norm", "loss_scale", "clipped_fraction", "batch_size", "epsilon"}
"""Names of the trainer's own values, which no part of a loss may have."""


class Gradient(Protocol):
    """Leaves the gradient of a step in `.grad`; returns what may be told of its examples, None if that is nothing."""

    def __call__(self, step: int) -> Totals | None: ...


class Totals:
    """Weighted sums over the examples of a logical batch.

    They stay on the device: nothing waits for it before `read`. num_examples: of all processes.
    """

    def __init__(self, device: torch.device, num_examples: int) -> None:
        self.num_examples = num_examples
        self.weight, self.loss = torch.zeros(2, device=device, dtype=_sum_dtype(device)).unbind()
        self.others: dict[str, Tensor] = {}

    def add(self, per_example: PerExample, weight_B: Tensor, **sums: Tensor) -> None:
        """Takes in a micro-batch, and `sums` that are to be divided by the sum of the weights."""
        weight_B = weight_B.detach()
        self.weight = self.weight + weight_B.sum()
        self.loss = self.loss + (weight_B * per_example.loss.detach()).sum()
        parts = {name: (weight_B * part_B.detach()).sum() for name, part_B in per_example.parts.items()}
        for name, value in (parts | sums).items():
            self.others[name] = self.others.get(name, 0) + value.to(self.weight.dtype)

    def share(self, accelerator: Accelerator) -> None:
        """Makes weight and loss those of all processes."""
        self.weight, self.loss = sum_over_processes(accelerator, torch.stack([self.weight, self.loss])).unbind()

    def read(self, accelerator: Accelerator, **numbers: Tensor) -> dict[str, float]:
        """Means over the examples of all processes, none where all weights are 0; the sum of weights; and `numbers`.

        Waits for the device, once.
        """
        tensors = {"weight": self.weight, "loss": self.loss} | self.others | numbers
        values = torch.stack([value.detach().to(self.weight) for value in tensors.values()]).tolist()
        found = dict(zip(tensors, values, strict=True))
        read = {name: found.pop(name) for name in ("weight", *numbers)}
        sums = {"loss": found.pop("loss")} | sum_by_name(accelerator, found)
        return read | ({name: value / read["weight"] for name, value in sums.items()} if read["weight"] else {})


class Rows(TypedDict):
    """A micro-batch: numbers of its examples [B], and what the data gives for them."""

    ids: Indices
    batch: Batch


@dataclass(frozen=True)
class Examples:
    """The losses of any examples of the training data at any step, cut into micro-batches.

    secret_dropout: masks that nobody can know, drawn anew each time. Those that follow from the seed depend, within a
        micro-batch, on its other examples too, which would let one record move the gradients of others.
    """

    model: nn.Module
    data: TrainingData
    losses: Losses
    accelerator: Accelerator
    seed: int
    micro_batch_size: int
    secret_dropout: bool = False

    def pieces(self, indices: Indices) -> list[Indices]:
        """This process's micro-batches of a logical batch."""
        mine = share(indices, self.accelerator.process_index, self.accelerator.num_processes)
        return micro_batches(mine, self.data.lengths, self.micro_batch_size)

    def __call__(self, step: int, piece: Indices) -> PerExample:
        self.seed_dropout(step, piece)
        with self.accelerator.autocast():
            return self.losses_of(step, self.rows(piece))

    def seed_dropout(self, step: int, piece: Indices) -> None:
        """Dropout draws from torch's global generator: seeded by the first example, it is the same after a resume."""
        bits = keyed_random.key_bits("dropout", self.seed, step, int(piece[0])) >> 65
        torch.manual_seed(secrets.randbits(63) if self.secret_dropout else bits)

    def rows(self, piece: Indices) -> Rows:
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in self.data.batch(piece).items()}
        return {"ids": piece, "batch": batch}

    def losses_of(self, step: int, rows: Rows) -> PerExample:
        per_example = self.losses(self.model, rows["batch"], ExampleRandom(self.seed, step, rows["ids"]))
        _check_shapes(per_example, len(rows["ids"]))
        return per_example


@dataclass(frozen=True)
class MeanGradient:
    """The gradient of sum(weight * loss) / sum(weight) over the logical batch; 0 where all weights are 0.

    scaler: what makes losses large enough for half precision; the gradient is left scaled.
    """

    examples: Examples
    batches: Batches
    parameters: Mapping[str, nn.Parameter]
    rgp: Reparametrization
    scaler: Any

    def __call__(self, step: int) -> Totals:
        accelerator = self.examples.accelerator
        indices = self.batches.indices(step)
        totals = Totals(accelerator.device, len(indices))
        for piece in self.examples.pieces(indices):
            per_example = self.examples(step, piece)
            weight_B = torch.ones_like(per_example.loss) if per_example.weight is None else per_example.weight
            self.scaler.scale((weight_B * per_example.loss).sum()).backward()
            totals.add(per_example, weight_B)
        totals.share(accelerator)
        self.rgp.take_gradients()
        divisor = totals.weight.where(totals.weight != 0, 1.0).float()
        for parameter in self.parameters.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = sum_over_processes(accelerator, gradient) / divisor.to(gradient.dtype)
        return totals


def _check_shapes(per_example: PerExample, size: int) -> None:
    """Raises ValueError where an objective has averaged, or gives parts that are no numbers of the examples."""
    tensors = {"losses": per_example.loss} | dict(per_example.parts)
    if per_example.weight is not None:
        tensors["weights"] = per_example.weight
    for name, tensor in tensors.items():
        if tensor.shape != (size,):
            raise ValueError(f"the objective gave {name} of shape {tuple(tensor.shape)}, not ({size},)")
    if taken := RESERVED & per_example.parts.keys():
        raise ValueError(f"the objective names a part of its loss {taken.pop()!r}, which the trainer logs itself")


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs do not have
