"""What is minimised: one loss per example, so that privacy can bound each example's influence.

An objective is the only road from data to gradients. The trainer turns its per-example losses into a batch loss, or
hands them to the privacy engine; it never sees a loss that an objective has already averaged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm.privacy import keyed_random

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class PerExample:
    """Losses of a micro-batch of B examples.

    loss: shape [B]; row i depends on the model, on example i and on its own random streams, never on its neighbours.
    weight: shape [B] or None (all ones). Without privacy the step minimises sum(weight * loss) / sum(weight) over the
        logical batch, and takes nothing from a batch whose weights are all 0; with privacy weights are refused, since
        the denominator would couple the examples.
    parts: what the loss is made of, each [B]; logged as weighted means. Every batch of an objective has the same parts.
    """

    loss: Tensor
    weight: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    def detached(self) -> PerExample:
        """The values alone, which keep no graph, and nothing that it has saved, in memory."""
        weight = None if self.weight is None else self.weight.detach()
        return PerExample(self.loss.detach(), weight, {name: part.detach() for name, part in self.parts.items()})


class ExampleRandom:
    """Random streams of the examples of one micro-batch.

    A draw is a function of (seed, step, example, stream, how many draws of this stream came before): the same example
    at the same step draws the same numbers whatever the micro-batch, the process or the resume, and no two draws of a
    step are related. Draws of different kinds are related neither, since each kind has a stream of its own.

        noise = rng.normal((4, 32, 32))
        timestep = rng.integers(0, 1000)

    Another purpose is best named, so that it stays the same where a draw before it is added or left out:
    `rng.normal((4,), stream="noise offset")`.

    seed: of the run, or of a stage of it. example_ids: int64 [B].
    """

    def __init__(self, seed: int, step: int, example_ids: np.ndarray) -> None:
        self.seed = seed
        self.step = step
        self.example_ids = example_ids
        self._num_draws: Counter[str] = Counter()

    def normal(self, shape: tuple[int, ...] = (), device: torch.device | None = None, stream: str = "noise") -> Tensor:
        """Standard normal numbers, float32 [B, *shape]."""
        return self._draw(lambda generator: generator.standard_normal(shape, dtype=np.float32), stream, device)

    def uniform(
        self, shape: tuple[int, ...] = (), device: torch.device | None = None, stream: str = "uniform"
    ) -> Tensor:
        """Uniform numbers of [0, 1), float32 [B, *shape]."""
        return self._draw(lambda generator: generator.random(shape, dtype=np.float32), stream, device)

    def integers(
        self,
        low: int,
        high: int,
        shape: tuple[int, ...] = (),
        device: torch.device | None = None,
        stream: str = "integers",
    ) -> Tensor:
        """Uniform whole numbers of [low, high), int64 [B, *shape]."""
        return self._draw(lambda generator: generator.integers(low, high, shape), stream, device)

    def _draw(self, draw: Callable[[np.random.Generator], Any], stream: str, device: torch.device | None) -> Tensor:
        number = self._num_draws[stream]
        self._num_draws[stream] += 1
        draws = [
            draw(keyed_random.generator("example", self.seed, self.step, int(example), stream, number))
            for example in self.example_ids
        ]
        return torch.from_numpy(np.stack(draws)).to(device or "cpu")


class Objective(ABC):
    """The contract of a training objective: the losses, and what else a method wants of the loop.

    private_state: names of what the objective carries that comes from private data outside a recorded release (a
        replay memory, a Fisher matrix); a private run is then refused by these names. What is computed from released
        gradients and weights alone (an average of weights, the path integral of SI) is no private state.
    """

    private_state: tuple[str, ...] = ()

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        """The loss of each example of a micro-batch; the only method that sees the examples of the step."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar that reads no example of the step (EWC, SI, FedProx); its gradient is added after clipping and
        noise. None, or a number without a graph, adds nothing.
        """
        return None

    def direct(self, gradient: dict[str, Tensor], model: nn.Module, step: int) -> Mapping[str, Tensor]:
        """Changes the gradient of the step, clipped and noised (A-GEM, SCAFFOLD): name -> gradient, both in and out;
        what the answer leaves out stays as it is.
        """
        return gradient

    def stepped(self, model: nn.Module, step: int) -> None:  # noqa: B027 (most objectives need nothing here)
        """Called after the optimizer has taken `step` (SI, RWalk, an average of weights)."""

    def state_dict(self) -> dict[str, Any]:
        """What the steps change in the objective: tensors, numbers, texts, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        if state:
            raise TypeError(f"{type(self).__name__} has a state_dict but no load_state_dict: a resume would lose it")


class WrappedObjective(Objective):
    """An objective as it is, for those that add something to another one."""

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
