"""What is minimised: one loss per example, so that privacy can bound each example's influence.

An objective is the only road from data to gradients. The trainer turns its per-example losses into a batch loss, or
hands them to the privacy engine; it never sees a loss that an objective has already averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from privlm.privacy import keyed_random

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class PerExample:
    """Losses of a micro-batch of B examples.

    loss: shape [B]; row i depends on the model, on example i and on its own random stream, never on its neighbours.
    weight: shape [B] or None (all ones). Without privacy the step minimises sum(weight * loss) / sum(weight) over the
        logical batch; with privacy weights are refused, since the denominator would couple the examples.
    """

    loss: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class ExampleRandom:
    """Random streams of the examples of one micro-batch, keyed by (run seed, step, example id).

    The same example at the same step draws the same numbers whatever the micro-batch, the process or the resume.
    """

    seed: int
    step: int
    example_ids: np.ndarray  # int64 [B]

    def normal(self, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """Standard normal numbers, float32 [B, *shape]."""
        draws = [self._generator(i).standard_normal(shape, dtype=np.float32) for i in self.example_ids]
        return torch.from_numpy(np.stack(draws)).to(device or "cpu")

    def uniform(self, shape: tuple[int, ...] = (), device: torch.device | None = None) -> Tensor:
        """Uniform numbers of [0, 1), float32 [B, *shape]."""
        draws = [self._generator(i).random(shape, dtype=np.float32) for i in self.example_ids]
        return torch.from_numpy(np.stack(draws)).to(device or "cpu")

    def _generator(self, example_id: int) -> np.random.Generator:
        return keyed_random.generator("example", self.seed, self.step, int(example_id))


class Objective(Protocol):
    """The contract of a training objective; see the optional protocols below for terms outside the examples."""

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample: ...


@runtime_checkable
class HasPenalty(Protocol):
    """An objective with a term that reads no example of the step (EWC, SI, FedProx).

    Its gradient is added after clipping and noise. private_state: names of what it carries over from private data
    without a recorded release (a Fisher matrix, say); a private run refuses them by name.
    """

    private_state: tuple[str, ...]

    def penalty(self, model: nn.Module) -> Tensor: ...


@runtime_checkable
class HasDirection(Protocol):
    """An objective that changes the released gradient (A-GEM, SCAFFOLD): receives and returns name -> gradient.

    private_state: as for HasPenalty (a replay memory, say).
    """

    private_state: tuple[str, ...]

    def direct(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]: ...
