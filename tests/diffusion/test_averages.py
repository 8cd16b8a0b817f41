"""The average of weights: its formula, its place in checkpoints, and that training knows nothing of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.regression import Squares, plan, private, trained
from torch import Tensor, nn

from privlm.diffusion.averaging import Averaged, averaged, in_use
from privlm.training.checkpoint import CheckpointStore
from privlm.training.objective import Objective


class Remembering(Squares):
    """Keeps the weights after each step, and a number in its state."""

    private_state = ()

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.number = 0

    def stepped(self, model: nn.Module, step: int) -> None:
        self.seen.append(model.get_parameter("weight").detach().clone())
        self.number = step

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: Any) -> None:
        self.number = state["number"]


def average_of(objective: Averaged, model: nn.Module) -> Tensor:
    with objective.averages(model):
        return model.get_parameter("weight").detach().clone()


def test_the_average_follows_its_formula() -> None:
    inner = Remembering()
    objective = Averaged(inner, decay=0.5)
    run = trained(objective, steps=12)
    expected = inner.seen[0]
    for step, weight in enumerate(inner.seen[1:], start=2):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average_of(objective, run.model), expected)
    assert inner.number == 12


def test_training_is_the_same_with_it() -> None:
    assert trained(Averaged(Squares()), steps=6).weights == trained(Squares(), steps=6).weights


def test_the_models_own_weights_come_back_even_after_an_error() -> None:
    objective = Averaged(Squares())
    run = trained(objective, steps=6)
    with contextlib.suppress(RuntimeError), objective.averages(run.model):
        assert run.model.get_parameter("weight").flatten().tolist() != run.weights[:3]
        raise RuntimeError
    assert run.model.get_parameter("weight").flatten().tolist() == run.weights[:3]


@pytest.mark.parametrize("is_private", [False, True])
def test_a_resumed_run_has_the_same_average_bit_for_bit(tmp_path: Path, is_private: bool) -> None:
    def run(name: str, steps: int) -> Any:
        objective = Averaged(Remembering())
        options = {"private": private(plan(), tmp_path / f"{name}.jsonl")} if is_private else {}
        done = trained(objective, steps=steps, save=CheckpointStore(tmp_path / name), **options)
        return SimpleNamespace(weights=done.weights, average=average_of(objective, done.model), objective=objective)

    whole = run("whole", 8)
    run("cut", 3)
    resumed = run("cut", 8)
    assert resumed.weights == whole.weights
    assert torch.equal(resumed.average, whole.average)
    assert resumed.objective.objective.number == 8


def test_named_parameters_alone_are_averaged_and_an_unknown_one_is_refused() -> None:
    objective = Averaged(Squares(), names=("weight",))
    run = trained(objective, steps=6)
    assert set(objective.state_dict()["averages"]) == {"weight"}
    with objective.averages(run.model):
        assert run.model.get_parameter("bias").tolist() == run.weights[3:]
    with pytest.raises(ValueError, match="no parameter head"):
        trained(Averaged(Squares(), names=("head",)), steps=1)


def test_frozen_parameters_are_not_kept_twice() -> None:
    model = nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    objective = Averaged(Squares())
    objective.stepped(model, 1)
    assert set(objective.state_dict()["averages"]) == {"weight"}


def test_weights_of_half_precision_are_averaged_in_float32() -> None:
    model = nn.Linear(3, 1).bfloat16()
    objective = Averaged(Squares(), decay=0.9999)
    for step in (1, 2):
        objective.stepped(model, step)
    assert objective.state_dict()["averages"]["weight"].dtype == torch.float32
    with objective.averages(model):
        assert model.weight.dtype == torch.bfloat16


def test_everything_else_is_the_objectives_own() -> None:
    class Directed(Squares):
        private_state = ("memory",)

        def penalty(self, model: nn.Module) -> Tensor:
            return torch.tensor(3.0)

        def direct(self, gradient: dict[str, Tensor], model: nn.Module, step: int) -> dict[str, Tensor]:
            return {}

    objective = Averaged(Directed())
    assert objective.private_state == ("memory",)
    assert objective.penalty(nn.Linear(1, 1)) == torch.tensor(3.0)
    assert objective.direct({"weight": torch.ones(1)}, nn.Linear(1, 1), 1) == {}


def test_the_average_can_be_kept_for_good() -> None:
    objective = Averaged(Squares())
    run = trained(objective, steps=6)
    expected = average_of(objective, run.model)
    objective.copy_to(run.model)
    assert torch.equal(run.model.get_parameter("weight"), expected)


def test_settings_ask_for_it_or_not() -> None:
    plain: Objective = Squares()
    assert averaged(plain, None) is plain
    asked = averaged(plain, 0.9)
    assert isinstance(asked, Averaged)
    model = nn.Linear(3, 1)
    with in_use(plain, model), in_use(asked, model):  # before the first step, the model's own
        pass
    for decay in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Averaged(plain, decay=decay)
