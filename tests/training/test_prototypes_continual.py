"""Methods of continual learning as objectives of a few lines, each against a loop written by hand.

A linear model learns a first task, then a second; every method must take the steps that its papers' equations say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.regression import NUM_EXAMPLES, Points, Squares, linear, plan, private, settings, trained
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.training.batches import Batches, ShuffledBatches
from privlm.training.checkpoint import CheckpointStore

STEPS, RATE = 15, 0.05

Tensors = dict[str, Tensor]


class OtherPoints(Points):
    """y = -x + 2: what the first task has taught is wrong here."""

    def __init__(self) -> None:
        super().__init__()
        self.y = 2 - self.x.sum(1)


def named(model: nn.Module) -> Tensors:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def mean_gradient(model: nn.Module, batch: Tensors) -> Tensors:
    loss = ((model(batch["x"]).squeeze(-1) - batch["y"]) ** 2).mean()
    return dict(zip(named(model), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def by_hand(
    model: nn.Module,
    data: Any,
    change: Callable[[Tensors], Tensors] = lambda gradient: gradient,
    after: Callable[[Tensors, Tensors], None] = lambda gradient, before: None,
    batches: Batches | None = None,
) -> None:
    """Plain gradient descent; `change` what is descended, `after` sees each step."""
    batches = batches or ShuffledBatches(len(data), 10, seed=0)
    for step in range(1, STEPS + 1):
        gradient, before = change(mean_gradient(model, data.batch(batches.indices(step)))), named(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.sub_(RATE * gradient[name])
        after(gradient, before)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in named(one).items():
        torch.testing.assert_close(value, named(other)[name], rtol=1e-5, atol=1e-6)


def after_first_task() -> nn.Module:
    model = linear()
    by_hand(model, Points())
    return model


class EWC(Squares):
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017): strength / 2 * sum of F (w - w*)^2."""

    private_state = ("Fisher information",)

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.tasks: list[tuple[Tensors, Tensors]] = []  # (anchor, Fisher information)

    def penalty(self, model: nn.Module) -> Any:
        parameters = dict(model.named_parameters())
        return sum(
            self.strength / 2 * (fisher[name] * (parameters[name] - anchor[name]) ** 2).sum()
            for anchor, fisher in self.tasks
            for name in anchor
        )

    def after(self, model: nn.Module, data: Points) -> None:
        squares = [mean_gradient(model, data.batch(np.array([i]))) for i in range(len(data))]
        fisher = {name: torch.stack([each[name] ** 2 for each in squares]).mean(0) for name in named(model)}
        self.tasks.append((named(model), fisher))


def test_elastic_weight_consolidation() -> None:
    objective, model = EWC(strength=3.0), linear()
    trained(objective, steps=STEPS, model=model)  # the first task has nothing to keep
    assert_same(model, expected := after_first_task())
    objective.after(model, Points())
    trained(objective, steps=STEPS, model=model, data=OtherPoints())

    anchor, fisher = objective.tasks[0]

    def pulled(gradient: Tensors) -> Tensors:
        now = named(expected)
        return {name: g + 3.0 * fisher[name] * (now[name] - anchor[name]) for name, g in gradient.items()}

    by_hand(expected, OtherPoints(), pulled)
    assert_same(model, expected)
    forgetful = after_first_task()
    by_hand(forgetful, OtherPoints())
    assert (named(forgetful)["weight"] - anchor["weight"]).norm() > (named(model)["weight"] - anchor["weight"]).norm()


class SI(Squares):
    """Synaptic intelligence (Zenke, Poole, Ganguli, ICML 2017): what a weight's way has saved."""

    def __init__(self, strength: float, damping: float = 0.1) -> None:
        super().__init__()
        self.strength = strength
        self.damping = damping
        self.importance: Tensors = {}
        self.anchor: Tensors = {}
        self.path: Tensors = {}

    def begin(self, model: nn.Module) -> None:
        self.anchor = named(model)
        self.path = {name: torch.zeros_like(value) for name, value in self.anchor.items()}
        self.importance = self.importance or {name: torch.zeros_like(value) for name, value in self.anchor.items()}
        self.start = self.anchor

    def penalty(self, model: nn.Module) -> Tensor:
        terms = [(self.importance[n] * (p - self.anchor[n]) ** 2).sum() for n, p in model.named_parameters()]
        return self.strength * torch.stack(terms).sum()

    def direct(self, gradient: Tensors, model: nn.Module, step: int) -> Tensors:
        self.gradient, self.before = {name: value.clone() for name, value in gradient.items()}, named(model)
        return gradient

    def stepped(self, model: nn.Module, step: int) -> None:
        for name, now in named(model).items():
            self.path[name] -= self.gradient[name] * (now - self.before[name])

    def end(self, model: nn.Module) -> None:
        for name, now in named(model).items():
            self.importance[name] += self.path[name] / ((now - self.start[name]) ** 2 + self.damping)

    def state_dict(self) -> dict[str, Any]:
        return {"path": self.path}

    def load_state_dict(self, state: Any) -> None:
        self.path = dict(state["path"])


def test_synaptic_intelligence() -> None:
    objective, model, expected = SI(strength=0.5), linear(), linear()
    start, path = named(expected), {name: torch.zeros_like(value) for name, value in named(expected).items()}

    def add_up(gradient: Tensors, before: Tensors) -> None:
        for name, now in named(expected).items():
            path[name] -= gradient[name] * (now - before[name])

    objective.begin(model)
    trained(objective, steps=STEPS, model=model)
    objective.end(model)
    by_hand(expected, Points(), after=add_up)
    anchor = named(expected)
    importance = {name: path[name] / ((anchor[name] - start[name]) ** 2 + 0.1) for name in path}
    for name, value in importance.items():
        assert value.abs().max() > 0.1
        torch.testing.assert_close(objective.importance[name], value, rtol=1e-4, atol=1e-6)

    def pulled(gradient: Tensors) -> Tensors:
        now = named(expected)
        return {name: g + 2 * 0.5 * importance[name] * (now[name] - anchor[name]) for name, g in gradient.items()}

    objective.begin(model)
    trained(objective, steps=STEPS, model=model, data=OtherPoints())
    by_hand(expected, OtherPoints(), pulled)
    assert_same(model, expected)


def test_path_of_synaptic_intelligence_survives_a_resume_and_is_allowed_under_privacy(tmp_path: Path) -> None:
    def path(folder: str, *steps: int) -> Tensors:
        for number in steps:
            objective, model = SI(strength=0.5), linear()
            objective.begin(model)
            mechanism = private(plan(), tmp_path / f"{folder}.jsonl")
            trained(objective, steps=number, model=model, private=mechanism, save=CheckpointStore(tmp_path / folder))
        return objective.path

    whole, halves = path("whole", 10), path("halves", 6, 10)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


class AGEM(Squares):
    """Averaged gradient episodic memory (Chaudhry et al., ICLR 2019): no step may raise the loss of the memory."""

    private_state = ("replay memory",)

    def __init__(self, memory: Tensors) -> None:
        super().__init__()
        self.memory = memory
        self.num_projections = 0

    def direct(self, gradient: Tensors, model: nn.Module, step: int) -> Tensors:
        reference = mean_gradient(model, self.memory)
        dot = sum(float((gradient[name] * reference[name]).sum()) for name in gradient)
        if dot >= 0:
            return gradient
        self.num_projections += 1
        square = sum(float((value**2).sum()) for value in reference.values())
        return {name: value - dot / square * reference[name] for name, value in gradient.items()}


def test_averaged_gradient_episodic_memory() -> None:
    memory = Points().batch(np.arange(8))
    objective, model, expected = AGEM(memory), after_first_task(), after_first_task()
    trained(objective, steps=STEPS, model=model, data=OtherPoints())

    def projected(gradient: Tensors) -> Tensors:
        flat = torch.cat([value.flatten() for value in gradient.values()])
        reference = torch.cat([value.flatten() for value in mean_gradient(expected, memory).values()])
        if flat @ reference < 0:
            flat = flat - flat @ reference / (reference @ reference) * reference
        return {"weight": flat[:3].reshape(1, 3), "bias": flat[3:]}

    by_hand(expected, OtherPoints(), projected)
    assert_same(model, expected)
    assert 0 < objective.num_projections <= STEPS
    with pytest.raises(UsageError, match="replay memory of AGEM comes from private data"):
        trained(objective, data=OtherPoints(), private=private(plan()))


class Mixed:
    """A new task's data with a memory of an old one's behind them."""

    lengths = None

    def __init__(self, new: Points, memory: Tensors) -> None:
        self.new = new
        self.memory = memory

    def __len__(self) -> int:
        return len(self.new) + len(self.memory["x"])

    def batch(self, indices: np.ndarray) -> Tensors:
        parts = {"x": torch.cat([self.new.x, self.memory["x"]]), "y": torch.cat([self.new.y, self.memory["y"]])}
        return {name: values[indices] for name, values in parts.items()} | {"weight": torch.ones(len(indices))}


class MixedBatches:
    """Of every batch exactly `num_old` come from the memory, the rest from the new task."""

    def __init__(self, num_new: int, size_of_memory: int, batch_size: int, num_old: int) -> None:
        self.offset = num_new
        self.new = ShuffledBatches(num_new, batch_size - num_old, seed=0)
        self.old = ShuffledBatches(size_of_memory, num_old, seed=1)

    def indices(self, step: int) -> np.ndarray:
        return np.concatenate([self.new.indices(step), self.offset + self.old.indices(step)])


@pytest.mark.parametrize("micro_batch_size", [3, 10])
def test_replay_mixes_exactly(micro_batch_size: int) -> None:
    data = Mixed(OtherPoints(), Points().batch(np.arange(8)))
    batches = MixedBatches(NUM_EXAMPLES, 8, batch_size=10, num_old=3)
    assert all((batches.indices(step) >= NUM_EXAMPLES).sum() == 3 for step in range(1, STEPS + 1))
    model, expected = after_first_task(), after_first_task()
    config = settings(micro_batch_size=micro_batch_size)
    trained(steps=STEPS, model=model, data=data, batches=batches, config=config)
    by_hand(expected, data, batches=batches)
    assert_same(model, expected)
    plain = after_first_task()
    trained(steps=STEPS, model=plain, data=OtherPoints())
    assert not torch.allclose(plain.weight, model.weight, atol=1e-3)  # type: ignore[arg-type]
